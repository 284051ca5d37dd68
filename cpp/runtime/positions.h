// Positions: where the tokens of a block stand, as pure functions. A frame is `lead` tokens of text, a picture of rows of
// grid_w tokens, `trail` tokens of text. Under M-RoPE a picture is one step of t; its rows and columns begin where the
// video does (Qwen2.5), or at the picture's own t, and then it takes positions of its own, as many as the longer side
// (Qwen3: RopeSpec::grid_follows_time).
#pragma once

#include "core/ids.h"
#include "core/rope.h"
#include "runtime/memory_config.h"

namespace mosaic {

struct FrameLayout {
  int tokens = 0;
  int grid_w = 1;
  int lead = 0;
  int trail = 0;
  int corner = 0;  // row and column of the picture's first token, where the grid does not follow time
  int picture() const { return tokens - lead - trail; }
};

// A token of a frame: positions behind the frame's first, row and column (kText: none).
struct TokenPlace {
  int step;
  uint16_t h, w;
};
TokenPlace place_in_frame(const RopeSpec& rope, const FrameLayout& frame, int i);
// Positions that a frame takes.
int frame_steps(const RopeSpec& rope, const FrameLayout& frame);
// [tokens, 3] (t, h, w) of a frame whose first token stands at `first`.
void frame_positions(const RopeSpec& rope, const FrameLayout& frame, int first, int32_t* out);
// The same of text, which stands at its position on every axis.
void text_positions(int tokens, int first, int32_t* out);

// What a block stands behind: all positions that it reads, and the last picture of them alone, which under M-RoPE is less
// where rows and columns do not move what follows.
struct Behind {
  int position = 0;
  int picture = 0;
};
// Where a frame begins. original: its first token's own position.
int first_of_frame(const RopeSpec& rope, Positions positions, Behind behind, int32_t original);
// Where text begins, the dialogue and question before it counted. next_original: of the token after the stream's last.
int first_of_text(Positions positions, Behind behind, int32_t next_original, int branch_tokens);

}  // namespace mosaic
