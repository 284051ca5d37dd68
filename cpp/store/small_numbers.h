// SmallNumbers: whole numbers from 0, each in as few bytes (1, 2 or 4) as the largest of them takes.
#pragma once

#include <cstdint>
#include <cstring>

#include "memory/region.h"
#include "memory/snapshot.h"

namespace mosaic {

class SmallNumbers {
 public:
  SmallNumbers(Region& region, const char* name, Size n, uint32_t most)
      : width_(most <= 0xff     ? 1
               : most <= 0xffff ? 2
                                : 4),
        data_(region.take<std::byte>(name, n * width_)) {}

  uint32_t operator[](size_t i) const {
    switch (width_) {
      case 1:
        return read<uint8_t>(i);
      case 2:
        return read<uint16_t>(i);
      default:
        return read<uint32_t>(i);
    }
  }
  void set(size_t i, uint32_t x) { std::memcpy(data_ + i * width_, &x, width_); }  // little-endian, as snapshots are
  void serialize(Snapshot& s, size_t first, size_t n) { s.bytes(data_ + first * width_, n * width_); }

 private:
  template <class T>
  uint32_t read(size_t i) const {
    T x;
    std::memcpy(&x, data_ + i * sizeof(T), sizeof(T));
    return x;
  }

  size_t width_;
  std::byte* data_;
};

}  // namespace mosaic
