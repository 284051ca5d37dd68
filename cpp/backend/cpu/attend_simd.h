// attend by tiles. The work is cut into tiles of query tokens x ranges of units; a task takes one of each and goes
// through all kv heads of a page while it is near, so the angles of its tokens are computed once. A few ranges per
// worker run side by side when there are few queries; their partial results are merged at the end, always in the same
// order, so the answer does not depend on who was fast.
#pragma once

#include <math.h>

#include <cfloat>

#include "backend/cpu/thread_pool.h"
#include "backend/cpu/tile_simd.h"

namespace mosaic::cpu {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
constexpr size_t kQueryBytes = 256 * 1024;  // rotated queries of one task: half of a small L2
constexpr int kMaxQueryTokens = 64;
constexpr int kMinUnits = 8;               // of a range: fewer are not worth a merge
constexpr int kFewRows = 16;               // query rows of a kv head
constexpr double kWorthThreads = 1 << 20;  // multiply-adds below which one thread is faster than waking another

// What is attended, as units: pages, then summaries by sixteens, then the block by sixteens.
struct Units {
  const AttendArgs& a;
  int pages, summaries, block;
  explicit Units(const AttendArgs& args)
      : a(args),
        pages(args.n_pages),
        summaries((args.n_rows + kUnit - 1) / kUnit),
        block(args.block_k != nullptr ? (args.tokens + kUnit - 1) / kUnit : 0) {}
  int seen() const { return pages + summaries; }  // by every query
  int total() const { return seen() + block; }

  // Gives a unit its lanes: who is in them, where they stand, who may see them. False: the tile is full.
  bool add(int unit, Tile& tile) const {
    const int first = unit < pages ? 0 : (unit < seen() ? unit - pages : unit - seen()) * kUnit;
    const int begin = unit < pages ? a.pages[unit].begin() : 0;
    const int end = unit < pages ? a.pages[unit].end() : least(kUnit, (unit < seen() ? a.n_rows : a.tokens) - first);
    if (begin == end) return true;
    const int base = tile.last;
    if (base + end > tile.width) return false;
    tile.unit[tile.units] = unit;
    tile.base[tile.units++] = base;
    tile.last = base + end;
    auto put = [&](int i, float bias, int32_t t, int32_t h, int32_t w) {
      tile.bias[base + i] = bias;
      tile.position[base + i][0] = t;
      tile.position[base + i][1] = h;
      tile.position[base + i][2] = w;
    };
    if (unit < pages) {
      const PageEntry& page = a.pages[unit];
      for (int i = begin; i < end; ++i) {
        if (!page.has(i)) continue;
        const int at = page.first + i - begin;
        const int32_t t = a.positions[at];
        int h = 0, w = 0;
        if (a.places != nullptr && a.rope != nullptr)
          h = a.rope->spec().place_at(t, a.places[2 * at]), w = a.rope->spec().place_at(t, a.places[2 * at + 1]);
        put(i, 0, t, h, w);
      }
    } else if (unit < seen()) {
      for (int i = 0; i < end; ++i) {
        const int32_t* const p = a.row_positions + 3 * (first + i);
        put(i, a.row_bias[first + i] * kLog2E, p[0], p[1], p[2]);
      }
    } else {
      for (int i = 0; i < end; ++i) {
        const int32_t* const p = a.q_positions + 3 * (first + i);
        put(i, 0, p[0], p[1], p[2]);
        tile.order[base + i] = first + i;
      }
      tile.causal = true;
    }
    return true;
  }

  // Whether its values are summed in the Hadamard basis.
  bool is_hadamard(int unit) const { return unit < pages && in_hadamard(a.pages[unit].codec); }

