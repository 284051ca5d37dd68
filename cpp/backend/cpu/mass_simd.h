// attention_mass by tiles: weights are made again from the logits and the known log-sum, tile of queries by tile, and
// summed over rows at once, so no more than one tile of them ever exists. A task owns a range of units and all that is
// written for it, so the sums do not depend on who was fast.
#pragma once

#include "backend/cpu/attend_simd.h"

namespace mosaic::cpu {
namespace {

// Where the masses of a unit's tokens go: token i's, in lane base + i, to at[i], for tokens [begin, end) of `rows`. at is
// null where they are not wanted.
struct MassOfUnit {
  float* at;
  size_t stride;  // from a query head's results to the next one's
  int begin, end;
  unsigned rows;

  MassOfUnit(const MassArgs& m, const Units& units, int unit) {
    const AttendArgs& a = units.a;
    if (unit < units.pages) {
      const PageEntry& page = a.pages[unit];
      begin = page.begin(), end = page.end(), rows = page.rows, stride = m.mass_stride;
      at = m.page_mass + page.first - begin;
      return;
    }
    const bool summary = unit < units.seen();
    const int first = (unit - (summary ? units.pages : units.seen())) * kUnit;
    begin = 0, end = least(kUnit, (summary ? a.n_rows : a.tokens) - first), rows = 0xffffu;
    stride = static_cast<size_t>(summary ? a.n_rows : a.tokens);
    at = summary ? m.row_mass : m.block_mass;
    if (at != nullptr) at += first;
  }
  void clear(int heads) const {
    for (int head = 0; head < heads; ++head)
      for (int i = begin; i < end; ++i) at[head * stride + i] = 0;
  }
  void add(int head, const float* mass) const {
    for (int i = begin; i < end; ++i)
      if ((rows >> i & 1) != 0) at[head * stride + i] += mass[i];
  }
};

// What rows of one kv head, queries from token `first` on, pay to the lanes of the tile: `each` rows of a token, of the
// `group` that logits and lse have.
template <bool Causal>
MOSAIC_INLINE void sum_weights(const Tile& tile, const float* logits, const float* lse, int q_heads, int rows, int each,
                               int group, int first, float* mass) {
  for (int at = 0; at < tile.lanes(); at += kLanes) {
    const Vec bias = load(tile.bias + at);
    Vec order(0.0f);
    if constexpr (Causal) order = stdx::static_simd_cast<Vec>(IVec(tile.order + at, stdx::element_aligned));
    Vec sum = load(mass + at);
    for (int r = 0; r < rows; ++r) {
      const int token = r / each, member = r % each;
      const float log_sum = lse[static_cast<size_t>(token) * q_heads + member];
      if (log_sum == kMinusInfinity) continue;
      Vec l = load(logits + static_cast<size_t>(token * group + member) * kTile + at) + (bias - log_sum * kLog2E);
      if constexpr (Causal) stdx::where(order > static_cast<float>(first + token), l) = Vec(kMinusInfinity);
      sum += exp2(l);
    }
    store(mass + at, sum);
  }
}

// The units whose mass is wanted, as numbers [0, count): pages, then summaries, then the block.
struct WantedUnits {
  int first_page, pages, summaries, block, unwanted;
  WantedUnits(const MassArgs& m, const Units& units)
      : first_page(m.first_page),
        pages(m.end_page() - m.first_page),
        summaries(m.row_mass != nullptr ? units.summaries : 0),
        block(m.block_mass != nullptr ? units.block : 0),
        unwanted(units.summaries - summaries) {}
  int count() const { return pages + summaries + block; }
  int unit(int i, const Units& units) const {
    return i < pages ? first_page + i : units.pages + (i - pages) + (i < pages + summaries ? 0 : unwanted);
  }
};

// What rows of one kv head paid: `each` of its query heads, from `member` on.
inline void weigh_members(const Tile& tile, const float* logits, const float* lse, int q_heads, int count, int member,
                          int each, int group, int first, float* mass) {
  logits += static_cast<size_t>(member) * kTile, lse += member;
  if (tile.causal) {
    sum_weights<true>(tile, logits, lse, q_heads, count * each, each, group, first, mass);
  } else {
    sum_weights<false>(tile, logits, lse, q_heads, count * each, each, group, first, mass);
  }
}

// Queries [first_query, T) over wanted units [begin, end), at most tile_tokens of them at a time.
inline void mass_range(const MassArgs& m, int first_query, int tile_tokens, int begin, int end, AttendState& s) {
  const AttendArgs& a = *m.attend;
  const Units units(a);
  const WantedUnits wanted(m, units);
  const int group = a.q_heads / a.shape.heads, d = a.shape.head_dim, each = m.by_head ? 1 : group;
  Tile& tile = s.tile;
  for (int i = begin; i < end; ++i) MassOfUnit(m, units, wanted.unit(i, units)).clear(m.by_head ? a.q_heads : 1);
  for (int first = first_query; first < a.tokens; first += tile_tokens) {
    const int count = least(tile_tokens, a.tokens - first), rows = count * group;
    // The block up to the last query.
    const int seen = least(end, wanted.pages + wanted.summaries + (first + count + kUnit - 1) / kUnit);
    load_queries(a, first, count, s);
    tile.width = rows <= kFewRows ? kUnit : kTile;
    for (int i = begin; i < seen;) {
      tile.clear();
      while (i < seen && units.add(wanted.unit(i, units), tile)) ++i;
      if (tile.last == 0) continue;
      fill_turns(a.rope, tile);
      alignas(64) float mass[kTile] = {};
      const auto give = [&](int row) {
        for (int u = 0; u < tile.units; ++u) MassOfUnit(m, units, tile.unit[u]).add(row, mass + tile.base[u]);
      };
      for (int head = 0; head < a.shape.heads; ++head) {
        for (int u = 0; u < tile.units; ++u) units.fill(tile.unit[u], head, tile.base[u], false, tile);
        gemm({s.q + static_cast<size_t>(head) * rows * d, static_cast<size_t>(d), tile.k, kTileStride, s.logits, kTile,
              d, nullptr},
             rows, tile.lanes());
        const float* const lse = a.lse + static_cast<size_t>(first) * a.q_heads + head * group;
        for (int member = 0; member < group; member += each) {
          if (m.by_head) clear_row(kTile, mass);
          weigh_members(tile, s.logits, lse, a.q_heads, count, member, each, group, first, mass);
          if (m.by_head) give(head * group + member);
        }
      }
      if (!m.by_head) give(0);
    }
  }
}

}  // namespace
}  // namespace mosaic::cpu
