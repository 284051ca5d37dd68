// Evidence: how much attention the answer paid to each moment. Mass is summed per time stamp in a small fixed table:
// in a full one the heaviest stay, and what finds no room is counted as other(), never lost silently. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/clock.h"
#include "memory/region.h"
#include "memory/snapshot.h"

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
    lost_ = 0;
    other_ = 0;
  }
  // Where a moment finds no room, the one near it that weighs least makes way, or it does itself.
  void add(int64_t first_ms, int64_t last_ms, double mass) {
    if (!(mass > 0)) return;
    const auto n = static_cast<uint32_t>(capacity_);
    const uint32_t home = home_of(first_ms, last_ms) % n;
    uint32_t least = home;
    for (uint32_t probe = 0; probe < kProbes; ++probe) {
      const uint32_t at = (home + probe) % n;
      const bool taken = mass_[at] > 0;
      if (!taken || (span_[at].first == first_ms && span_[at].last == last_ms)) {
        span_[at] = {first_ms, last_ms};
        mass_[at] += mass;
        return;
      }
      if (mass_[at] < mass_[least]) least = at;
    }
    ++lost_;
    other_ += std::min(mass, mass_[least]);
    if (mass <= mass_[least]) return;
    span_[least] = {first_ms, last_ms};
    mass_[least] = mass;
  }
  // What is known to be there, but not where.
  void add_other(double mass) { other_ += mass; }
  void serialize(Snapshot& s) {
    s.in_range(lost_, 0, std::numeric_limits<int>::max(), "moments that found no room");
    s.finite(&other_, 1, "attention to no moment is a number");
    s.finite(mass_, static_cast<size_t>(capacity_), "attention to a moment is a number");
    for (int i = 0; i < capacity_; ++i) {
      if (mass_[i] == 0) continue;
      s.item(span_[i].first);
      s.item(span_[i].last);
    }
  }
  // The table as it stands, [capacity()]: entries with mass 0 are free.
  Moment moment(int i) const { return {span_[i].first, span_[i].last, mass_[i]}; }
  int capacity() const { return capacity_; }
  double other() const { return other_; }
  int lost() const { return lost_; }  // times that a moment found no room

 private:
  struct Span {
    TimeMs first, last;
  };
  // Times are multiples of a frame's: the high bits of a product are all of them, the low ones are not.
  static uint32_t home_of(int64_t first_ms, int64_t last_ms) {
    const uint64_t mixed = static_cast<uint64_t>(first_ms) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(last_ms);
    return static_cast<uint32_t>(mixed * 0xd1b54a32d192ed03u >> 32);
  }
  static int capacity_for(uint64_t cap_bytes) {  // a power of two
    int n = 512;
    while (n < 16384 && static_cast<uint64_t>(n) * 2 * 16 <= cap_bytes / 128) n *= 2;
    return n;
  }
  static constexpr uint32_t kProbes = 16;
  int capacity_;
  double* mass_;
  Span* span_;
  int lost_ = 0;
  double other_ = 0;
};

}  // namespace mosaic
