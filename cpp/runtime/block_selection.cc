#include "runtime/block_selection.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace mosaic {

SelectionScratch::SelectionScratch(Region& region, const Plan& p) {
  const auto take = [&]<class T>(T** to, Size n) { *to = region.take<T>("selections", n); };
  const Size tokens = std::max(p.select_tokens, p.frame_tokens);
  const Size clusters = p.store.index.capacity, block = p.max_block;
  const Size rows = std::max(p.select_rows, p.frame_rows);
  together = p.archive.pages > 0 ? p.together : 1;  // where what is read besides is chosen for many lanes at once
  order_items = (tokens + rows).bytes();
  take(&order, (tokens + rows) * together);
  take(&result.chosen, clusters);
  take(&result.attend, rows);
  take(&result.score, clusters);
  take(&select.rows, clusters);
  take(&select.bias, clusters);
  take(&select.score, clusters);
  take(&chosen, clusters);
  apart = region.has_private();
  const Size lanes = apart ? p.window.lanes : 1;
  mass_tokens = (tokens + block).bytes();
  mass_rows = rows.bytes();
  take(&page_mass, (tokens + block) * lanes);
  take(&row_mass, rows * lanes);
  take(&q_positions, block * 3);
  take(&lse, block * p.config.model.q_heads);
}

namespace {

template <class Take>
BlockSelection::Table make_table(const Plan& p, int entries, int tokens, int rows, bool has_private, const Take& take) {
  BlockSelection::Table t{};
  take(&t.pages, entries);
  take(&t.positions, tokens);
  if (p.config.model.rope.is_multi()) take(&t.places, Size(tokens) * 2);
  take(&t.rows, rows);
  take(&t.row_positions, Size(rows) * 3);
  take(&t.row_bias, rows);
  // Kernels of several lanes may be under way at once, each with positions of its own.
  if (has_private) take(&t.q_positions, Size(p.max_block) * 3);
  return t;
}

}  // namespace

BlockSelection::BlockSelection(Region& region, const Plan& p, const SelectionScratch& scratch, int entries, int tokens,
                               int rows)
    : max_entries_(entries), max_tokens_(tokens), max_summaries_(rows) {
  const bool apart = region.has_private();
  table_ = make_table(p, entries, tokens, rows, apart,
                      [&]<class T>(T** to, Size n) { *to = region.take<T>("selections", n); });
  ids_ = region.take<PageId>("selections", max_entries_);
  if (!apart) {
    table_.q_positions = scratch.q_positions;
    there_ = table_;
  } else {
    metas_ = region.take<const TokenMeta*>("selections", max_entries_);
    there_ = make_table(p, entries, tokens, rows, apart, [&]<class T>(T** to, Size n) {
      *to = reinterpret_cast<T*>(region.take_private("selections", n * sizeof(T)));
    });
  }
}

void BlockSelection::clear() {
  n_entries_ = n_tokens_ = n_summaries_ = n_attended_ = 0;
  finished_entries_ = finished_tokens_ = 0;
  sent_entries_ = sent_tokens_ = sent_summaries_ = 0;
  behind_ = {};
  first_heard_ = kNone;
  ready = false;
}

bool BlockSelection::add_page(PageId page, PageView view, CodecId codec, int begin, int end) {
  if (begin >= end) return true;
  if (entries_left() < 1 || tokens_left() < end - begin) return false;
  table_.pages[n_entries_] = {view.data, n_tokens_, rows_of(begin, end), codec};
  if (metas_ != nullptr) metas_[n_entries_] = view.meta;
  ids_[n_entries_++] = page;
  n_attended_ += end - begin;
  for (int i = begin; i < end; ++i, ++n_tokens_) {
    table_.positions[n_tokens_] = view.meta[i].position;
    if (table_.places != nullptr) {
      table_.places[2 * n_tokens_] = view.meta[i].h;
      table_.places[2 * n_tokens_ + 1] = view.meta[i].w;
    }
  }
  return true;
}

