// Dialogue: the text behind the stream - earlier turns that were kept, then the question being answered and its answer. It
// lies in the window's branch, whose room is fixed: whole turns leave it, the oldest first. Not thread-safe.
#pragma once

#include "backend/ops.h"
#include "store/window.h"

namespace mosaic {

class Dialogue {
 public:
  Dialogue(Window& window, Ops& ops) : window_(window), ops_(ops) {}

  void begin_question() { start_ = window_.branch_tokens; }
  // Tokens of the question and its answer so far.
  int question_tokens() const { return window_.branch_tokens - start_; }
  int capacity() const { return window_.shape().branch_tokens; }
  // Of question and answer their first `tokens` are left.
  void rewind_question(int tokens) { window_.branch_tokens = start_ + tokens; }
  // keep: question and answer become the newest turn; else they are gone.
  void close_question(bool keep);
  // The oldest turns leave until `tokens` more fit.
  void make_room(int tokens);
  int64_t dropped() const { return dropped_; }  // tokens of turns that left
  // The kept turns; no question is open.
  void serialize(Snapshot& s);

 private:
  static constexpr int kTurns = 64;
  void shift(int gone);

  Window& window_;
  Ops& ops_;
  int start_ = 0;           // branch tokens before this question
  int turns_[kTurns] = {};  // tokens of each kept turn, oldest first
  int turn_count_ = 0;
  int64_t dropped_ = 0;
};

}  // namespace mosaic
