// CRC32C (Castagnoli): the checksum of spilled pages. The CPU's own instruction when it has one (SSE4.2, ARMv8 CRC),
// found at run time; eight tables otherwise. Both give the same numbers. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mosaic {

// Continue a checksum by passing the previous one: crc32c(b, nb, crc32c(a, na)) is that of a followed by b.
uint32_t crc32c(const void* data, size_t bytes, uint32_t previous = 0);
// The tables, always: what the instruction must equal.
uint32_t crc32c_portable(const void* data, size_t bytes, uint32_t previous = 0);
bool crc32c_in_hardware();

}  // namespace mosaic
