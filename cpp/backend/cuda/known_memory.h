// KnownMemory: where memory lies, as far as that can be said without asking the driver, which is asked for every pointer
// otherwise: what the device has given out, and what a caller has lent for now. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <span>

#include "backend/device.h"

namespace mosaic::cuda {

class KnownMemory {
 public:
  void add(const void* memory, size_t bytes, Device::Access access) { given_[at(memory)] = {bytes, access}; }
  void remove(const void* memory) { given_.erase(at(memory)); }
  // In place of what was lent before.
  void lend(std::span<const Device::Lent> arrays) {
    lent_ = {};
    std::copy_n(arrays.begin(), std::min(arrays.size(), lent_.size()), lent_.begin());
  }
  std::optional<Device::Access> find(const void* pointer) const {
    const std::byte* const here = at(pointer);
    if (auto after = given_.upper_bound(here); after != given_.begin()) {
      --after;
      if (here < after->first + after->second.bytes) return after->second.access;
    }
    for (const Device::Lent& array : lent_)
      if (here >= at(array.data) && here < at(array.data) + array.bytes) return array.access;
    return std::nullopt;
  }

 private:
  struct Piece {
    size_t bytes = 0;
    Device::Access access{};
  };
  static const std::byte* at(const void* memory) { return static_cast<const std::byte*>(memory); }

  std::map<const std::byte*, Piece> given_;
  std::array<Device::Lent, 4> lent_{};
};

}  // namespace mosaic::cuda
