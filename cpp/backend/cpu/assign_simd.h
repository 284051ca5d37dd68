// assign and update_centroids by vectors. Items are scaled to unit length once; centroids are scaled and turned channel
// by channel a tile of 32 at a time, and one matrix product gives all cosines. Key and value parts lie one after the
// other in a row, so both are one product of twice the length.
#pragma once

#include <math.h>

#include "backend/cpu/thread_pool.h"
#include "backend/cpu/tile_simd.h"

namespace mosaic::cpu {
namespace {

constexpr int kItemTile = 32;

MOSAIC_INLINE float dot(const float* a, const float* b, int n) {
  Vec sum0(0.0f), sum1(0.0f);
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum0 += load(a + i) * load(b + i);
    sum1 += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) sum0 += load(a + i) * load(b + i);
  float sum = stdx::reduce(sum0 + sum1);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

MOSAIC_INLINE float most_of(float a, float b) { return a > b ? a : b; }

MOSAIC_INLINE void clear(float* x, int n) {
  for (int i = 0; i < n; ++i) x[i] = 0;
}

MOSAIC_INLINE float inverse_norm(const float* x, int n) {
  const float square = dot(x, x, n);
  return square > 0 ? 1.0f / sqrtf(square) : 0.0f;
}

MOSAIC_INLINE void scale_row(const float* from, int n, float scale, float* to) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i) * scale);
  for (; i < n; ++i) to[i] = from[i] * scale;
}

constexpr int kPairTile = 64;   // of the bfloat16 path: its centroids of a tile,
constexpr int kPairItems = 24;  // and items of a tile
constexpr int kTurned = 16;     // centroids turned at a time

// A worker's scratch. It comes out of the memory cap, so nothing here is larger than the speed needs.
struct AssignState {
  float* rows = nullptr;     // [kTurned][depth] centroids of unit length; one row on the bfloat16 path
  float* tile = nullptr;     // [depth][kTile] the same, channel by channel; or [padded depth / 2][kPairTile]
  float* cosines = nullptr;  // [kItemTile][kTile] or [kPairItems][kPairTile]
  float* centre = nullptr;   // [padded depth] of the bfloat16 path, as what follows
  float* left = nullptr;     // [padded depth]
  float* pairs = nullptr;    // [kTurned][padded depth / 2]
  void carve(Carver& carver, int depth, bool with_pairs) {
    const size_t padded = static_cast<size_t>(round_up(depth, 32));
    rows = carver.take<float>(with_pairs ? padded : static_cast<size_t>(depth) * kTurned);
    tile = carver.take<float>(padded * kTile);
    cosines = carver.take<float>(with_pairs ? kPairItems * kPairTile : kItemTile * kTile);
    if (!with_pairs) return;
    centre = carver.take<float>(padded);
    left = carver.take<float>(padded);
    pairs = carver.take<float>(padded / 2 * kTurned);
  }
};

// One item as the product reads it: [key of unit length | value of unit length x value_weight].
inline void unit_item(const AssignArgs& a, int item, float* to) {
  const float* const k = a.k + item * a.stride;
  scale_row(k, a.dim, inverse_norm(k, a.dim), to);
  if (a.value_weight == 0) return;
  const float* const v = a.v + item * a.stride;
  scale_row(v, a.dim, inverse_norm(v, a.dim) * a.value_weight, to + a.dim);
}

// A row of a table at unit length; returns what it was scaled with.
MOSAIC_INLINE float unit_part(const half_t* table, int row, int dim, float* to) {
  widen(table + static_cast<size_t>(row) * dim, dim, to);
  const float scale = inverse_norm(to, dim);
  scale_row(to, dim, scale, to);
  return scale;
}

// Candidate `at` of the list in the same form: [mean key of unit length | mean value of unit length].
inline void unit_centroid(const AssignArgs& a, int at, float* to) {
  const int row = a.rows != nullptr ? a.rows[at] : at;
  unit_part(a.mean_k, row, a.dim, to);
  if (a.value_weight != 0) unit_part(a.mean_v, row, a.dim, to + a.dim);
}

