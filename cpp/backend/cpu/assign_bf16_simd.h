// assign where the machine multiplies pairs of bfloat16: four times the rate of fp32, but only 8 bits of each factor.
// So the product only says who can be best: its error is bounded by 2^-7 |x| |c|, and every centroid within that of the
// best is compared again in fp32. What the answer is never depends on bfloat16. Keys share large offsets and their
// centroids lie in a narrow cone, where that bound would spare nobody; so a common centre is taken off the centroids
// first (x.c = x.centre + x.(c - centre), the first term exact), and the bound shrinks with what is left.
#pragma once

#include "backend/cpu/assign_simd.h"

#if defined(__AVX512BF16__)
namespace mosaic::cpu {
namespace {

constexpr float kProductError = 0x1.02p-7f;  // both factors rounded to 8 bits, and the sums

// n floats (a multiple of 32) to n / 2 pairs.
MOSAIC_INLINE void to_pairs(const float* from, int n, float* to) {
  for (int i = 0; i < n; i += 32) {
    const __m512bh pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i));
    store(to + i / 2, std::bit_cast<Vec>(pairs));
  }
}

// One item, zero-padded to whole vectors.
MOSAIC_INLINE void item_pairs(const float* item, int depth, float* to) {
  int i = 0;
  for (; i + 32 <= depth; i += 32) to_pairs(item + i, 32, to + i / 2);
  if (i == depth) return;
  float rest[32] = {};
  for (int c = i; c < depth; ++c) rest[c - i] = item[c];
  to_pairs(rest, 32, to + i / 2);
}

// c[Rows][kPairTile] = a tile. Six rows by four vectors: of the 32 registers, 24 are sums.
template <int Rows>
inline void pair_rows(const float* a, size_t a_stride, const float* tile, int pairs, float* c) {
  __m512 sum[Rows][4];
  for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = sum[r][2] = sum[r][3] = _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k, tile += kPairTile) {
    __m512bh b[4];
    for (int v = 0; v < 4; ++v) b[v] = std::bit_cast<__m512bh>(load(tile + v * 16));
    for (int r = 0; r < Rows; ++r) {
      const auto x = std::bit_cast<__m512bh>(_mm512_set1_ps(a[r * a_stride + k]));
      for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], x, b[v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(c + r * kPairTile + v * 16, sum[r][v]);
  }
}

inline void pair_product(const float* a, size_t a_stride, int rows, const float* tile, int pairs, float* c) {
  int r = 0;
  for (; r + 6 <= rows; r += 6) pair_rows<6>(a + r * a_stride, a_stride, tile, pairs, c + r * kPairTile);
  a += r * a_stride;
  c += r * kPairTile;
  switch (rows - r) {
    case 1:
      return pair_rows<1>(a, a_stride, tile, pairs, c);
    case 2:
      return pair_rows<2>(a, a_stride, tile, pairs, c);
    case 3:
      return pair_rows<3>(a, a_stride, tile, pairs, c);
    case 4:
      return pair_rows<4>(a, a_stride, tile, pairs, c);
    case 5:
      return pair_rows<5>(a, a_stride, tile, pairs, c);
    default:
      return;
  }
}

// x . c for a row of the tables.
MOSAIC_INLINE float dot_half(const float* x, const half_t* c, int n) {
  Vec sum0(0.0f), sum1(0.0f);
  int i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum0 += load(x + i) * load(c + i);
    sum1 += load(x + i + kLanes) * load(c + i + kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) sum0 += load(x + i) * load(c + i);
  float sum = stdx::reduce(sum0 + sum1);
  for (; i < n; ++i) sum += x[i] * half_to_float(c[i]);
  return sum;
}

// The centroids of a tile: what re-comparing one in fp32 needs, and how far its product may be off.
struct PairLanes {
  alignas(64) float error[kPairTile];  // -inf: nothing in this lane
  float k_scale[kPairTile];            // 1 / |mean key|
  float v_scale[kPairTile];            // 1 / |mean value|
  int32_t row[kPairTile];
};

