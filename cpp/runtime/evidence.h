// Evidence: how much attention the answer paid to each moment. Mass is summed per time stamp in a small fixed table;
// what finds no place is counted as other(), never lost silently. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory/region.h"

namespace mosaic {

class Evidence {
 public:
  static constexpr int kCapacity = 512;  // a power of two
  struct Moment {
    int32_t first_ms;
    int32_t last_ms;
    double mass;  // 0: the entry is free
  };
  static size_t bytes_for() { return Region::rounded(kCapacity * sizeof(Moment)); }
  explicit Evidence(Region& region) : moments_(region.take<Moment>("evidence", kCapacity)) {}

  void clear() {
    for (int i = 0; i < kCapacity; ++i) moments_[i].mass = 0;
    size_ = 0;
    other_ = 0;
  }
  void add(int32_t first_ms, int32_t last_ms, double mass) {
    if (!(mass > 0)) return;
    auto at = (static_cast<uint32_t>(first_ms) * 2654435761u ^ static_cast<uint32_t>(last_ms) * 40503u) % kCapacity;
    for (int probe = 0; probe < kCapacity; ++probe, at = (at + 1) % kCapacity) {
      Moment& m = moments_[at];
      if (m.mass > 0 && (m.first_ms != first_ms || m.last_ms != last_ms)) continue;
      if (!(m.mass > 0)) {
        if (size_ >= kCapacity / 4 * 3) break;
        ++size_;
        m = {first_ms, last_ms, 0};
      }
      m.mass += mass;
      return;
    }
    other_ += mass;
  }
  // The table as it stands: entries with mass 0 are free.
  const Moment* moments() const { return moments_; }
  double other() const { return other_; }

 private:
  Moment* moments_;
  int size_ = 0;
  double other_ = 0;
};

}  // namespace mosaic
