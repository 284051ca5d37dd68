#include "store/window.h"

#include <cstring>

namespace mosaic {

namespace {

// Pages of one lane in the slab: prefix, first frame, ring of frames, branch.
size_t lane_pages(const WindowShape& s) {
  return static_cast<size_t>(pages_for(s.prefix_tokens) + pages_for(s.frame_tokens) * (s.frames + 2) +
                             pages_for(s.branch_tokens));
}

size_t received_entries(const WindowShape& s) {
  return s.received
             ? static_cast<size_t>(s.lanes) * static_cast<size_t>(s.frames + 1) * static_cast<size_t>(s.frame_tokens)
             : 0;
}

}  // namespace

size_t Window::bytes_for(const WindowShape& s) {
  const size_t ring = static_cast<size_t>(s.frames + 1);
  return Region::rounded(lane_pages(s) * static_cast<size_t>(s.lanes) * page_bytes(s.codec, s.page)) +
         Region::rounded(ring * static_cast<size_t>(s.embedding_dim) * sizeof(float)) +
         Region::rounded(ring * sizeof(WindowFrame)) + Region::rounded(received_entries(s) * sizeof(float));
}

Window::Window(Region& region, const WindowShape& s)
    : shape_(s),
      page_bytes_(page_bytes(s.codec, s.page)),
      prefix_pages_(pages_for(s.prefix_tokens)),
      frame_pages_(pages_for(s.frame_tokens)),
      branch_pages_(pages_for(s.branch_tokens)) {
  const size_t ring = static_cast<size_t>(s.frames + 1);
  slab_ = region.take<std::byte>("window", lane_pages(s) * static_cast<size_t>(s.lanes) * page_bytes_);
  embeddings_ = region.take<float>("window", ring * static_cast<size_t>(s.embedding_dim));
  ring_ = region.take<WindowFrame>("window", ring);
  received_ = region.take<float>("window", received_entries(s));
}

std::byte* Window::page(Strip strip, int lane, int page, int frame) const {
  size_t at = static_cast<size_t>(lane) * lane_pages(shape_) + static_cast<size_t>(page);
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
  return slab_ + at * page_bytes_;
}

void Window::keep_first_frame() {
  first_ = frame(0);
  for (int lane = 0; lane < shape_.lanes; ++lane)
    for (int p = 0; p < frame_pages_; ++p)
      std::memcpy(page(Strip::kFirstFrame, lane, p), page(Strip::kFrame, lane, p, 0), page_bytes_);
}

}  // namespace mosaic
