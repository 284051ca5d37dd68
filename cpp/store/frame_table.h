// FrameTable: the frames of which a log keeps tokens, once for all lanes. What a token need not say itself stands here: when
// its frame came, and at which position the frame begins. A frame is in the table while any lane keeps one of its tokens, so
// the table has room again by itself; where it has none, somebody's tokens have to go. Not thread-safe.
#pragma once

#include "core/error.h"
#include "core/ids.h"
#include "memory/region.h"
#include "memory/snapshot.h"
#include "store/restored_page.h"

namespace mosaic {

class FrameTable {
 public:
  struct Frame {
    int32_t position;  // of its first token
    int32_t time_low;
    int32_t kept;  // tokens, over all lanes; 0: the row is free
  };
  FrameTable(Region& region, const char* name, int rows) : rows_(rows), frames_(region.take<Frame>(name, Size(rows))) {}

  int rows() const { return rows_; }
  const Frame& operator[](size_t row) const { return frames_[row]; }
  // The first free row; kNone: there is none.
  int free_row() const {
    for (int row = 0; row < rows_; ++row)
      if (frames_[row].kept == 0) return row;
    return kNone;
  }
  // The frame of which the fewest tokens are kept, the oldest of several, among those that may_go(row) names.
  template <class MayGo>
  int sparsest(const MayGo& may_go) const {
    int best = kNone;
    for (int row = 0; row < rows_; ++row) {
      if (frames_[row].kept == 0 || !may_go(row)) continue;
      const Frame &a = frames_[row], &b = frames_[best == kNone ? row : best];
      if (best == kNone || a.kept < b.kept || (a.kept == b.kept && a.position < b.position)) best = row;
    }
    return best;
  }
  void write(int row, int32_t position, int32_t time_low) { frames_[row] = {position, time_low, 0}; }
  void add_token(size_t row) { ++frames_[row].kept; }
  void remove_token(size_t row) {
    if (--frames_[row].kept < 0) throw InvariantError("FrameTable: a frame gave up more tokens than it had.");
  }

  // Before the log's pages, which refer to it; counts are the log's to compare.
  void serialize(Snapshot& s, const TokenBounds& bounds) {
    s.items(frames_, static_cast<size_t>(rows_));
    for (int row = 0; row < rows_; ++row)
      s.require(frames_[row].kept >= 0 && (frames_[row].kept == 0 || bounds.hold(frames_[row].position)),
                "a frame of the log is in the stream");
  }

 private:
  int rows_;
  Frame* frames_;  // [rows]
};

}  // namespace mosaic
