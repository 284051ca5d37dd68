#include "runtime/block_selection.h"

#include <algorithm>
#include <cmath>

namespace mosaic {

namespace {

template <class T>
size_t piece(int n) {
  return Region::rounded(sizeof(T) * static_cast<size_t>(n));
}

}  // namespace

size_t FrameScratch::bytes_for(const Plan& plan) {
  const int tokens = plan.config.model.frame_tokens * plan.block_frames;
  const int row = plan.store.page.row();
  return 2 * piece<float>(tokens * row) + piece<TokenMeta>(tokens) + piece<Placement>(tokens) +
         piece<ClusterId>(tokens) + piece<float>(plan.window.received ? tokens : 0) + piece<Relief>(kReliefs);
}

FrameScratch::FrameScratch(Region& region, const Plan& plan) {
  const auto tokens = static_cast<size_t>(plan.config.model.frame_tokens * plan.block_frames);
  const auto row = static_cast<size_t>(plan.store.page.row());
  k = region.take<float>("frame scratch", tokens * row);
  v = region.take<float>("frame scratch", tokens * row);
  meta = region.take<TokenMeta>("frame scratch", tokens);
  placement = region.take<Placement>("frame scratch", tokens);
  fresh = region.take<ClusterId>("frame scratch", tokens);
  received = region.take<float>("frame scratch", plan.window.received ? tokens : 0);
  relief = region.take<Relief>("frame scratch", kReliefs);
}

size_t BlockSelection::bytes_for(const Plan& p) {
  return piece<PageEntry>(p.select_entries) + piece<PageId>(p.select_entries) + piece<int32_t>(p.select_tokens) +
         piece<int32_t>(p.select_rows) + piece<int32_t>(3 * p.select_rows) + piece<float>(p.select_rows);
}

size_t BlockSelection::shared_bytes_for(const Plan& p) {
  const int clusters = p.store.index.capacity;
  return piece<uint64_t>(p.select_tokens + p.select_rows) +
         piece<uint16_t>(p.config.model.rope.grid_follows_time ? p.select_tokens : 0) + 5 * piece<float>(clusters) +
         piece<uint8_t>(clusters) + piece<ClusterId>(p.select_rows) + piece<float>(p.select_tokens) +
         piece<float>(p.select_rows) + piece<int32_t>(3 * p.max_block) +
         piece<float>(p.max_block * p.config.model.q_heads);
}

BlockSelection::Shared BlockSelection::make_shared(Region& region, const Plan& p) {
  const auto clusters = static_cast<size_t>(p.store.index.capacity);
  const auto take_floats = [&](int n) { return region.take<float>("selections", static_cast<size_t>(n)); };
  Shared s{};
  s.order = region.take<uint64_t>("selections", static_cast<size_t>(p.select_tokens + p.select_rows));
  s.extent = region.take<uint16_t>("selections",
                                   static_cast<size_t>(p.config.model.rope.grid_follows_time ? p.select_tokens : 0));
  s.result.chosen = region.take<ClusterId>("selections", clusters);
  s.result.attend = region.take<ClusterId>("selections", static_cast<size_t>(p.select_rows));
  s.result.score = region.take<float>("selections", clusters);
  s.result.rows = region.take<int32_t>("selections", clusters);
  s.result.bias = region.take<float>("selections", clusters);
  s.result.scratch = region.take<float>("selections", clusters);
  s.chosen = region.take<uint8_t>("selections", clusters);
  s.page_mass = take_floats(p.select_tokens);
  s.row_mass = take_floats(p.select_rows);
  s.q_positions = region.take<int32_t>("selections", 3 * static_cast<size_t>(p.max_block));
  s.lse = take_floats(p.max_block * p.config.model.q_heads);
  return s;
}

BlockSelection::BlockSelection(Region& region, const Plan& p)
    : max_entries_(p.select_entries), max_tokens_(p.select_tokens), max_rows_(p.select_rows) {
  entries_ = region.take<PageEntry>("selections", static_cast<size_t>(max_entries_));
  ids_ = region.take<PageId>("selections", static_cast<size_t>(max_entries_));
  positions_ = region.take<int32_t>("selections", static_cast<size_t>(max_tokens_));
  rows_ = region.take<int32_t>("selections", static_cast<size_t>(max_rows_));
  row_positions_ = region.take<int32_t>("selections", 3 * static_cast<size_t>(max_rows_));
  row_bias_ = region.take<float>("selections", static_cast<size_t>(max_rows_));
}

void BlockSelection::clear() {
  n_entries_ = n_tokens_ = n_rows_ = 0;
  finished_entries_ = finished_tokens_ = 0;
  next_position_ = next_moment_ = 0;
  ready = false;
}

bool BlockSelection::add_page(PageId page, const std::byte* data, CodecId codec, int begin, int end) {
  if (begin >= end) return true;
  if (entries_left() < 1 || tokens_left() < end - begin) return false;
  entries_[n_entries_] = {data, n_tokens_, static_cast<uint8_t>(begin), static_cast<uint8_t>(end), codec};
  ids_[n_entries_++] = page;
  const TokenMeta* meta = page_meta(data);
  for (int i = begin; i < end; ++i) positions_[n_tokens_++] = meta[i].position;
  return true;
}

bool BlockSelection::add_row(ClusterId c, const Cluster& cluster, int tokens) {
  if (n_rows_ == max_rows_) return false;
  rows_[n_rows_] = c;
  row_positions_[3 * n_rows_] = static_cast<int32_t>(std::llround(cluster.mean_position));
  row_positions_[3 * n_rows_ + 1] = cluster.h;
  row_positions_[3 * n_rows_ + 2] = cluster.w;
  row_bias_[n_rows_++] = std::log(static_cast<float>(tokens));
  return true;
}

void BlockSelection::finish(bool original, const RopeSpec& rope, Shared& shared) {
  finished_entries_ = n_entries_;
  finished_tokens_ = n_tokens_;
  ready = true;
  const int n = n_tokens_ + n_rows_;
  const auto position = [&](int i) -> int32_t& {
    return i < n_tokens_ ? positions_[i] : row_positions_[3 * (i - n_tokens_)];
  };
  int32_t highest = -1;
  if (!original) {
    for (int i = 0; i < n; ++i)
      shared.order[i] = static_cast<uint64_t>(static_cast<uint32_t>(position(i))) << 32 | static_cast<uint32_t>(i);
    std::sort(shared.order, shared.order + n);
    if (rope.grid_follows_time) measure_extents(shared.extent);
    // 1-D: every token takes the next position. M-RoPE: tokens of one moment share theirs; where the grid follows time, the
    // next moment stands behind its rows and columns (behind as many as there are tokens, if fewer are left).
    uint32_t moment = 0;
    int extent = 0, members = 0;
    for (int i = 0; i < n; ++i) {
      const auto at = static_cast<uint32_t>(shared.order[i] >> 32);
      const auto item = static_cast<int>(shared.order[i] & 0xffffffffu);
      if (i == 0 || !rope.is_multi() || at != moment) {
        highest += std::max(1, std::min(extent, members));
        extent = members = 0;
      }
      if (rope.grid_follows_time && item < n_tokens_) extent = std::max<int>(extent, shared.extent[item]);
      ++members;
      moment = at;
      position(item) = highest;
    }
  } else {
    for (int i = 0; i < n; ++i) highest = std::max(highest, position(i));
  }
  next_moment_ = highest + 1;
  if (rope.is_multi()) {
    for (int e = 0; e < n_entries_; ++e)
      for (int i = entries_[e].begin; i < entries_[e].end; ++i) {
        const TokenMeta& meta = page_meta(entries_[e].data)[i];
        const int32_t t = positions_[entries_[e].first + i - entries_[e].begin];
        highest = std::max({highest, rope.place_at(t, meta.h), rope.place_at(t, meta.w)});
      }
  }
  for (int i = 0; i < n_rows_; ++i) {
    int32_t* p = row_positions_ + 3 * i;
    for (int axis = 1; axis < 3; ++axis)
      p[axis] = rope.is_multi() ? rope.place_at(p[0], static_cast<uint16_t>(p[axis])) : p[0];
  }
  next_position_ = highest + 1;
}

void BlockSelection::measure_extents(uint16_t* extent) const {
  for (int e = 0; e < n_entries_; ++e)
    for (int i = entries_[e].begin; i < entries_[e].end; ++i) {
      const TokenMeta& meta = page_meta(entries_[e].data)[i];
      extent[entries_[e].first + i - entries_[e].begin] =
          meta.h == kText ? uint16_t{1} : static_cast<uint16_t>(std::max(meta.h, meta.w) + 1);
    }
}

bool BlockSelection::append_page(const std::byte* data, CodecId codec, int end, int first_position) {
  if (n_entries_ == max_entries_ || max_tokens_ - n_tokens_ < end) return false;
  entries_[n_entries_] = {data, n_tokens_, 0, static_cast<uint8_t>(end), codec};
  ids_[n_entries_++] = kNone;
  for (int i = 0; i < end; ++i) positions_[n_tokens_++] = first_position + i;
  return true;
}

}  // namespace mosaic
