#include "runtime/dialogue.h"

#include <algorithm>

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

void Dialogue::make_room(int tokens, float* k, float* v) {
  if (window_.branch_tokens + tokens <= capacity()) return;
  int gone = 0, turns = 0;
  while (turns < turn_count_ && window_.branch_tokens - gone + tokens > capacity()) gone += turns_[turns++];
  std::copy(turns_ + turns, turns_ + turn_count_, turns_);
  turn_count_ -= turns;
  dropped_ += gone;
  shift(gone, k, v);
}

// What is left moves to the front, token by token: pages begin elsewhere now.
void Dialogue::shift(int gone, float* k, float* v) {
  const WindowShape& s = window_.shape();
  const auto row = static_cast<size_t>(s.page.row());
  const int left = window_.branch_tokens - gone;
  for (int lane = 0; lane < s.lanes; ++lane) {
    for (int i = 0; i < left; ++i) {
      const PageView from = window_.page(Strip::kBranch, lane, (gone + i) / kPageTokens);
      const PageView to = window_.page(Strip::kBranch, lane, i / kPageTokens);
      const int at = (gone + i) % kPageTokens;
      ops_.decode(s.codec, s.page, from.data, at, at + 1, k, v, row);
      ops_.encode_row(s.codec, s.page, k, v, i % kPageTokens, to.data);
      to.meta[i % kPageTokens] = from.meta[at];
    }
  }
  window_.branch_tokens = left;
  start_ -= gone;
}

}  // namespace mosaic
