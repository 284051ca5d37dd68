// UncountedMoves: what a spill file moves while it lives, for a snapshot, is no work of its session's. The file's counters are
// put back at its end, also where the snapshot fails on its way.
#pragma once

#include "memory/spill_file.h"

namespace mosaic {

class UncountedMoves {
 public:
  explicit UncountedMoves(SpillFile* file) : file_(file) {
    if (file_ != nullptr) counted_ = file_->counters();
  }
  ~UncountedMoves() { end(); }
  UncountedMoves(const UncountedMoves&) = delete;
  UncountedMoves& operator=(const UncountedMoves&) = delete;
  void end() {
    if (file_ != nullptr) file_->set_counters(counted_);
    file_ = nullptr;
  }

 private:
  SpillFile* file_;  // nullptr: no disk, or over
  SpillCounters counted_{};
};

}  // namespace mosaic