bool BlockSelection::add_tokens(int page, const std::byte* data, CodecId codec, uint16_t rows, const int32_t* positions,
                                const uint16_t* places) {
  const PageEntry entry{data, n_tokens_, rows, codec};
  if (rows == 0) return true;
  if (entries_left() < 1 || tokens_left() < entry.span()) return false;
  if (metas_ != nullptr) metas_[n_entries_] = nullptr;
  ids_[n_entries_] = page;
  table_.pages[n_entries_++] = entry;
  for (int i = entry.begin(); i < entry.end(); ++i, ++n_tokens_) {
    table_.positions[n_tokens_] = entry.has(i) ? positions[i] : -1;  // those between are given none
    if (table_.places != nullptr) {
      table_.places[2 * n_tokens_] = places[2 * i];
      table_.places[2 * n_tokens_ + 1] = places[2 * i + 1];
    }
  }
  n_attended_ += std::popcount(rows);
  return true;
}

void BlockSelection::move(int entry, PageView view, CodecId codec) {
  PageEntry& page = table_.pages[entry];
  if (metas_ != nullptr) metas_[entry] = view.meta;
  if (page.data == view.data && page.codec == codec) return;
  page.data = view.data;
  page.codec = codec;
  sent_entries_ = std::min(sent_entries_, entry);
}

bool BlockSelection::add_summary(ClusterId c, const Cluster& cluster, int tokens) {
  if (n_summaries_ == max_summaries_) return false;
  table_.rows[n_summaries_] = c;
  table_.row_positions[3 * n_summaries_] = static_cast<int32_t>(std::llround(cluster.mean_position));
  table_.row_positions[3 * n_summaries_ + 1] = cluster.h;
  table_.row_positions[3 * n_summaries_ + 2] = cluster.w;
  table_.row_bias[n_summaries_++] = std::log(static_cast<float>(tokens));
  return true;
}

void BlockSelection::finish(bool original, int room, const RopeSpec& rope, uint64_t* order) {
  finished_entries_ = n_entries_;
  finished_tokens_ = n_tokens_;
  ready = true;
  order_ = order;
  int32_t highest = -1;
  for (int i = 0; i < n_tokens_ + n_summaries_; ++i) highest = std::max(highest, position(i));
  original_ = original && highest < room;
  if (!original_) {
    const int n = ordered_ = sort_by_position(order);
    highest = original ? shorten_gaps(order, n, room) : close_up(rope, order, n);
  }
  behind_.picture = highest + 1;
  for (int i = 0; i < n_summaries_; ++i) {
    int32_t* p = table_.row_positions + 3 * i;
    for (int axis = 1; axis < 3; ++axis)
      p[axis] = rope.is_multi() ? rope.place_at(p[0], static_cast<uint16_t>(p[axis])) : p[0];
  }
  if (rope.is_multi()) {
    for (int i = 0; i < 2 * n_tokens_; ++i)
      if (table_.positions[i / 2] >= 0)
        highest = std::max<int32_t>(highest, rope.place_at(table_.positions[i / 2], table_.places[i]));
  }
  behind_.position = highest + 1;
  for (int i = 0; i < n_tokens_; ++i) table_.positions[i] = std::max(table_.positions[i], 0);  // between those attended
}

int32_t BlockSelection::position_of(int32_t came_at) const {
  if (original_ || ordered_ == 0) return came_at;
  const uint64_t key = static_cast<uint64_t>(static_cast<uint32_t>(came_at)) << 32 | 0xffffffffu;
  const uint64_t* const next = std::upper_bound(order_, order_ + ordered_, key);
  if (next == order_) return 0;
  const auto at = [&](const uint64_t* k) { return position(static_cast<int>(*k & 0xffffffffu)); };
  const int32_t here = at(next - 1), gap = came_at - static_cast<int32_t>(*(next - 1) >> 32);
  return next == order_ + ordered_ ? here : std::min(here + gap, at(next));
}

int BlockSelection::sort_by_position(uint64_t* order) {
  int n = 0;
  for (int i = 0; i < n_tokens_ + n_summaries_; ++i)
    if (position(i) >= 0)
      order[n++] = static_cast<uint64_t>(static_cast<uint32_t>(position(i))) << 32 | static_cast<uint32_t>(i);
  std::sort(order, order + n);
  return n;
}

