// TokenLog: what a policy by records keeps. Each lane (one KV head of a layer) keeps tokens of its own, and a token is a
// record of its own: packed key and value, position, time, score. Records fill dense pages; giving a token up frees its
// slot and touches nothing else. Nothing is averaged, so what is kept can be found again as it was.
//
// Where records lie. Tokens of the newest frames are still heard (see Listening): their attention is summed, so they are
// kept together in as few pages as can be. A new token goes to the open page; where that is full, to an empty one; where
// there is none, the settled page with the fewest tokens is emptied into the holes of the others, record by record, bit for
// bit: about one move for each token that comes into a full log. So all slots can be taken.
//
// Packed keys are kept less the lane's mean key, and a mean of a few frames is a poor one: what is left of a key is then
// large, and so is the error of its code. So the log begins by learning: its tokens
// lie in exact pages, each over as many packed ones as it needs, while there is room for that; then the mean is fixed and
// every page is packed where it lies.
// Mechanism, no choices: who is given up is the policy's to say. Fixed capacity; not thread-safe.
#pragma once

#include <bit>
#include <span>

#include "backend/ops.h"
#include "core/ids.h"
#include "memory/region.h"
#include "store/restored_page.h"
#include "store/run.h"

namespace mosaic {

using TokenSlot = int32_t;  // page of the lane * kPageTokens + token of the page

struct LogShape {
  int lanes = 0;
  int pages = 0;  // of each lane
  PageShape page;
  CodecId codec = CodecId::kFp16;  // a record codec
  CodecId exact = CodecId::kFp16;  // while the log learns
  bool places = false;             // tokens have rows and columns (M-RoPE)
  bool numbered = false;           // tokens know their number in an archive, where their position does not tell
};

class TokenLog {
 public:
  TokenLog(Region& region, const LogShape& shape, Ops& ops);

  const LogShape& shape() const { return shape_; }
  int capacity() const { return shape_.pages * kPageTokens; }  // tokens of a lane
  int size(int lane) const { return size_[lane]; }
  int free(int lane) const { return shape_.pages / step() * kPageTokens - size_[lane]; }
  CodecId codec() const { return learning_ ? shape_.exact : shape_.codec; }  // of every page

  // Tokens of a page, a bit each; and those of them that are still heard.
  uint16_t rows(int lane, int page) const { return rows_[at_page(lane, page)]; }
  uint16_t heard(int lane, int page) const { return heard_[at_page(lane, page)]; }
  bool holds(int lane, TokenSlot slot) const {
    return (rows(lane, slot / kPageTokens) >> (slot % kPageTokens) & 1) != 0;
  }
  std::byte* data(int lane, int page) const { return data_ + at_page(lane, page) * page_bytes_; }
  const int32_t* positions(int lane) const { return position_ + at_token(lane, 0); }  // [capacity]
  const int32_t* time_lows(int lane) const { return time_low_ + at_token(lane, 0); }  // [capacity]
  const uint16_t* places(int lane) const {                                            // [capacity, 2], or null
    return place_ != nullptr ? place_ + 2 * at_token(lane, 0) : nullptr;
  }
  uint32_t number(int lane, TokenSlot slot) const { return number_[at_token(lane, slot)]; }  // where numbered
  // What the policy said a settled token is worth, and how like it is to one that is worth more (0 to 1).
  const half_t* scores(int lane) const { return score_ + at_token(lane, 0); }        // [capacity]
  const uint8_t* likeness(int lane) const { return likeness_ + at_token(lane, 0); }  // [capacity], of 255
  uint8_t* likeness(int lane) { return likeness_ + at_token(lane, 0); }

  // The mean is fixed when learning ends: nothing that is packed may depend on what comes later. Then every page of every
  // lane is unpacked into k, v [16, row], read by whoever wants to, and packed.
  bool is_learning() const { return learning_; }
  void unpack(int lane, int page, float* k, float* v);
  void pack(int lane, int page, const float* k, const float* v);
  void end_learning() { learning_ = false; }
  int step() const { return learning_ ? exact_step_ : 1; }  // from page to page
  bool knows_mean(int lane) const { return mean_tokens_[lane] > 0; }
  void learn_mean(int lane, const float* k, const float* v, int tokens);
  const float* key_mean(int lane) const { return mean_k_ + static_cast<size_t>(lane) * row(); }
  const float* value_mean(int lane) const { return mean_v_ + static_cast<size_t>(lane) * row(); }

  // Takes all tokens of a run (at most free() of them), heard for now; slots[i] is where token i went. What was queued
  // before must have run (Ops::wait): the lists that kernels read are written anew.
  void add(int lane, const Run& run, TokenSlot* slots);
  // The same without the records themselves, which the caller writes when those that `moves` asks for have moved: what
  // makes room is added there. Returns how many moves there are.
  int place(int lane, const Run& run, TokenSlot* slots, std::span<RowMove> moves);
  static constexpr int most_moves(int tokens) { return tokens + 2 * kPageTokens; }
  // What was measured of a token when it came, the norm of its value say, which it keeps while it is heard: it lies where its
  // score will.
  void note_merit(int lane, TokenSlot slot, float merit) { score_[at_token(lane, slot)] = finite_half(merit); }
  float merit(int lane, TokenSlot slot) const { return half_to_float(score_[at_token(lane, slot)]); }
  // The token is heard no more, and this is what it is worth.
  void settle(int lane, TokenSlot slot, float score);
  void erase(int lane, TokenSlot slot);

  void serialize(Snapshot& s, RestoredPage* room);
  void check_invariants() const;

 private:
  void serialize_page(Snapshot& s, int lane, int page, RestoredPage* room);
  size_t row() const { return static_cast<size_t>(shape_.page.row()); }
  size_t at_page(int lane, int page) const {
    return static_cast<size_t>(lane) * static_cast<size_t>(shape_.pages) + static_cast<size_t>(page);
  }
  size_t at_token(int lane, TokenSlot slot) const {
    return static_cast<size_t>(lane) * static_cast<size_t>(capacity()) + static_cast<size_t>(slot);
  }
  int tokens_of(int lane, int page) const { return std::popcount(rows(lane, page)); }
  TokenSlot next_slot(int lane);
  int page_for_new(int lane);
  int empty_settled_page(int lane);
  void move(int lane, TokenSlot from, TokenSlot to);
  void place_token(int lane, const Run& run, int i, TokenSlot* slots);

  LogShape shape_;
  Ops& ops_;
  size_t page_bytes_;
  int exact_step_;  // packed pages that an exact one lies over
  bool learning_ = true;
  std::byte* data_;     // [lanes, pages, page_bytes_]
  uint16_t* rows_;      // [lanes, pages]
  uint16_t* heard_;     // [lanes, pages]
  int32_t* position_;   // [lanes, capacity]
  int32_t* time_low_;   // [lanes, capacity]
  uint16_t* place_;     // [lanes, capacity, 2], or null
  uint32_t* number_;    // [lanes, capacity], or null
  half_t* score_;       // [lanes, capacity]
  uint8_t* likeness_;   // [lanes, capacity]
  int32_t* size_;       // [lanes]
  int32_t* open_page_;  // [lanes] where the next token goes, if it has room
  float* mean_k_;       // [lanes, row]
  float* mean_v_;       // [lanes, row]
  int32_t* mean_tokens_;
  std::span<RowMove> moves_;  // where move() leaves what is to be moved, while place() is at work
  int move_count_ = 0;
  std::byte** row_pages_;  // [kAtOnce] of one encode_rows
  int32_t* row_at_;
  static constexpr int kAtOnce = 256;
};

}  // namespace mosaic
