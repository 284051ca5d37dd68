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

template <int Rows>
inline void pair_product(const float* a, size_t a_stride, const float* tile, int pairs, float* c) {
  __m512 sum[Rows][2];
  for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k) {
    const auto b0 = std::bit_cast<__m512bh>(load(tile + k * kTile)), b1 = std::bit_cast<__m512bh>(load(tile + k * kTile + 16));
    for (int r = 0; r < Rows; ++r) {
      const auto x = std::bit_cast<__m512bh>(_mm512_set1_ps(a[r * a_stride + k]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    _mm512_storeu_ps(c + r * kTile, sum[r][0]);
    _mm512_storeu_ps(c + r * kTile + 16, sum[r][1]);
  }
}

// As assign_chunk. pairs: [N][padded / 2] the items again, where padded is depth rounded up to 32.
inline void assign_chunk_bf16(const AssignArgs& a, const float* items, const float* pairs, int begin, int end,
                              float* best, int32_t* best_row, float* shift, AssignState& s) {
  const int depth = a.value_weight != 0 ? 2 * a.dim : a.dim, padded = round_up(depth, 32);
  const size_t pair_stride = static_cast<size_t>(padded) / 2;
  const float item_norm = sqrtf(1 + a.value_weight * a.value_weight);
  // The centre: the mean of some centroids, spread over the list.
  clear(s.centre, padded);
  const int samples = least(kTile, end - begin);
  for (int i = 0; i < samples; ++i) {
    unit_centroid(a, begin + static_cast<int>(static_cast<int64_t>(end - begin) * i / samples), s.rows);
    for (int c = 0; c < depth; ++c) s.centre[c] += s.rows[c] / static_cast<float>(samples);
  }
  for (int i = 0; i < a.items; ++i) {
    best[i] = kMinusInfinity;
    best_row[i] = kNone;
    shift[i] = dot(items + static_cast<size_t>(i) * depth, s.centre, depth);
  }
  float error[kTile];
  for (int first = begin; first < end; first += kTile) {
    const int candidates = least(kTile, end - first);
    for (int lane = 0; lane < kTile; ++lane) {
      float* const row = s.rows + static_cast<size_t>(lane) * depth;
      error[lane] = kMinusInfinity;  // an empty lane is never within reach of the best
      clear(s.left, padded);
      if (lane < candidates) {
        unit_centroid(a, first + lane, row);
        for (int c = 0; c < depth; ++c) s.left[c] = row[c] - s.centre[c];
        error[lane] = kProductError * item_norm * sqrtf(dot(s.left, s.left, depth)) + 4e-6f;
      }
      to_pairs(s.left, padded, s.pairs + static_cast<size_t>(lane) * pair_stride);
    }
    transpose(s.pairs, pair_stride, kTile, padded / 2, s.tile, kTile);
    for (int i0 = 0; i0 < a.items; i0 += kItemBlock) {
      const int count = least(kItemBlock, a.items - i0);
      int i = 0;
      for (; i + 8 <= count; i += 8) {
        pair_product<8>(pairs + (i0 + i) * pair_stride, pair_stride, s.tile, padded / 2, s.cosines + i * kTile);
      }
      for (; i < count; ++i) {
        pair_product<1>(pairs + (i0 + i) * pair_stride, pair_stride, s.tile, padded / 2, s.cosines + i * kTile);
      }
      for (i = 0; i < count; ++i) {
        const float* const about = s.cosines + i * kTile;
        float& top = best[i0 + i];
        const float known = top - shift[i0 + i];
        const Vec high0 = load(about) + load(error), high1 = load(about + 16) + load(error + 16);
        if (stdx::none_of(stdx::max(high0, high1) >= known)) continue;
        const Vec low = stdx::max(load(about) - stdx::abs(load(error)), load(about + 16) - stdx::abs(load(error + 16)));
        const float bar = most_of(known, stdx::hmax(low));  // someone is at least this good
        uint32_t lanes = _mm512_cmp_ps_mask(static_cast<__m512>(high0), _mm512_set1_ps(bar), _CMP_GE_OQ) |
                         static_cast<uint32_t>(_mm512_cmp_ps_mask(static_cast<__m512>(high1), _mm512_set1_ps(bar), _CMP_GE_OQ)) << 16;
        for (; lanes != 0; lanes &= lanes - 1) {
          const int lane = __builtin_ctz(lanes), row = a.rows != nullptr ? a.rows[first + lane] : first + lane;
          const float cosine = dot(items + static_cast<size_t>(i0 + i) * depth, s.rows + static_cast<size_t>(lane) * depth, depth);
          if (cosine > top || (cosine == top && row < best_row[i0 + i])) {
            top = cosine;
            best_row[i0 + i] = row;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mosaic::cpu
#endif
