#include "store/window.h"

#include <algorithm>
#include <cstring>

namespace mosaic {

namespace {

// Pages of one lane in the slab: prefix, first frame, ring of frames, branch.
Size lane_pages(const WindowShape& s) {
  return Size(pages_for(s.prefix_tokens)) + Size(pages_for(s.frame_tokens)) * (Size(s.frames) + 2) +
         pages_for(s.branch_tokens);
}

Size attention_entries(const WindowShape& s) {
  return s.attention_received ? Size(s.lanes) * (Size(s.frames) + 1) * s.frame_tokens : 0;
}

}  // namespace

Window::Window(Region& region, const WindowShape& s)
    : shape_(s),
      slot_bytes_(region.has_private() ? data_bytes(s.codec, s.page) : page_bytes(s.codec, s.page)),
      prefix_pages_(pages_for(s.prefix_tokens)),
      frame_pages_(pages_for(s.frame_tokens)),
      branch_pages_(pages_for(s.branch_tokens)),
      lane_pages_(lane_pages(s).bytes()) {
  const Size ring = Size(s.frames) + 1, pages = lane_pages(s) * s.lanes;
  slab_ = region.take_for_kernels("window", pages * slot_bytes_);
  if (region.has_private()) meta_ = region.take<TokenMeta>("window", pages * kPageTokens);
  embeddings_ = region.take<float>("window", ring * s.embedding_dim);
  ring_ = region.take<WindowFrame>("window", ring);
  attention_received_ = region.take<float>("window", attention_entries(s));
  attention_now_ = region.take<float>("window", attention_entries(s));
}

PageView Window::page(Strip strip, int lane, int page, int frame) const {
  size_t at = static_cast<size_t>(lane) * lane_pages_ + static_cast<size_t>(page);
  switch (strip) {
    case Strip::kPrefix:
      break;
    case Strip::kFirstFrame:
      at += static_cast<size_t>(prefix_pages_);
      break;
    case Strip::kFrame:
      at += static_cast<size_t>(prefix_pages_ + frame_pages_ * (1 + slot(frame)));
      break;
    case Strip::kBranch:
      at += static_cast<size_t>(prefix_pages_ + frame_pages_ * (1 + ring_size()));
      break;
  }
  std::byte* const memory = slab_ + at * slot_bytes_;
  return meta_ != nullptr ? PageView{meta_ + at * kPageTokens, memory} : whole_page(memory);
}

void Window::clear_attention_now() { std::fill_n(attention_now_, attention_entries(shape_).value(), 0.0f); }

void Window::file_attention_now() {
  for (int lane = 0; lane < (shape_.attention_received ? shape_.lanes : 0); ++lane)
    for (int f = 0; f < size_; ++f)
      for (int i = 0; i < frame(f).tokens; ++i) attention_received(lane, f)[i] += attention_now(lane, f)[i];
}

void Window::keep_first_frame(Ops& ops) {
  first_ = frame(0);
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    for (int p = 0; p < frame_pages_; ++p) {
      const PageView from = page(Strip::kFrame, lane, p, 0), to = page(Strip::kFirstFrame, lane, p);
      std::memcpy(to.meta, from.meta, kPageMetaBytes);
      ops.copy(to.data, from.data, data_bytes(shape_.codec, shape_.page));
    }
  }
}

}  // namespace mosaic
