// score by vectors: the dot mode is one long product per row; the mass mode turns centroids into tiles like assign,
// keeps the logits of a few query rows over all centroids, and softmaxes each.
#pragma once

#include "backend/cpu/assign_simd.h"

namespace mosaic::cpu {
namespace {

constexpr int kScoreRows = 8;  // query rows whose logits over all centroids are held at once

struct ScoreState {
  float* q = nullptr;       // [kScoreRows][D]
  float* rows = nullptr;    // [kTurned][D] before the transpose
  float* tile = nullptr;    // [D][kTile]
  float* logits = nullptr;  // [kScoreRows][C padded]
  float* mass = nullptr;    // [C padded] of this chunk
  void carve(Carver& carver, int d, int rows_limit) {
    const size_t padded = static_cast<size_t>(round_up(rows_limit, kTile));
    q = carver.take<float>(static_cast<size_t>(kScoreRows) * d);
    rows = carver.take<float>(static_cast<size_t>(kTurned) * d);
    tile = carver.take<float>(static_cast<size_t>(kTile) * d);
    logits = carver.take<float>(kScoreRows * padded);
    mass = carver.take<float>(padded);
  }
};

// q . mean_k over all kv heads at once; mean_q: [Hkv * D].
inline void score_dots(const ScoreArgs& a, const float* mean_q, int begin, int end) {
  const int n = a.shape.row();
  for (int i = begin; i < end; ++i) {
    const half_t* const k = a.mean_k + static_cast<size_t>(a.rows != nullptr ? a.rows[i] : i) * n;
    Vec sum0(0.0f), sum1(0.0f), sum2(0.0f), sum3(0.0f);
    int c = 0;
    for (; c + 4 * kLanes <= n; c += 4 * kLanes) {
      sum0 += load(mean_q + c) * load(k + c);
      sum1 += load(mean_q + c + kLanes) * load(k + c + kLanes);
      sum2 += load(mean_q + c + 2 * kLanes) * load(k + c + 2 * kLanes);
      sum3 += load(mean_q + c + 3 * kLanes) * load(k + c + 3 * kLanes);
    }
    for (; c + kLanes <= n; c += kLanes) sum0 += load(mean_q + c) * load(k + c);
    float sum = stdx::reduce((sum0 + sum1) + (sum2 + sum3));
    for (; c < n; ++c) sum += mean_q[c] * half_to_float(k[c]);
    a.score[i] = sum;
  }
}

// Adds the mass that query rows [first, first + count) of one kv head pay to every centroid. Row = token * group + g.
inline void score_mass(const ScoreArgs& a, int head, int first, int count, ScoreState& s) {
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads, padded = round_up(a.n_rows, kTile);
  for (int r = 0; r < count; ++r) {
    const int token = (first + r) / group, member = (first + r) % group;
    scale_row(a.q + token * a.q_stride + (static_cast<size_t>(head) * group + member) * d, d, a.scale * 1.44269504f,
              s.q + static_cast<size_t>(r) * d);
  }
  for (int at = 0; at < a.n_rows; at += kTile) {
    const int candidates = least(kTile, a.n_rows - at);
    for (int i = 0; i < kTile; ++i) {
      const int c = at + least(i, candidates - 1);  // lanes past the end repeat the last
      const size_t row = static_cast<size_t>(a.rows != nullptr ? a.rows[c] : c);
      widen(a.mean_k + (row * a.shape.heads + head) * d, d, s.rows + static_cast<size_t>(i % kTurned) * d);
      if (i % kTurned != kTurned - 1) continue;
      transpose(s.rows, static_cast<size_t>(d), kTurned, d, s.tile + i + 1 - kTurned, kTile);
    }
    gemm({s.q, static_cast<size_t>(d), s.tile, kTile, s.logits + at, static_cast<size_t>(padded), d, nullptr}, count,
         kTile);
  }
  for (int r = 0; r < count; ++r) {
    float* const logit = s.logits + static_cast<size_t>(r) * padded;
    if (a.row_bias != nullptr) {
      for (int i = 0; i < a.n_rows; ++i) logit[i] += a.row_bias[i] * 1.44269504f;
    }
    for (int i = a.n_rows; i < padded; ++i) logit[i] = kMinusInfinity;
    Vec high = load(logit);
    for (int i = kLanes; i < padded; i += kLanes) high = stdx::max(high, load(logit + i));
    const float top = stdx::hmax(high);
    Vec total(0.0f);
    for (int i = 0; i < padded; i += kLanes) {
      const Vec weight = exp2(load(logit + i) - top);
      store(logit + i, weight);
      total += weight;
    }
    const float share = 1.0f / stdx::reduce(total);
    for (int i = 0; i < padded; i += kLanes) store(s.mass + i, load(s.mass + i) + load(logit + i) * share);
  }
}

}  // namespace
}  // namespace mosaic::cpu
