#include "memory/region.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.h"

namespace mosaic {

Region::Region(Device& device, size_t shared_bytes, size_t private_bytes) : device_(&device) {
  if (shared_bytes > 0) shared_ = {static_cast<std::byte*>(device.allocate(shared_bytes)), shared_bytes, 0};
  if (private_bytes == 0) return;
  try {
    private_ = {static_cast<std::byte*>(device.allocate_private(private_bytes)), private_bytes, 0};
  } catch (...) {
    if (shared_.base != nullptr) device.release(shared_.base, shared_.capacity);
    throw;
  }
}

Region::~Region() {
  for (const Slab& slab : {private_, shared_})
    if (slab.base != nullptr) device_->release(slab.base, slab.capacity);
}

std::byte* Region::take_bytes(Slab* slab, const char* name, size_t n, size_t object_bytes) {
  const size_t most = SIZE_MAX / 2 / object_bytes;  // beyond it the product or its rounding would wrap
  const size_t bytes = n <= most ? rounded(n * object_bytes) : SIZE_MAX;
  if (bytes > slab->capacity - slab->used) {
    throw MemoryCapError(std::string(name) + " needs " + format_bytes(bytes) + "; " + device_->name() + " region of " +
                         format_bytes(slab->capacity) + " has " + format_bytes(slab->capacity - slab->used) +
                         " left. The plan missed it (a defect); raise memory= to go on.");
  }
  char cut[kNameBytes];
  std::snprintf(cut, sizeof cut, "%s", name);
  int row = 0;
  while (row < row_count_ && std::strcmp(rows_[row].name, cut) != 0) ++row;
  if (row == kMaxRows) {
    throw InvariantError(std::string(name) + " needs a row of its own; the region's account has " +
                         std::to_string(kMaxRows) + ", all in use");
  }
  if (row == row_count_) {
    std::memcpy(rows_[row].name, cut, sizeof cut);
    ++row_count_;
  }
  rows_[row].bytes += bytes;
  std::byte* const piece = slab->base + slab->used;
  slab->used += bytes;
  return piece;
}

}  // namespace mosaic
