// A quantile of a stream in five numbers (P-square: Jain and Chlamtac, 1985): the markers' heights follow the smallest, the
// quantile, the largest and two between, by parabolas. Exact up to five values; the same input gives the same bytes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory/snapshot.h"

namespace mosaic {

class RunningQuantile {
 public:
  RunningQuantile() = default;
  explicit RunningQuantile(double level) : level_(level) {}  // 0..1
  int64_t count() const { return count_; }

  void add(double x) {
    if (count_ < 5) {
      int64_t at = count_++;
      for (; at > 0 && height_[at - 1] > x; --at) height_[at] = height_[at - 1];
      height_[at] = x;
      return;
    }
    ++count_;
    height_[0] = std::min(height_[0], x);
    height_[4] = std::max(height_[4], x);
    for (int i = 1; i < 4; ++i) position_[i] += x < height_[i] ? 1 : 0;
    position_[4] += 1;
    const auto last = static_cast<double>(count_ - 1);
    const double wanted[5] = {0, last * level_ / 2, last * level_, last * (1 + level_) / 2, last};
    for (int i = 1; i < 4; ++i) {
      const double off = wanted[i] - position_[i];
      const bool up = off >= 1 && position_[i + 1] - position_[i] > 1;
      const bool down = off <= -1 && position_[i] - position_[i - 1] > 1;
      if (up || down) move(i, up ? 1 : -1);
    }
  }

  void serialize(Snapshot& s) {
    s.finite(height_, 5, "the markers of a quantile are numbers");
    s.finite(position_, 5, "the markers of a quantile are numbers");
    s.in_range(count_, 0, int64_t{1} << 60, "values of a quantile");
  }

  // The quantile of what was added; 0 before anything was.
  double value() const {
    if (count_ == 0) return 0;
    if (count_ > 5) return height_[2];
    return height_[std::min(count_ - 1, static_cast<int64_t>(level_ * static_cast<double>(count_)))];
  }

 private:
  void move(int i, int by) {
    const double here = height_[i], left = height_[i - 1], right = height_[i + 1];
    const double to_left = position_[i] - position_[i - 1], to_right = position_[i + 1] - position_[i];
    double next = here + by / (to_left + to_right) *
                             ((to_left + by) * (right - here) / to_right + (to_right - by) * (here - left) / to_left);
    if (!(left < next && next < right))  // the parabola overshoots: a straight line
      next = by > 0 ? here + (right - here) / to_right : here - (here - left) / to_left;
    height_[i] = next;
    position_[i] += by;
  }

  double level_ = 0.5;
  int64_t count_ = 0;
  double height_[5] = {};
  double position_[5] = {0, 1, 2, 3, 4};  // values before each marker
};

}  // namespace mosaic