// Candidates [begin, begin + 32) of the list, at most, into s.tile; lanes without one hold zeros.
inline void fill_centroids(const AssignArgs& a, int begin, int end, AssignState& s) {
  const int depth = a.value_weight != 0 ? 2 * a.dim : a.dim;
  for (int group = 0; group < kTile; group += kTurned) {
    for (int i = 0; i < kTurned; ++i) {
      float* const to = s.rows + static_cast<size_t>(i) * depth;
      if (begin + group + i < end) {
        unit_centroid(a, begin + group + i, to);
      } else {
        clear(to, depth);
      }
    }
    transpose(s.rows, static_cast<size_t>(depth), kTurned, depth, s.tile + group, kTile);
  }
}

// Best of candidates [begin, end) for every item. items: [N][depth] as unit_item made them.
inline void assign_chunk(const AssignArgs& a, const float* items, int begin, int end, float* best, int32_t* best_row,
                         AssignState& s) {
  const int depth = a.value_weight != 0 ? 2 * a.dim : a.dim;
  for (int i = 0; i < a.items; ++i) {
    best[i] = kMinusInfinity;
    best_row[i] = kNone;
  }
  for (int first = begin; first < end; first += kTile) {
    fill_centroids(a, first, end, s);
    const int candidates = least(kTile, end - first), lanes = round_up(candidates, kLanes);
    for (int i0 = 0; i0 < a.items; i0 += kItemTile) {
      const int count = least(kItemTile, a.items - i0);
      gemm({items + static_cast<size_t>(i0) * depth, static_cast<size_t>(depth), s.tile, kTile, s.cosines, kTile, depth,
            nullptr},
           count, lanes);
      for (int i = 0; i < count; ++i) {
        const float* const cosine = s.cosines + i * kTile;
        Vec high = load(cosine);
        for (int at = kLanes; at < lanes; at += kLanes) high = stdx::max(high, load(cosine + at));
        if (stdx::none_of(high >= best[i0 + i])) continue;
        for (int lane = 0; lane < candidates; ++lane) {
          const int row = a.rows != nullptr ? a.rows[first + lane] : first + lane;
          if (cosine[lane] > best[i0 + i] || (cosine[lane] == best[i0 + i] && row < best_row[i0 + i])) {
            best[i0 + i] = cosine[lane];
            best_row[i0 + i] = row;
          }
        }
      }
    }
  }
}

inline float similarity_simd(const float* xk, const float* xv, const float* ck, const float* cv, int dim,
                             float weight) {
  const float key = dot(xk, ck, dim) * inverse_norm(xk, dim) * inverse_norm(ck, dim);
  if (weight == 0) return key;
  return (key + weight * dot(xv, cv, dim) * inverse_norm(xv, dim) * inverse_norm(cv, dim)) / (1.0f + weight);
}

// mean <- (n mean + x) / (n + 1)
MOSAIC_INLINE void absorb(float n, const float* x, int dim, float* mean) {
  int c = 0;
  for (; c + kLanes <= dim; c += kLanes) store(mean + c, (n * load(mean + c) + load(x + c)) / (n + 1));
  for (; c < dim; ++c) mean[c] = (n * mean[c] + x[c]) / (n + 1);
}

// All items of one row, in order, beginning with item `first`. mean: [2 dim] scratch.
inline void update_row(const UpdateArgs& u, int first, float* mean) {
  const int row = u.labels[first], d = u.dim;
  half_t* const mean_k = u.mean_k + static_cast<size_t>(row) * d;
  half_t* const mean_v = u.mean_v + static_cast<size_t>(row) * d;
  widen(mean_k, d, mean);
  widen(mean_v, d, mean + d);
  for (int i = first; i < u.items; ++i) {
    if (u.labels[i] != row) continue;
    const float n = static_cast<float>(u.count[row]);
    const float* const k = u.k + i * u.stride;
    const float* const v = u.v + i * u.stride;
    absorb(n, k, d, mean);
    absorb(n, v, d, mean + d);
    const float distance = 2.0f - 2.0f * similarity_simd(k, v, mean, mean + d, d, u.value_weight);
    u.variance[row] = (n * u.variance[row] + (distance > 0 ? distance : 0.0f)) / (n + 1);
    u.count[row] += 1;
  }
  for (int c = 0; c < d; ++c) {
    mean_k[c] = float_to_half(mean[c]);
    mean_v[c] = float_to_half(mean[d + c]);
  }
}

}  // namespace
}  // namespace mosaic::cpu
