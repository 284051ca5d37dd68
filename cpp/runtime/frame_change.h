// FrameChange: how much the keys of a frame differ from those that came after them at the same place of the picture, as far
// as these are in the window. What stands still will come again, and is missed least: the temporal redundancy of
// InfiniPot-V (arXiv 2506.15745), the rule by which CacheFlow drops tokens (arXiv 2511.13644), as a number a token.
// Not thread-safe.
#pragma once

#include "backend/ops.h"
#include "memory/region.h"
#include "store/run.h"
#include "store/window.h"

namespace mosaic {

class FrameChange {
 public:
  FrameChange(Region& region, int frame_tokens, int row);

  // run: tokens of the window's oldest frame, of a lane. change [run.n]: 1 less the mean cosine of a key with those at its
  // place in the frames behind it; 1 where there are none, as for text. Has run when it returns.
  void measure(Ops& ops, const Window& window, int lane, const Run& run, float* change);

 private:
  int row_;
  int frame_tokens_;
  float *k_, *v_;    // [frame_tokens, row] of a frame behind it
  TokenMeta* meta_;  // [frame_tokens]
  int32_t* same_;    // [frame_tokens]
  float* sum_;       // [frame_tokens, row] of keys at the place of a token of the run
  int32_t* count_;   // [frame_tokens]
};

}  // namespace mosaic
