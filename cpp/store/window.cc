#include "store/window.h"

#include <algorithm>
#include <limits>

namespace mosaic {

namespace {

// Places of frames: the first one's, where it is kept, and a ring.
Size lane_tokens(const WindowShape& s) {
  return Size(s.prefix_tokens) + Size(s.frame_tokens) * (Size(s.frames) + (s.keeps_first ? 2 : 1)) + s.branch_tokens;
}

Size lane_pages(const WindowShape& s) { return lane_tokens(s).rounded_up(kPageTokens).value() / kPageTokens; }

Size attention_entries(const WindowShape& s) {
  return s.attention_received ? Size(s.lanes) * (Size(s.frames) + 1) * s.frame_tokens : 0;
}

}  // namespace

Window::Window(Region& region, const WindowShape& s)
    : shape_(s), page_bytes_(data_bytes(s.codec, s.page)), lane_pages_(lane_pages(s).bytes()) {
  const Size ring = Size(s.frames) + 1, pages = lane_pages(s);
  slab_ = region.take_for_kernels("window", pages * s.lanes * page_bytes_);
  meta_ = region.take<TokenMeta>("window", pages * kPageTokens);
  embeddings_ = region.take<float>("window", ring * s.embedding_dim);
  ring_ = region.take<WindowFrame>("window", ring);
  attention_received_ = region.take<float>("window", attention_entries(s));
  attention_now_ = region.take<float>("window", attention_entries(s));
}

size_t Window::first_token(Strip strip, int frame) const {
  const auto prefix = static_cast<size_t>(shape_.prefix_tokens), each = static_cast<size_t>(shape_.frame_tokens);
  switch (strip) {
    case Strip::kPrefix:
      return 0;
    case Strip::kFirstFrame:
      return prefix;
    case Strip::kFrame: {  // the stream's first frame is written where it will stay
      const int64_t number = pushed_ - size_ + frame, others = number - first_slots();
      return prefix + (others < 0 ? 0 : static_cast<size_t>(first_slots() + others % ring_size())) * each;
    }
    case Strip::kBranch:
      break;
  }
  return prefix + static_cast<size_t>(ring_size() + first_slots()) * each;
}

Window::Piece Window::piece(Strip strip, int lane, int i, int tokens, int frame) const {
  const size_t at = first_token(strip, frame) + static_cast<size_t>(i);
  const int begin = static_cast<int>(at % kPageTokens);
  return {
      {meta_ + (at - static_cast<size_t>(begin)), page(lane, at)}, begin, std::min(kPageTokens, begin + tokens - i)};
}

void Window::write(StageArgs* stage, Strip strip, int lane, int lanes, int first, int tokens, const float* k,
                   const float* v, size_t stride, int frame) const {
  const size_t at = first_token(strip, frame) + static_cast<size_t>(first);
  stage->codec = shape_.codec, stage->shape = shape_.page;
  stage->k = k, stage->v = v, stage->stride = stride;
  stage->first = static_cast<int>(at % kPageTokens), stage->count = tokens;
  stage->pages = page(lane, at), stage->pitch = page_bytes_;
  stage->lanes = lanes, stage->lane_pitch = lane_pages_ * page_bytes_;
}

void Window::leave(EnterArgs* enter, TokenMeta* meta) const {
  const size_t at = first_token(Strip::kFrame, 0);
  enter->from_codec = shape_.codec, enter->from = page(0, at), enter->pitch = page_bytes_;
  enter->lane_pitch = lane_pages_ * page_bytes_, enter->first = static_cast<int>(at % kPageTokens);
  std::copy_n(meta_ + at, frame(0).tokens, meta);
}

void Window::read(Ops& ops, Strip strip, int lane, int tokens, float* k, float* v, TokenMeta* meta, int frame) const {
  const size_t at = first_token(strip, frame);
  ops.decode_run(shape_.codec, shape_.page, page(lane, at), page_bytes_, static_cast<int>(at % kPageTokens), tokens, k,
                 v, static_cast<size_t>(shape_.page.row()));
  std::copy_n(meta_ + at, tokens, meta);
}

void Window::clear_attention_now() { std::fill_n(attention_now_, attention_entries(shape_).value(), 0.0f); }

void Window::file_attention_now() {
  for (int lane = 0; lane < (shape_.attention_received ? shape_.lanes : 0); ++lane)
    for (int f = 0; f < size_; ++f)
      for (int i = 0; i < frame(f).tokens; ++i) attention_received(lane, f)[i] += attention_now(lane, f)[i];
}

void Window::serialize_frames(Snapshot& s) {
  s.in_range(head_, 0, ring_size() - 1, "the oldest frame of the window");
  s.in_range(size_, 0, shape_.frames, "frames of the window");
  s.in_range(pushed_, size_, std::numeric_limits<int32_t>::max(), "frames that came into the window");
  const auto frame = [&](WindowFrame& f, int least) {
    s.in_range(f.number, 0, std::numeric_limits<int32_t>::max(), "a frame's number");
    s.in_range(f.tokens, least, shape_.frame_tokens, "tokens of a frame");
    s.item(f.time_low);
    s.in_range(f.first_position, 0, std::numeric_limits<int32_t>::max(), "a frame's position");
  };
  frame(first_, 0);
  for (int i = 0; i < size_; ++i) frame(ring_[slot(i)], 1);
}

void Window::serialize(Snapshot& s, RestoredPage* room) {
  s.in_range(prefix_tokens, 0, shape_.prefix_tokens, "tokens of the prefix");
  s.in_range(branch_tokens, 0, shape_.branch_tokens, "tokens of the dialogue");
  serialize_frames(s);
  s.items(meta_, lane_pages_ * kPageTokens);
  check_meta(s, room->bounds());
  for (int lane = 0; lane < shape_.lanes; ++lane)
    for (size_t p = 0; p < lane_pages_; ++p)
      room->serialize(
          s, slab_ + (static_cast<size_t>(lane) * lane_pages_ + p) * page_bytes_, page_bytes_,
          [&](const std::byte* data) { return is_finite(p, data, room); }, "a token is of numbers");
  const auto ring = static_cast<size_t>(ring_size());
  s.finite(embeddings_, ring * static_cast<size_t>(shape_.embedding_dim), "an embedding is of numbers");
  const auto received = static_cast<size_t>(attention_entries(shape_).value());
  s.finite(attention_received_, received, "attention received is a number");
}

// What of a page of a lane no strip refers to may be anything.
bool Window::is_finite(size_t page, const std::byte* data, RestoredPage* room) const {
  uint16_t rows = 0;
  const auto add = [&](Strip strip, int tokens, int frame) {
    const size_t first = first_token(strip, frame), end = first + static_cast<size_t>(tokens);
    const size_t begin = page * kPageTokens;
    const size_t from = std::max(first, begin), to = std::min(end, begin + kPageTokens);
    if (from < to) rows |= rows_of(static_cast<int>(from - begin), static_cast<int>(to - begin));
  };
  add(Strip::kPrefix, prefix_tokens, 0);
  add(Strip::kFirstFrame, first_.tokens, 0);
  for (int f = 0; f < size_; ++f) add(Strip::kFrame, frame(f).tokens, f);
  add(Strip::kBranch, branch_tokens, 0);
  return room->is_finite(shape_.codec, data, rows);
}

void Window::check_meta(const Snapshot& s, const TokenBounds& bounds) const {
  if (!s.is_reading()) return;
  const auto check = [&](Strip strip, int tokens, int frame, int64_t first) {
    for (int i = 0; i < tokens; ++i) {
      const TokenMeta& m = meta(strip, i, frame);
      s.require(bounds.hold(m), "a token of the window is in the stream");
      s.require(first == kNone || (m.position >= first && m.position - first < tokens), "a token stands in its frame");
    }
  };
  check(Strip::kPrefix, prefix_tokens, 0, kNone);
  check(Strip::kFirstFrame, first_.tokens, 0, first_.first_position);
  for (int f = 0; f < size_; ++f) check(Strip::kFrame, frame(f).tokens, f, frame(f).first_position);
  check(Strip::kBranch, branch_tokens, 0, kNone);
}

}  // namespace mosaic
