#include "runtime/positions.h"

#include <algorithm>

namespace mosaic {

namespace {

// Under M-RoPE.
int picture_steps(const RopeSpec& rope, const FrameLayout& frame) {
  const int n = frame.picture();
  return rope.grid_follows_time ? std::max((n - 1) / frame.grid_w + 1, std::min(n, frame.grid_w)) : 1;
}

}  // namespace

TokenPlace place_in_frame(const RopeSpec& rope, const FrameLayout& frame, int i) {
  const int n = frame.picture(), at = i - frame.lead;
  if (at < 0) return {i, kText, kText};
  if (at >= n) return {rope.is_multi() ? frame.lead + picture_steps(rope, frame) + at - n : i, kText, kText};
  const int corner = rope.grid_follows_time ? 0 : frame.corner;
  return {rope.is_multi() ? frame.lead : i, static_cast<uint16_t>(corner + at / frame.grid_w),
          static_cast<uint16_t>(corner + at % frame.grid_w)};
}

int frame_steps(const RopeSpec& rope, const FrameLayout& frame) {
  return rope.is_multi() ? frame.lead + picture_steps(rope, frame) + frame.trail : frame.tokens;
}

void frame_positions(const RopeSpec& rope, const FrameLayout& frame, int first, int32_t* out) {
  if (!rope.is_multi()) return text_positions(frame.tokens, first, out);
  for (int i = 0; i < frame.tokens; ++i) {
    const TokenPlace place = place_in_frame(rope, frame, i);
    int32_t* const p = out + 3 * i;
    p[0] = first + place.step;
    p[1] = rope.place_at(p[0], place.h);
    p[2] = rope.place_at(p[0], place.w);
  }
}

void text_positions(int tokens, int first, int32_t* out) {
  for (int i = 0; i < tokens; ++i) std::fill_n(out + 3 * i, 3, first + i);
}

int first_of_frame(const RopeSpec& rope, Positions positions, Behind behind, int32_t original) {
  if (positions == Positions::kOriginal) return original;
  return rope.is_multi() && !rope.grid_follows_time ? behind.picture : behind.position;
}

int first_of_text(Positions positions, Behind behind, int32_t next_original, int branch_tokens) {
  const bool original = positions == Positions::kOriginal;
  return branch_tokens + (original ? std::max(behind.position, next_original) : behind.position);
}

}  // namespace mosaic
