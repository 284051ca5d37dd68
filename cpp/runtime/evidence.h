// Evidence: how much attention the answer paid to each moment. Mass is summed per time stamp in a small fixed table;
// what finds no room is counted as other(), never lost silently. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory/region.h"

namespace mosaic {

class Evidence {
 public:
  struct Moment {
    int32_t first_ms;
    int32_t last_ms;
    double mass;  // 0: the entry is free
  };
  // The table takes a 128th of the cap, so that long streams under large caps are told apart.
  Evidence(Region& region, uint64_t cap_bytes)
      : capacity_(capacity_for(cap_bytes)), moments_(region.take<Moment>("evidence", capacity_)) {}

  void clear() {
    for (int i = 0; i < capacity_; ++i) moments_[i].mass = 0;
    size_ = lost_ = 0;
    other_ = 0;
  }
  void add(int32_t first_ms, int32_t last_ms, double mass) {
    if (!(mass > 0)) return;
    const auto n = static_cast<uint32_t>(capacity_);
    auto at = (static_cast<uint32_t>(first_ms) * 2654435761u ^ static_cast<uint32_t>(last_ms) * 40503u) % n;
    for (int probe = 0; probe < capacity_; ++probe, at = (at + 1) % n) {
      Moment& m = moments_[at];
      if (m.mass > 0 && (m.first_ms != first_ms || m.last_ms != last_ms)) continue;
      if (!(m.mass > 0)) {
        if (size_ >= capacity_ / 4 * 3) break;
        ++size_;
        m = {first_ms, last_ms, 0};
      }
      m.mass += mass;
      return;
    }
    other_ += mass;
    ++lost_;
  }
  // What is known to be there, but not where.
  void add_other(double mass) { other_ += mass; }
  // The table as it stands, [capacity()]: entries with mass 0 are free.
  const Moment* moments() const { return moments_; }
  int capacity() const { return capacity_; }
  double other() const { return other_; }
  int lost() const { return lost_; }  // moments that found no room

 private:
  static int capacity_for(uint64_t cap_bytes) {  // a power of two
    int n = 512;
    while (n < 16384 && static_cast<uint64_t>(n) * 2 * sizeof(Moment) <= cap_bytes / 128) n *= 2;
    return n;
  }
  int capacity_;
  Moment* moments_;
  int size_ = 0;
  int lost_ = 0;
  double other_ = 0;
};

}  // namespace mosaic
