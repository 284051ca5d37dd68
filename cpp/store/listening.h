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
  int frames = 0;        // that a frame is heard after its own
  int frame_tokens = 0;  // most of a frame
  int slots = 0;         // of a lane's log
};

class Listening {
 public:
  struct Frame {
    int32_t tokens = 0;
    bool in_log = false;  // false: its tokens are in the window still
    int32_t row = kNone;  // of the log's table of frames
  };

  Listening(Region& region, const ListeningShape& shape)
      : shape_(shape),
        ring_(region.take<Frame>("attention received", static_cast<size_t>(capacity()))),
        slot_(region, "attention received", Size(shape.lanes) * capacity() * shape.frame_tokens, no_slot()) {
    const size_t tokens =
        static_cast<size_t>(shape.lanes) * static_cast<size_t>(capacity()) * static_cast<size_t>(shape.frame_tokens);
    attention_received_ = region.take<half_t>("attention received", tokens);
    now_ = region.take<half_t>("attention received", tokens);
  }

  const ListeningShape& shape() const { return shape_; }
  int frames() const { return size_; }  // oldest first; the frame being encoded is not among them until file()
  const Frame& frame(int f) const { return ring_[ring_at(f)]; }
  // Of a frame's tokens, [tokens]; frames() is the frame being encoded.
  half_t* attention_received(int lane, int f) { return attention_received_ + at(lane, f); }
  const half_t* attention_received(int lane, int f) const { return attention_received_ + at(lane, f); }
  half_t* now(int lane, int f) { return now_ + at(lane, f); }
  // Where a token is in the lane's log; kNone: it is in the window, or was given up.
  TokenSlot slot(int lane, int f, int i) const {
    const uint32_t slot = slot_[at(lane, f) + static_cast<size_t>(i)];
    return slot == no_slot() ? kNone : static_cast<TokenSlot>(slot);
  }
  void set_slot(int lane, int f, int i, TokenSlot slot) {
    slot_.set(at(lane, f) + static_cast<size_t>(i), slot == kNone ? no_slot() : static_cast<uint32_t>(slot));
  }

  // The frame that was encoded becomes the newest. Needs !full().
  void file(int tokens) {
    ring_[ring_at(size_)] = {tokens};
    ++size_;
    for (int lane = 0; lane < shape_.lanes; ++lane) {
      std::fill_n(attention_received(lane, size_ - 1), tokens, half_t{0});
      for (int i = 0; i < tokens; ++i) set_slot(lane, size_ - 1, i, kNone);
      for (int f = 0; f < size_; ++f)
        for (int i = 0; i < frame(f).tokens; ++i)
          attention_received(lane, f)[i] =
              finite_half(half_to_float(attention_received(lane, f)[i]) + half_to_float(now(lane, f)[i]));
    }
  }
  bool full() const { return size_ == capacity() - 1; }  // one more and the oldest must be forgotten
  // row: kNone where it is kept for good elsewhere.
  void entered_log(int f, int32_t row) { ring_[ring_at(f)].in_log = true, ring_[ring_at(f)].row = row; }
  // What the frames have received; what they are being paid is written anew for each frame. log: their tokens lie in it.
  void serialize(Snapshot& s, const TokenLog& log) {
    s.in_range(head_, 0, capacity() - 1, "the oldest frame that is heard");
    s.in_range(size_, 0, shape_.frames, "frames that are heard");
    for (int f = 0; f < size_; ++f) {
      Frame& frame = ring_[ring_at(f)];
      s.in_range(frame.tokens, 1, shape_.frame_tokens, "tokens of a frame that is heard");
      s.flag(frame.in_log, "whether a frame is in the log");
      s.in_range(frame.row, kNone, log.frames().rows() - 1, "a frame that is heard has a row");
      for (int lane = 0; lane < shape_.lanes; ++lane) {
        const auto tokens = static_cast<size_t>(frame.tokens);
        s.finite(attention_received(lane, f), tokens, "attention received is a number");
        slot_.serialize(s, at(lane, f), tokens);
        for (int i = 0; i < frame.tokens; ++i)
          s.require(slot(lane, f, i) < log.capacity(), "a token that is heard has a slot");
      }
    }
  }
  void forget_oldest() {
    head_ = (head_ + 1) % capacity();
    --size_;
  }

 private:
  int capacity() const { return shape_.frames + 2; }  // heard, about to be forgotten, being encoded
  int ring_at(int f) const { return (head_ + f) % capacity(); }
  uint32_t no_slot() const { return static_cast<uint32_t>(shape_.slots); }
  size_t at(int lane, int f) const {
    return (static_cast<size_t>(lane) * static_cast<size_t>(capacity()) + static_cast<size_t>(ring_at(f))) *
           static_cast<size_t>(shape_.frame_tokens);
  }

  ListeningShape shape_;
  Frame* ring_;
  half_t* attention_received_;
  half_t* now_;
  SmallNumbers slot_;
  int head_ = 0;
  int size_ = 0;
};

}  // namespace mosaic