// Every gap to the one before is cut to a common length, the largest with which all stand below `room`: what lies near
// stays as far apart as it came, tokens of a frame among it, and stretches of which nothing is kept shrink. Where there are
// more than there are positions, neighbours share one.
int32_t BlockSelection::shorten_gaps(const uint64_t* order, int n, int room) {
  const auto came_at = [&](int i) { return static_cast<int64_t>(order[i] >> 32); };
  const auto last_with = [&](int64_t longest) {
    int64_t at = std::min(came_at(0), longest);
    for (int i = 1; i < n; ++i) at += std::min(came_at(i) - came_at(i - 1), longest);
    return at;
  };
  int64_t low = 1, high = room;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (last_with(middle) < room) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const bool fits = last_with(low) < room;
  int64_t at = 0, before = 0;
  for (int i = 0; i < n; ++i) {
    at = fits ? at + std::min(came_at(i) - before, low) : int64_t{i} * room / n;
    before = came_at(i);
    position(static_cast<int>(order[i] & 0xffffffffu)) = static_cast<int32_t>(at);
  }
  return static_cast<int32_t>(at);
}

// 1-D: every token takes the next position. M-RoPE: tokens of one picture share theirs; where the grid follows time, what
// follows stands behind its rows and columns (behind as many as there are tokens, if fewer are left).
int32_t BlockSelection::close_up(const RopeSpec& rope, const uint64_t* order, int n) {
  int32_t highest = -1;
  uint32_t before = 0;
  int extent = 0, members = 0;
  for (int i = 0; i < n; ++i) {
    const auto at = static_cast<uint32_t>(order[i] >> 32);
    const auto item = static_cast<int>(order[i] & 0xffffffffu);
    if (i == 0 || !rope.is_multi() || at != before) {
      highest += std::max(1, std::min(extent, members));
      extent = members = 0;
    }
    if (rope.grid_follows_time && item < n_tokens_ && table_.places[2 * item] != kText)
      extent = std::max({extent, table_.places[2 * item] + 1, table_.places[2 * item + 1] + 1});
    ++members;
    before = at;
    position(item) = highest;
  }
  return highest;
}

bool BlockSelection::append_page(std::byte* data, CodecId codec, int begin, int end, int first_position) {
  const int tokens = end - begin;
  if (n_entries_ == max_entries_ || max_tokens_ - n_tokens_ < tokens) return false;
  table_.pages[n_entries_] = {data, n_tokens_, rows_of(begin, end), codec};
  if (metas_ != nullptr) metas_[n_entries_] = nullptr;
  ids_[n_entries_++] = kNone;
  n_attended_ += tokens;
  for (int i = 0; i < tokens; ++i, ++n_tokens_) {
    table_.positions[n_tokens_] = first_position + i;
    if (table_.places != nullptr) {
      table_.places[2 * n_tokens_] = table_.places[2 * n_tokens_ + 1] = kText;
    }
  }
  return true;
}

int BlockSelection::changes(int tokens, StageArgs::Piece* pieces) {
  if (there_.pages == table_.pages) return 0;
  int n = 0;
  const auto send = [&]<class T>(T* to, const T* from, int begin, int end) {
    if (begin < end) pieces[n++] = {to + begin, from + begin, static_cast<size_t>(end - begin) * sizeof(T)};
  };
  send(there_.pages, table_.pages, sent_entries_, n_entries_);
  send(there_.positions, table_.positions, sent_tokens_, n_tokens_);
  if (table_.places != nullptr) send(there_.places, table_.places, 2 * sent_tokens_, 2 * n_tokens_);
  send(there_.rows, table_.rows, sent_summaries_, n_summaries_);
  send(there_.row_positions, table_.row_positions, 3 * sent_summaries_, 3 * n_summaries_);
  send(there_.row_bias, table_.row_bias, sent_summaries_, n_summaries_);
  send(there_.q_positions, table_.q_positions, 0, 3 * tokens);
  sent_entries_ = n_entries_, sent_tokens_ = n_tokens_, sent_summaries_ = n_summaries_;
  return n;
}

}  // namespace mosaic
