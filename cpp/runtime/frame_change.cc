#include "runtime/frame_change.h"

#include <algorithm>

namespace mosaic {

namespace {

// The token of a frame that stands at a place of its picture, whose tokens come row by row; kNone: none does.
int32_t token_at(const TokenMeta* frame, int tokens, uint16_t h, uint16_t w) {
  if (h == kText) return kNone;
  const auto is_text = [](const TokenMeta& m) { return m.h == kText; };
  const TokenMeta* const begin = std::find_if_not(frame, frame + tokens, is_text);
  const TokenMeta* const end = std::find_if(begin, frame + tokens, is_text);
  const TokenMeta* const at =
      std::lower_bound(begin, end, 0, [&](const TokenMeta& m, int) { return m.h != h ? m.h < h : m.w < w; });
  return at != end && at->h == h && at->w == w ? static_cast<int32_t>(at - frame) : kNone;
}

}  // namespace

FrameChange::FrameChange(Region& region, int frame_tokens, int row) : row_(row), frame_tokens_(frame_tokens) {
  const auto tokens = static_cast<size_t>(frame_tokens), numbers = tokens * static_cast<size_t>(row);
  const char* const name = "record scratch";
  for (float** room : {&k_, &v_, &sum_}) *room = region.take<float>(name, numbers);
  meta_ = region.take<TokenMeta>(name, tokens);
  for (int32_t** room : {&same_, &count_}) *room = region.take<int32_t>(name, tokens);
}

void FrameChange::measure(Ops& ops, const Window& window, int lane, const Run& run, float* change) {
  const auto stride = static_cast<size_t>(row_);
  ops.wait();
  std::fill_n(sum_, static_cast<size_t>(frame_tokens_) * stride, 0.0f);
  std::fill_n(count_, frame_tokens_, 0);
  for (int f = 1; f < window.frames(); ++f) {
    const int tokens = window.frame(f).tokens;
    window.read(ops, Strip::kFrame, lane, tokens, k_, v_, meta_, f);
    for (int i = 0; i < tokens; ++i) same_[i] = token_at(run.meta, run.n, meta_[i].h, meta_[i].w);
    ops.add_recent_keys({k_, same_, tokens, row_, stride, sum_, count_});
    ops.wait();
  }
  for (int i = 0; i < run.n; ++i) same_[i] = run.meta[i].h != kText ? i : kNone;
  ops.temporal_redundancy({run.k, same_, run.n, row_, stride, sum_, count_, change});
  ops.wait();
  for (int i = 0; i < run.n; ++i) change[i] = std::max(1 + change[i], 0.0f);
}

}  // namespace mosaic
