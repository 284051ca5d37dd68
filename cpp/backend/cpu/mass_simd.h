// attention_mass by tiles: weights are made again from the logits and the known log-sum, block of queries by block, and
// summed over rows at once, so no more than one tile of them ever exists. A task owns a range of units and all that is
// written for it, so the sums do not depend on who was fast.
#pragma once

#include "backend/cpu/attend_simd.h"

namespace mosaic::cpu {
namespace {

// Calls visit(at, lane) for the unit's tokens: `at` is where the mass of the token in `lane` goes.
template <class Visit>
MOSAIC_INLINE void for_mass_of_unit(const MassArgs& m, const Units& units, int unit, int base, Visit&& visit) {
  const AttendArgs& a = units.a;
  if (unit < units.pages) {
    const PageEntry& page = a.pages[unit];
    for (int i = page.begin; i < page.end; ++i) visit(m.page_mass + page.first + i - page.begin, base + i);
  } else {
    const bool summary = unit < units.seen();
    const int first = (unit - (summary ? units.pages : units.seen())) * kUnit;
    float* const to = (summary ? m.row_mass : m.block_mass) + first;
    for (int i = 0; i < least(kUnit, (summary ? a.n_rows : a.tokens) - first); ++i) visit(to + i, base + i);
  }
}

// What rows of one kv head, queries from token `first` on, pay to the lanes of the tile.
template <bool Causal>
MOSAIC_INLINE void sum_weights(const Tile& tile, const float* logits, const float* lse, int q_heads, int rows,
                               int group, int first, float* mass) {
  for (int at = 0; at < tile.lanes(); at += kLanes) {
    const Vec bias = load(tile.bias + at);
    Vec order(0.0f);
    if constexpr (Causal) order = stdx::static_simd_cast<Vec>(IVec(tile.order + at, stdx::element_aligned));
    Vec sum = load(mass + at);
    for (int r = 0; r < rows; ++r) {
      const float log_sum = lse[static_cast<size_t>(r / group) * q_heads + r % group];
      if (log_sum == kMinusInfinity) continue;
      Vec l = load(logits + static_cast<size_t>(r) * kTile + at) + (bias - log_sum * kLog2E);
      if constexpr (Causal) stdx::where(order > static_cast<float>(first + r / group), l) = Vec(kMinusInfinity);
      sum += exp2(l);
    }
    store(mass + at, sum);
  }
}

// Queries [first_query, T) over units [begin, end), at most block_tokens of them at a time.
inline void mass_range(const MassArgs& m, int first_query, int block_tokens, int begin, int end, AttendState& s) {
  const AttendArgs& a = *m.attend;
  const Units units(a);
  const int group = a.q_heads / a.shape.heads, d = a.shape.head_dim;
  Tile& tile = s.tile;
  for (int unit = begin; unit < end; ++unit) for_mass_of_unit(m, units, unit, 0, [](float* to, int) { *to = 0; });
  for (int first = first_query; first < a.tokens; first += block_tokens) {
    const int count = least(block_tokens, a.tokens - first), rows = count * group;
    const int seen = least(end, units.seen() + (first + count + kUnit - 1) / kUnit);  // the block up to the last query
    load_queries(a, first, count, s);
    tile.width = rows <= kFewRows ? kUnit : kTile;
    for (int unit = begin; unit < seen;) {
      tile.clear();
      while (unit < seen && units.place(unit, tile)) ++unit;
      if (tile.last == 0) continue;
      fill_turns(a.rope, tile);
      float mass[kTile] = {};
      for (int head = 0; head < a.shape.heads; ++head) {
        for (int i = 0; i < tile.units; ++i) units.fill(tile.unit[i], head, tile.base[i], false, tile);
        gemm({s.q + static_cast<size_t>(head) * rows * d, static_cast<size_t>(d), tile.k, kTileStride, s.logits, kTile,
              d, nullptr},
             rows, tile.lanes());
        const float* const lse = a.lse + static_cast<size_t>(first) * a.q_heads + head * group;
        if (tile.causal) {
          sum_weights<true>(tile, s.logits, lse, a.q_heads, rows, group, first, mass);
        } else {
          sum_weights<false>(tile, s.logits, lse, a.q_heads, rows, group, first, mass);
        }
      }
      for (int i = 0; i < tile.units; ++i)
        for_mass_of_unit(m, units, tile.unit[i], tile.base[i], [&](float* to, int lane) { *to += mass[lane]; });
    }
  }
}

}  // namespace
}  // namespace mosaic::cpu
