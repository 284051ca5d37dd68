// Evidence: how much attention the answer paid to each moment. Mass is summed per time stamp in a small fixed table;
// what finds no room is counted as other(), never lost silently. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/clock.h"
#include "memory/region.h"

namespace mosaic {

class Evidence {
 public:
  struct Moment {
    int64_t first_ms;
    int64_t last_ms;
    double mass;  // 0: the entry is free
  };
  // The table takes about a 128th of the cap, so that long streams under large caps are told apart.
  Evidence(Region& region, uint64_t cap_bytes)
      : capacity_(capacity_for(cap_bytes)),
        mass_(region.take<double>("evidence", capacity_)),
        span_(region.take<Span>("evidence", capacity_)) {}

  void clear() {
    std::fill_n(mass_, capacity_, 0.0);
    size_ = lost_ = 0;
    other_ = 0;
  }
  void add(int64_t first_ms, int64_t last_ms, double mass) {
    if (!(mass > 0)) return;
    const auto n = static_cast<uint32_t>(capacity_);
    auto at = (static_cast<uint32_t>(first_ms) * 2654435761u ^ static_cast<uint32_t>(last_ms) * 40503u) % n;
    for (int probe = 0; probe < capacity_; ++probe, at = (at + 1) % n) {
      const bool taken = mass_[at] > 0;
      if (taken && (span_[at].first != first_ms || span_[at].last != last_ms)) continue;
      if (!taken) {
        if (size_ >= capacity_ / 4 * 3) break;
        ++size_;
        span_[at] = {first_ms, last_ms};
      }
      mass_[at] += mass;
      return;
    }
    other_ += mass;
    ++lost_;
  }
  // What is known to be there, but not where.
  void add_other(double mass) { other_ += mass; }
  // The table as it stands, [capacity()]: entries with mass 0 are free.
  Moment moment(int i) const { return {span_[i].first, span_[i].last, mass_[i]}; }
  int capacity() const { return capacity_; }
  double other() const { return other_; }
  int lost() const { return lost_; }  // moments that found no room

 private:
  struct Span {
    TimeMs first, last;
  };
  static int capacity_for(uint64_t cap_bytes) {  // a power of two
    int n = 512;
    while (n < 16384 && static_cast<uint64_t>(n) * 2 * 16 <= cap_bytes / 128) n *= 2;
    return n;
  }
  int capacity_;
  double* mass_;
  Span* span_;
  int size_ = 0;
  int lost_ = 0;
  double other_ = 0;
};

}  // namespace mosaic
