#include "memory/region.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.h"

namespace mosaic {

Region::Region(Device& device, size_t shared_bytes, size_t private_bytes)
    : device_(&device), has_private_(private_bytes > 0) {
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

std::byte* Region::take_bytes(Slab* slab, const char* name, Size wanted) {
  const size_t bytes = rounded(wanted);
  if (is_counting()) {
    Row& row = row_of(name);
    row.bytes = (Size(row.bytes) + bytes).bytes();
    slab->used = (Size(slab->used) + bytes).bytes();
    return nullptr;
  }
  if (bytes > slab->capacity - slab->used) {
    throw MemoryCapError(std::string(name) + " needs " + format_bytes(bytes) + "; " + device_->name() + " region of " +
                         format_bytes(slab->capacity) + " has " + format_bytes(slab->capacity - slab->used) +
                         " left. The plan missed it (a defect); raise memory= to go on.");
  }
  row_of(name).bytes += bytes;
  std::byte* const piece = slab->base + slab->used;
  slab->used += bytes;
  return piece;
}

Region::Row& Region::row_of(const char* name) {
  const auto is_named = [&](int row) { return std::strncmp(rows_[row].name, name, kNameBytes - 1) == 0; };
  int row = last_row_ < row_count_ && is_named(last_row_) ? last_row_ : 0;
  while (row < row_count_ && !is_named(row)) ++row;
  if (row == kMaxRows) {
    throw InvariantError(std::string(name) + " needs a row of its own; the region's account has " +
                         std::to_string(kMaxRows) + ", all in use");
  }
  if (row == row_count_) {
    std::snprintf(rows_[row].name, kNameBytes, "%s", name);
    ++row_count_;
  }
  last_row_ = row;
  return rows_[row];
}

}  // namespace mosaic