  // Starts the read of a head's panels of a page. Pages lie anywhere in an arena, so the hardware cannot guess them; a
  // head ahead, memory has the time of one tile to answer.
  void prefetch(int unit, int head) const {
    if (unit >= pages) return;
    const PageEntry& page = a.pages[unit];
    const size_t bytes = k_panel_bytes(page.codec, a.shape.head_dim) + v_panel_bytes(page.codec, a.shape.head_dim);
    const std::byte* const from = page.data + static_cast<size_t>(head) * bytes;
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
  }

  // Keys (and values, when wanted) of one head into lanes [base, base + 16).
  void fill(int unit, int head, int base, bool with_values, Tile& tile) const {
    const RopeSpec* const spec = a.rope != nullptr ? &a.rope->spec() : nullptr;
    const int d = tile.head_dim;
    float* const v = tile.v + static_cast<size_t>(base) * tile.v_stride;
    if (unit < pages) {
      const PageEntry& page = a.pages[unit];
      with_codec(page.codec, [&](auto codec) {
        using C = decltype(codec);
        const std::byte* const k_panel = page.data + static_cast<size_t>(head) * head_bytes_of<C>(d);
        const float* const mean = a.key_mean != nullptr ? a.key_mean + head * d : nullptr;
        fill_keys(KeyPanel<C>(k_panel, tile, mean), spec, base, tile);
        if (!with_values) return;
        const ValuePanel<C> values(k_panel + k_panel_of<C>(d), d);
        for (int t = 0; t < page.end(); ++t) {
          float* const to = v + static_cast<size_t>(t) * tile.v_stride;
          if (page.has(t)) {
            values(t, to);
          } else {
            clear_row(tile.v_stride, to);  // a lane without weight, but 0 * NaN would be NaN
          }
        }
      });
      return;
    }
    const bool summary = unit < seen();
    const int first = (summary ? unit - pages : unit - seen()) * kUnit;
    const int count = least(kUnit, (summary ? a.n_rows : a.tokens) - first);
    for (int i = 0; i < count; ++i) {
      float* const k_row = tile.rows + static_cast<size_t>(i) * d;
      float* const v_row = v + static_cast<size_t>(i) * tile.v_stride;
      if (summary) {
        const size_t at = (static_cast<size_t>(a.rows[first + i]) * a.shape.heads + head) * d;
        widen(a.mean_k + at, d, k_row);
        if (with_values) widen(a.mean_v + at, d, v_row);
      } else {
        const size_t at = static_cast<size_t>(first + i) * a.kv_stride + static_cast<size_t>(head) * d;
        copy_row(a.block_k + at, d, k_row);
        if (with_values) copy_row(a.block_v + at, d, v_row);
      }
    }
    transpose(tile.rows, static_cast<size_t>(d), kUnit, d, tile.columns, kUnit);
    fill_keys(KeyPanel<Fp32>(tile.columns), spec, base, tile);
  }
};

// A worker's scratch. Rows of one kv head are (token, member of the group), token first.
struct AttendState {
  Tile tile;
  float* q = nullptr;       // [Hkv][rows][D] rotated, times scale * log2(e): logits are powers of two
  float* sum = nullptr;     // [Hkv][rows][v_stride]
  float* total = nullptr;   // [Hkv][rows][kLanes] sum of weights, by lane
  float* top = nullptr;     // [Hkv][rows] largest logit so far
  float* logits = nullptr;  // [rows][kTile], weights after the softmax
  float* shrink = nullptr;  // [rows] what the sums so far are multiplied with
  float* angles = nullptr;  // [2 n]

