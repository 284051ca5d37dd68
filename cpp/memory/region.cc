#include "memory/region.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.h"

namespace mosaic {

Region::Region(Device& device, size_t bytes) : device_(&device), capacity_(bytes) {
  if (bytes > 0) base_ = static_cast<std::byte*>(device.allocate(bytes));
}

Region::~Region() {
  if (base_ != nullptr) device_->release(base_, capacity_);
}

std::byte* Region::take_bytes(const char* name, size_t n, size_t object_bytes) {
  const size_t most = SIZE_MAX / 2 / object_bytes;  // beyond it the product or its rounding would wrap
  const size_t bytes = n <= most ? rounded(n * object_bytes) : SIZE_MAX;
  if (bytes > left()) {
    throw MemoryCapError(std::string(name) + " needs " + format_bytes(bytes) + "; " + device_->name() + " region of " +
                         format_bytes(capacity_) + " has " + format_bytes(left()) +
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
  std::byte* const piece = base_ + used_;
  used_ += bytes;
  return piece;
}

}  // namespace mosaic
