// Window: what never yields - the prefix (system prompt, sinks), the first frame, the most recent
// frames, the frame being encoded, and the text of the question being answered (with the dialogue before it). All lie in
// one slab of pages with fixed places, so nothing here is searched, allocated or moved. The tokens of a lane lie one
// behind the other, strip after strip, with no page begun for a frame alone: frames are no multiple of a page. Not
// thread-safe.
#pragma once

#include "backend/ops.h"
#include "core/ids.h"
#include "memory/region.h"
#include "store/restored_page.h"

namespace mosaic {

struct WindowShape {
  int lanes = 0;
  PageShape page;
  CodecId codec = CodecId::kFp16;   // of records that need no mean: an exact one, or k8v8
  int frames = 0;                   // frames kept; one more and a block must leave
  bool keeps_first = true;          // the first frame of the stream, for ever
  bool attention_received = false;  // book the attention that tokens receive
  int frame_tokens = 0;             // largest frame
  int prefix_tokens = 0;            // room for the prefix
  int branch_tokens = 0;            // room for dialogue + question + answer
  int embedding_dim = 0;
};

struct WindowFrame {
  int32_t number = 0;  // 0-based frame number of the stream
  int32_t tokens = 0;
  int32_t time_low = 0;
  int32_t first_position = 0;
};

// A run of tokens of one lane.
enum class Strip : uint8_t { kPrefix, kFirstFrame, kFrame, kBranch };

class Window {
 public:
  // Tokens of a strip that lie in one page: its rows [begin, end).
  struct Piece {
    PageView page;
    int begin, end;
    int tokens() const { return end - begin; }
  };

  Window(Region& region, const WindowShape& shape);

  const WindowShape& shape() const { return shape_; }
  // The page of token i of a strip, with it and those behind it up to token `tokens`. `frame` counts from the oldest kept
  // frame and matters for kFrame only; frames() is the frame being encoded.
  Piece piece(Strip strip, int lane, int i, int tokens, int frame = 0) const;
  // Pages that a strip of so many tokens touches at most.
  static constexpr int most_pieces(int tokens) {
    return tokens == 0 ? 0 : (tokens - 2 + 2 * kPageTokens) / kPageTokens;
  }
  // A token's meta is the same in every lane.
  TokenMeta& meta(Strip strip, int i, int frame = 0) const { return meta_[first_token(strip, frame) + i]; }
  // Of the tokens of a page that piece() gave.
  const TokenMeta* page_meta(const std::byte* data) const {
    return meta_ + static_cast<size_t>(data - slab_) / page_bytes_ % lane_pages_ * kPageTokens;
  }
  // Tokens of a strip from and to rows [tokens, page.row()].
  // Asks for the tokens of `lanes` lanes to be written, their numbers one behind the other in each row of k and v.
  void write(StageArgs* stage, Strip strip, int lane, int lanes, int first, int tokens, const float* k, const float* v,
             size_t stride, int frame = 0) const;
  // Where the tokens of the oldest frame are in all lanes; their metas are the same.
  void leave(EnterArgs* enter, TokenMeta* meta) const;
  void read(Ops& ops, Strip strip, int lane, int tokens, float* k, float* v, TokenMeta* meta, int frame = 0) const;

  int frames() const { return size_; }                    // committed frames in the ring
  bool is_full() const { return size_ > shape_.frames; }  // one more than it keeps: the oldest must leave
  const WindowFrame& frame(int i) const { return ring_[slot(i)]; }
  // Attention the tokens of a frame received so far, [frame_tokens]. `frame` as for piece().
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
    ++pushed_;
  }
  void pop() {
    head_ = (head_ + 1) % ring_size();
    --size_;
  }

  // Where the window keeps it: the first frame of the stream, which is the oldest of the ring now, has a place of its own.
  void keep_first_frame() { first_ = frame(0); }
  bool has_first_frame() const { return first_.tokens > 0; }
  bool wants_first_frame() const { return shape_.keeps_first && !has_first_frame(); }
  const WindowFrame& first_frame() const { return first_; }

  int prefix_tokens = 0;  // tokens filed in each strip
  int branch_tokens = 0;

  void serialize(Snapshot& s, RestoredPage* room);

 private:
  void serialize_frames(Snapshot& s);
  bool is_finite(size_t page, const std::byte* data, RestoredPage* room) const;
  void check_meta(const Snapshot& s, const TokenBounds& bounds) const;
  int ring_size() const { return shape_.frames + 1; }  // kept + being encoded
  int slot(int i) const { return (head_ + i) % ring_size(); }
  size_t first_token(Strip strip, int frame) const;  // of a lane
  int first_slots() const { return shape_.keeps_first ? 1 : 0; }
  std::byte* page(int lane, size_t token) const {
    return slab_ + (static_cast<size_t>(lane) * lane_pages_ + token / kPageTokens) * page_bytes_;
  }

  WindowShape shape_;
  size_t page_bytes_;  // of its data
  size_t lane_pages_;
  std::byte* slab_;  // [lanes, lane_pages, page_bytes_]
  TokenMeta* meta_;  // [lane_pages, kPageTokens]
  float* embeddings_;
  float* attention_received_ = nullptr;
  float* attention_now_ = nullptr;  // as attention_received_
  WindowFrame* ring_;
  WindowFrame first_;
  int head_ = 0;
  int size_ = 0;
  int64_t pushed_ = 0;
};

}  // namespace mosaic
