// Window: what never yields and is never quantised - the prefix (system prompt, sinks), the first frame, the most recent
// frames, the frame being encoded, and the text of the question being answered (with the dialogue before it). All lie in
// one slab of exact pages with fixed places, so nothing here is searched, allocated or moved. Not thread-safe.
#pragma once

#include "backend/ops.h"
#include "core/ids.h"
#include "memory/region.h"

namespace mosaic {

struct WindowShape {
  int lanes = 0;
  PageShape page;
  CodecId codec = CodecId::kFp16;   // the session's exact codec
  int frames = 0;                   // frames kept; one more and a block must leave
  bool attention_received = false;  // book the attention that tokens receive
  int frame_tokens = 0;             // largest frame
  int prefix_tokens = 0;            // room for the prefix
  int branch_tokens = 0;            // room for dialogue + question + answer
  int embedding_dim = 0;
};

struct WindowFrame {
  int32_t number = 0;  // 0-based frame number of the stream
  int32_t tokens = 0;
  int32_t time_ms = 0;
  int32_t first_position = 0;
};

// A run of tokens of one lane with its own chain of pages.
enum class Strip : uint8_t { kPrefix, kFirstFrame, kFrame, kBranch };

class Window {
 public:
  Window(Region& region, const WindowShape& shape);

  const WindowShape& shape() const { return shape_; }
  int pages_per_frame() const { return frame_pages_; }
  // Bytes from the data of a page of a strip to that of the next one.
  size_t page_pitch() const { return slot_bytes_; }
  // Page `page` of a strip. `frame` counts from the oldest kept frame and matters for kFrame only;
  // frames() is the frame being encoded.
  PageView page(Strip strip, int lane, int page, int frame = 0) const;

  int frames() const { return size_; }                    // committed frames in the ring
  bool is_full() const { return size_ > shape_.frames; }  // one more than it keeps: the oldest must leave
  const WindowFrame& frame(int i) const { return ring_[slot(i)]; }
  // Attention the tokens of a frame received so far, [frame_tokens]. `frame` as for page().
  float* attention_received(int lane, int frame) const {
    return attention_received_ +
           (static_cast<size_t>(lane) * static_cast<size_t>(ring_size()) + static_cast<size_t>(slot(frame))) *
               static_cast<size_t>(shape_.frame_tokens);
  }
  // What the frame being encoded pays to the frames before it, until it is filed: a refused one leaves no mark.
  float* attention_now(int lane, int frame) const {
    return attention_received(lane, frame) + (attention_now_ - attention_received_);
  }
  void clear_attention_now();
  void file_attention_now();
  float* embedding(int i) const { return embeddings_ + static_cast<size_t>(slot(i)) * shape_.embedding_dim; }
  // The frame being encoded becomes the newest of the ring. Needs !is_full().
  void push(const WindowFrame& frame) {
    ring_[slot(size_)] = frame;
    ++size_;
  }
  void pop() {
    head_ = (head_ + 1) % ring_size();
    --size_;
  }

  // The first frame of the stream, kept for ever once it has left the ring.
  void keep_first_frame(Ops& ops);
  bool has_first_frame() const { return first_.tokens > 0; }
  const WindowFrame& first_frame() const { return first_; }

  int prefix_tokens = 0;  // tokens filed in each strip
  int branch_tokens = 0;

 private:
  int ring_size() const { return shape_.frames + 1; }  // kept + being encoded
  int slot(int i) const { return (head_ + i) % ring_size(); }

  WindowShape shape_;
  size_t slot_bytes_;
  TokenMeta* meta_ = nullptr;  // [pages, kPageTokens], where the data lies apart
  int prefix_pages_, frame_pages_, branch_pages_;
  size_t lane_pages_;
  std::byte* slab_;
  float* embeddings_;
  float* attention_received_ = nullptr;
  float* attention_now_ = nullptr;  // as attention_received_
  WindowFrame* ring_;
  WindowFrame first_;
  int head_ = 0;
  int size_ = 0;
};

}  // namespace mosaic
