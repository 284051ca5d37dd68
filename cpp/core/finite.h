// Whether numbers are finite. Only NaN and infinity have an exponent of all ones; integers, so that the loop may be
// vectorised.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace mosaic {

inline bool all_finite(const float* x, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) bad |= (std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  return bad == 0;
}

}  // namespace mosaic
