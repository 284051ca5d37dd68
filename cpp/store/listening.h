// Listening: how much attention the tokens of the newest frames receive from the frames after them. What a trained decoder
// will want of a token shows in what the next frames make of it, so a frame is heard until `frames` more have come; then
// its sums are final and it is forgotten here.
// A frame that is being encoded pays into sums of its own, which file() adds when the frame is committed: a refused one
// leaves no mark. Not thread-safe.
#pragma once

#include <algorithm>

#include "core/dtype.h"
#include "core/ids.h"
#include "memory/region.h"
#include "store/token_log.h"

namespace mosaic {

struct ListeningShape {
  int lanes = 0;
  int frames = 0;         // that a frame is heard after its own
  int frame_tokens = 0;   // most of a frame
  bool attention = true;  // false: where their tokens are is kept, what they receive is not
};

class Listening {
 public:
  struct Frame {
    int32_t tokens = 0;
    bool in_log = false;  // false: its tokens are in the window still
  };

  Listening(Region& region, const ListeningShape& shape)
      : shape_(shape), ring_(region.take<Frame>("attention received", static_cast<size_t>(capacity()))) {
    const size_t tokens =
        static_cast<size_t>(shape.lanes) * static_cast<size_t>(capacity()) * static_cast<size_t>(shape.frame_tokens);
    attention_received_ = region.take<half_t>("attention received", shape.attention ? tokens : 0);
    now_ = region.take<half_t>("attention received", shape.attention ? tokens : 0);
    slot_ = region.take<TokenSlot>("attention received", tokens);
  }

  const ListeningShape& shape() const { return shape_; }
  int frames() const { return size_; }  // oldest first; the frame being encoded is not among them until file()
  const Frame& frame(int f) const { return ring_[slot(f)]; }
  // What token i of a frame received so far; 0 where that is not kept.
  float received(int lane, int f, int i) const {
    return shape_.attention ? half_to_float(attention_received(lane, f)[i]) : 0;
  }
  // What the frame being encoded pays it, [tokens]; f == frames(): itself. Where attention is kept alone.
  half_t* now(int lane, int f) { return now_ + at(lane, f); }
  // Where the token is in the lane's log; kNone: it is in the window, or was given up.
  TokenSlot* slots(int lane, int f) { return slot_ + at(lane, f); }
  const TokenSlot* slots(int lane, int f) const { return slot_ + at(lane, f); }

  // The frame that was encoded becomes the newest. Needs !full().
  void file(int tokens) {
    ring_[slot(size_)] = {tokens};
    ++size_;
    for (int lane = 0; lane < shape_.lanes; ++lane) {
      std::fill_n(slots(lane, size_ - 1), tokens, TokenSlot{kNone});
      if (!shape_.attention) continue;
      std::fill_n(attention_received(lane, size_ - 1), tokens, half_t{0});
      for (int f = 0; f < size_; ++f)
        for (int i = 0; i < frame(f).tokens; ++i)
          attention_received(lane, f)[i] =
              finite_half(half_to_float(attention_received(lane, f)[i]) + half_to_float(now(lane, f)[i]));
    }
  }
  bool full() const { return size_ == capacity() - 1; }  // one more and the oldest must be forgotten
  void entered_log(int f) { ring_[slot(f)].in_log = true; }
  // What the frames have received; what they are being paid is written anew for each frame. log: their tokens lie in it.
  void serialize(Snapshot& s, const TokenLog& log) {
    s.in_range(head_, 0, capacity() - 1, "the oldest frame that is heard");
    s.in_range(size_, 0, shape_.frames, "frames that are heard");
    for (int f = 0; f < size_; ++f) {
      Frame& frame = ring_[slot(f)];
      s.in_range(frame.tokens, 1, shape_.frame_tokens, "tokens of a frame that is heard");
      s.flag(frame.in_log, "whether a frame is in the log");
      for (int lane = 0; lane < shape_.lanes; ++lane) {
        const auto tokens = static_cast<size_t>(frame.tokens);
        if (shape_.attention) s.finite(attention_received(lane, f), tokens, "attention received is a number");
        s.all_in_range(slots(lane, f), tokens, kNone, log.capacity() - 1, "a token that is heard has a slot");
      }
    }
  }
  void forget_oldest() {
    head_ = (head_ + 1) % capacity();
    --size_;
  }

 private:
  half_t* attention_received(int lane, int f) const { return attention_received_ + at(lane, f); }
  int capacity() const { return shape_.frames + 2; }  // heard, about to be forgotten, being encoded
  int slot(int f) const { return (head_ + f) % capacity(); }
  size_t at(int lane, int f) const {
    return (static_cast<size_t>(lane) * static_cast<size_t>(capacity()) + static_cast<size_t>(slot(f))) *
           static_cast<size_t>(shape_.frame_tokens);
  }

  ListeningShape shape_;
  Frame* ring_;
  half_t* attention_received_;
  half_t* now_;
  TokenSlot* slot_;
  int head_ = 0;
  int size_ = 0;
};

}  // namespace mosaic