// Candidates [begin, end) of the list, at most kPairTile, less the centre, as pairs into s.tile.
inline void fill_pairs(const AssignArgs& a, int begin, int end, AssignState& s, PairLanes& lanes) {
  const int depth = a.value_weight != 0 ? 2 * a.dim : a.dim, padded = round_up(depth, 32);
  const size_t pair_stride = static_cast<size_t>(padded) / 2;
  const float item_norm = sqrtf(1 + a.value_weight * a.value_weight);
  for (int lane = 0; lane < kPairTile; ++lane) {
    lanes.error[lane] = kMinusInfinity;
    clear(s.left, padded);
    if (begin + lane < end) {
      lanes.row[lane] = a.rows != nullptr ? a.rows[begin + lane] : begin + lane;
      lanes.k_scale[lane] = unit_part(a.mean_k, lanes.row[lane], a.dim, s.rows);
      if (a.value_weight != 0) lanes.v_scale[lane] = unit_part(a.mean_v, lanes.row[lane], a.dim, s.rows + a.dim);
      for (int c = 0; c < depth; ++c) s.left[c] = s.rows[c] - s.centre[c];
      lanes.error[lane] = kProductError * item_norm * sqrtf(dot(s.left, s.left, depth)) + 4e-6f;
    }
    to_pairs(s.left, padded, s.pairs + static_cast<size_t>(lane % kTurned) * pair_stride);
    if (lane % kTurned != kTurned - 1) continue;
    transpose(s.pairs, pair_stride, kTurned, padded / 2, s.tile + lane + 1 - kTurned, kPairTile);
  }
}

// As assign_chunk. pairs: [N][padded / 2] the items again, where padded is depth rounded up to 32.
inline void assign_chunk_bf16(const AssignArgs& a, const float* items, const float* pairs, int begin, int end,
                              float* best, int32_t* best_row, float* shift, AssignState& s) {
  const int depth = a.value_weight != 0 ? 2 * a.dim : a.dim, padded = round_up(depth, 32);
  const size_t pair_stride = static_cast<size_t>(padded) / 2;
  // The centre: the mean of some centroids, spread over the list.
  clear(s.centre, padded);
  const int samples = least(32, end - begin);
  for (int i = 0; i < samples; ++i) {
    unit_centroid(a, begin + static_cast<int>(static_cast<int64_t>(end - begin) * i / samples), s.rows);
    for (int c = 0; c < depth; ++c) s.centre[c] += s.rows[c] / static_cast<float>(samples);
  }
  for (int i = 0; i < a.items; ++i) {
    best[i] = kMinusInfinity;
    best_row[i] = kNone;
    shift[i] = dot(items + static_cast<size_t>(i) * depth, s.centre, depth);
  }
  PairLanes lanes;
  for (int first = begin; first < end; first += kPairTile) {
    fill_pairs(a, first, end, s, lanes);
    for (int i0 = 0; i0 < a.items; i0 += kPairItems) {
      const int count = least(kPairItems, a.items - i0);
      pair_product(pairs + i0 * pair_stride, pair_stride, count, s.tile, padded / 2, s.cosines);
      for (int i = i0; i < i0 + count; ++i) {
        const float* const about = s.cosines + (i - i0) * kPairTile;
        const float known = best[i] - shift[i];
        Vec high(kMinusInfinity), low(kMinusInfinity);  // the best each lane may be, and is at least
        for (int at = 0; at < kPairTile; at += kLanes) {
          high = stdx::max(high, load(about + at) + load(lanes.error + at));
          low = stdx::max(low, load(about + at) - stdx::abs(load(lanes.error + at)));
        }
        if (stdx::none_of(high >= known)) continue;
        const float bar = most_of(known, stdx::hmax(low));
        for (int at = 0; at < kPairTile; at += kLanes) {
          const __m512 upper = static_cast<__m512>(load(about + at) + load(lanes.error + at));
          uint32_t within = _mm512_cmp_ps_mask(upper, _mm512_set1_ps(bar), _CMP_GE_OQ);
          for (; within != 0; within &= within - 1) {
            const int lane = at + __builtin_ctz(within), row = lanes.row[lane];
            const float* const item = items + static_cast<size_t>(i) * depth;
            const size_t table = static_cast<size_t>(row) * a.dim;
            float cosine = dot_half(item, a.mean_k + table, a.dim) * lanes.k_scale[lane];
            if (depth > a.dim) cosine += dot_half(item + a.dim, a.mean_v + table, a.dim) * lanes.v_scale[lane];
            if (cosine > best[i] || (cosine == best[i] && row < best_row[i])) {
              best[i] = cosine;
              best_row[i] = row;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mosaic::cpu
#endif