  void carve(Carver& carver, size_t rows, size_t head_rows, int d) {
    tile.carve(carver, d);
    q = carver.take<float>(rows * d);
    sum = carver.take<float>(rows * tile.v_stride);
    total = carver.take<float>(rows * kLanes);
    top = carver.take<float>(rows);
    logits = carver.take<float>(head_rows * kTile);
    shrink = carver.take<float>(head_rows);
    angles = carver.take<float>(static_cast<size_t>(d) + 1);
  }
};

// Query rows (token x head) of the largest task under these limits, for lanes of all or fewer heads.
inline size_t task_rows(const Ops::Limits& l) {
  const size_t fit = kQueryBytes / (sizeof(float) * static_cast<size_t>(most(1, l.shape.head_dim)));
  const size_t all = static_cast<size_t>(least(most(1, l.tokens), kMaxQueryTokens)) * l.q_heads;
  const size_t some = fit > static_cast<size_t>(l.q_heads) ? fit : static_cast<size_t>(l.q_heads);
  return all < some ? all : some;
}

// How attend cuts its work.
struct AttendPlan {
  int tile_tokens;  // query tokens of a task
  int tiles;        // of query tokens
  int splits;       // ranges of units; tiles * splits <= 2 * threads when there are several
  AttendPlan(const Ops::Limits& l, const AttendArgs& a, int units, int threads) {
    const int fit = static_cast<int>(task_rows(l)) / l.q_heads;  // for fewer heads too: a head's rows are as many
    tile_tokens = most(1, least(a.tokens, least(fit, kMaxQueryTokens)));
    tiles = (a.tokens + tile_tokens - 1) / tile_tokens;
    const double work = static_cast<double>(a.tokens) * a.q_heads * a.shape.head_dim * 2 * units * kUnit;
    const int wanted = threads == 1 || work < kWorthThreads ? 1 : 2 * threads / most(1, tiles);
    splits = most(1, least(wanted, units / kMinUnits));
  }
};

// Logits of one row into weights; grows `top` when it must and says what to multiply the older sums with.
template <bool Causal>
MOSAIC_INLINE float weigh_row(const Tile& tile, int lanes, int token, float* logits, float* top, float* total) {
  float shrink = 1.0f;
  Vec l[kTile / kLanes];
  Vec high(kMinusInfinity);
  for (int at = 0, i = 0; at < lanes; at += kLanes, ++i) {
    const Vec bias = load(tile.bias + at);
    l[i] = load(logits + at) + bias;
    stdx::where(bias == kMinusInfinity, l[i]) = Vec(kMinusInfinity);  // an empty lane may hold anything, NaN too
    if constexpr (Causal) {
      const IVec order(tile.order + at, stdx::element_aligned);
      stdx::where(stdx::static_simd_cast<Vec>(order) > static_cast<float>(token), l[i]) = Vec(kMinusInfinity);
    }
    high = stdx::max(high, l[i]);
  }
  if (stdx::any_of(high > *top)) {
    const float grown = stdx::hmax(high);
    shrink = exp2(Vec(*top - grown))[0];
    *top = grown;
    store(total, load(total) * shrink);
  }
  Vec sum(0.0f);
  for (int at = 0, i = 0; at < lanes; at += kLanes, ++i) {
    const Vec weight = exp2(l[i] - *top);
    store(logits + at, weight);
    sum += weight;
  }
  store(total, load(total) + sum);
  return shrink;
}

// Queries of tokens [first, first + count), rotated and scaled, into s.q.
inline void load_queries(const AttendArgs& a, int first, int count, AttendState& s) {
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads, rows = count * group;
  const RopeSpec* const spec = a.rope != nullptr ? &a.rope->spec() : nullptr;
  if (spec != nullptr) fill_axes(*spec, s.tile.axis);
  s.tile.fill_signs();
  for (int t = 0; t < count; ++t) {
    if (spec != nullptr) angle_row(*a.rope, s.tile.axis, a.q_positions + 3 * (first + t), s.angles);
    for (int h = 0; h < a.q_heads; ++h) {
      const size_t row = static_cast<size_t>(h / group) * rows + t * group + h % group;
      rotate_row(spec, s.angles, a.scale * kLog2E, a.q + (first + t) * a.q_stride + static_cast<size_t>(h) * d, d,
                 s.q + row * d);
    }
  }
}

// What the queries in s.q have paid to a tile of keys and values joins s.sum, s.total, s.top. `first` is their first token,
// `rows` how many there are of a KV head.
inline void attend_tile(int head, int first, int rows, int group, AttendState& s) {
  Tile& tile = s.tile;
  const int d = tile.head_dim;
  const size_t row = static_cast<size_t>(head) * rows, v_stride = static_cast<size_t>(tile.v_stride);
  gemm({s.q + row * d, static_cast<size_t>(d), tile.k, kTileStride, s.logits, kTile, d, nullptr}, rows, tile.lanes());
  for (int r = 0; r < rows; ++r) {
    float* const logits = s.logits + static_cast<size_t>(r) * kTile;
    float* const total = s.total + (row + r) * kLanes;
    s.shrink[r] = tile.causal ? weigh_row<true>(tile, tile.lanes(), first + r / group, logits, &s.top[row + r], total)
                              : weigh_row<false>(tile, tile.lanes(), 0, logits, &s.top[row + r], total);
  }
  gemm({s.logits, kTile, tile.v, v_stride, s.sum + row * v_stride, v_stride, tile.last, s.shrink}, rows, tile.v_stride);
}

// The units of [begin, end) whose values are summed in the Hadamard basis, or those that are not.
inline void attend_units(const Units& units, int first, int rows, int begin, int end, bool hadamard, AttendState& s) {
  const AttendArgs& a = units.a;
  Tile& tile = s.tile;
  for (int unit = begin; unit < end;) {
    tile.clear();
    for (; unit < end; ++unit) {
      if (units.is_hadamard(unit) == hadamard && !units.add(unit, tile)) break;
    }
    if (tile.last == 0) continue;
    fill_turns(a.rope, tile);
    for (int head = 0; head < a.shape.heads; ++head) {
      for (int i = 0; i < tile.units; ++i) {
        if (head + 1 < a.shape.heads) {
          units.prefetch(tile.unit[i], head + 1);
        } else if (unit + i < end) {
          units.prefetch(unit + i, 0);
        }
      }
      for (int i = 0; i < tile.units; ++i) units.fill(tile.unit[i], head, tile.base[i], true, tile);
      attend_tile(head, first, rows, a.q_heads / a.shape.heads, s);
    }
  }
}

// Query tokens [first, first + count) over units [begin, end) into s.sum, s.total, s.top. Pages in the Hadamard basis come
// first: their sums leave it once, and the rest is added to them.
inline void attend_range(const AttendArgs& a, int first, int count, int begin, int end, AttendState& s) {
  const Units units(a);
  const int rows = count * (a.q_heads / a.shape.heads);
  const size_t all = static_cast<size_t>(rows) * a.shape.heads;
  Tile& tile = s.tile;
  const size_t v_stride = static_cast<size_t>(tile.v_stride);
  load_queries(a, first, count, s);
  for (size_t r = 0; r < all; ++r) {
    clear_row(tile.v_stride, s.sum + r * v_stride);
    store(s.total + r * kLanes, Vec(0.0f));
    s.top[r] = -FLT_MAX;  // not -inf: an empty lane's weight is then 2^-inf = 0, never inf - inf
  }
  clear_row(kTile * tile.v_stride, tile.v);  // the columns that pad a row stay zero
  // Few queries: 16 tokens a tile, and codes, angles, keys and values stay in L1. Many: 32, to load the sums less often.
  tile.width = rows <= kFewRows ? kUnit : kTile;
  bool any = false;
  for (int unit = begin; unit < end && unit < units.pages && !any; ++unit) any = units.is_hadamard(unit);
  if (any) {
    attend_units(units, first, rows, begin, end, true, s);
    for (size_t r = 0; r < all; ++r) leave_hadamard(tile, s.sum + r * v_stride);
  }
  attend_units(units, first, rows, begin, end, false, s);
}

}  // namespace
}  // namespace mosaic::cpu
