#include "runtime/dialogue.h"

#include <algorithm>
#include <limits>

namespace mosaic {

void Dialogue::close_question(bool keep) {
  const int turn = question_tokens();
  if (!keep) {
    window_.branch_tokens = start_;
  } else if (turn > 0) {
    if (turn_count_ == kTurns) {  // the two oldest turns count as one
      turns_[1] += turns_[0];
      std::copy(turns_ + 1, turns_ + kTurns, turns_);
      --turn_count_;
    }
    turns_[turn_count_++] = turn;
  }
}

void Dialogue::make_room(int tokens) {
  if (window_.branch_tokens + tokens <= capacity()) return;
  int gone = 0, turns = 0;
  while (turns < turn_count_ && window_.branch_tokens - gone + tokens > capacity()) gone += turns_[turns++];
  std::copy(turns_ + turns, turns_ + turn_count_, turns_);
  turn_count_ -= turns;
  dropped_ += gone;
  shift(gone);
}

// What is left moves to the front, token by token: pages begin elsewhere now.
void Dialogue::shift(int gone) {
  const WindowShape& s = window_.shape();
  const int left = window_.branch_tokens - gone;
  for (int lane = 0; lane < s.lanes; ++lane) {
    for (int i = 0; i < left; ++i) {
      const Window::Piece from = window_.piece(Strip::kBranch, lane, gone + i, gone + i + 1);
      const Window::Piece to = window_.piece(Strip::kBranch, lane, i, i + 1);
      ops_.move_row(s.codec, s.page, from.page.data, from.begin, to.page.data, to.begin);
    }
  }
  for (int i = 0; i < left; ++i) window_.meta(Strip::kBranch, i) = window_.meta(Strip::kBranch, gone + i);
  window_.branch_tokens = left;
  start_ -= gone;
}

void Dialogue::serialize(Snapshot& s) {
  s.in_range(turn_count_, 0, kTurns, "turns of the dialogue");
  int left = window_.branch_tokens;
  for (int i = 0; i < turn_count_; ++i) {
    s.in_range(turns_[i], 1, std::max(left, 1), "tokens of a turn");
    left -= turns_[i];
  }
  s.require(left == 0, "the dialogue is its turns");
  s.in_range(dropped_, 0, std::numeric_limits<int64_t>::max(), "tokens of turns that left");
}

}  // namespace mosaic
