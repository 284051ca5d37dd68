// Patience: when a disk that fails is left alone. After eight failures in a row (or at once, where one is enough) it rests
// for some frames; the first failure after a rest begins the next one, twice as long; what goes well ends that. Counted in
// frames, so that two runs with one history stay the same. Not thread-safe.
#pragma once

#include <algorithm>

#include "memory/snapshot.h"

namespace mosaic {

class Patience {
 public:
  // True when a rest begins with this failure. One that was under way when it began does not lengthen it.
  bool failed(bool is_enough = false) {
    if (++failures_ < kFailures && !is_enough) return false;
    failures_ = kFailures;
    if (left_ > 0) return false;
    left_ = next_;
    next_ = std::min(2 * next_, kLongest);
    return true;
  }
  void went_well() {
    failures_ = 0;
    next_ = kFirst;
  }
  // A frame passed. True if the disk rested meanwhile.
  bool pass_frame() { return left_ > 0 && left_-- > 0; }
  bool rests() const { return left_ > 0; }
  void serialize(Snapshot& s) {
    s.in_range(failures_, 0, kFailures, "failures of the disk");
    s.in_range(next_, kFirst, kLongest, "the disk's next rest");
    s.in_range(left_, 0, kLongest, "the disk's rest");
  }

 private:
  static constexpr int kFailures = 8;
  static constexpr int kFirst = 4;
  static constexpr int kLongest = 1024;
  int failures_ = 0;
  int next_ = kFirst;
  int left_ = 0;
};

}  // namespace mosaic
