// The signals policies rank tokens by, by vectors. An item's result does not depend on what stands beside it, so equal
// items stay equal however the work is cut.
#pragma once

#include <math.h>

#include "backend/cpu/gemm_simd.h"
#include "backend/ops.h"

namespace mosaic::cpu {
namespace {

// Sums over one row: of x * x, and of x * y where y is given.
struct RowSums {
  float squares = 0, dot = 0;
};
template <bool Dot>
MOSAIC_INLINE RowSums row_sums(const float* x, const float* y, int dim) {
  Vec squares[2] = {Vec(0.0f), Vec(0.0f)}, dots[2] = {Vec(0.0f), Vec(0.0f)};
  int c = 0;
  auto add = [&](int at, int which) {
    const Vec value = load(x + at);
    squares[which] += value * value;
    if constexpr (Dot) dots[which] += value * load(y + at);
  };
  for (; c + 2 * kLanes <= dim; c += 2 * kLanes) {
    add(c, 0);
    add(c + kLanes, 1);
  }
  for (; c + kLanes <= dim; c += kLanes) add(c, 0);
  RowSums sums{stdx::reduce(squares[0] + squares[1]), Dot ? stdx::reduce(dots[0] + dots[1]) : 0.0f};
  for (; c < dim; ++c) {
    sums.squares += x[c] * x[c];
    if constexpr (Dot) sums.dot += x[c] * y[c];
  }
  return sums;
}

// Items whose place falls to this part: places are independent, and each place's items keep their order.
inline void add_recent_part(const RecentKeysArgs& a, int part, int parts) {
  for (int i = 0; i < a.items; ++i) {
    const int place = a.place[i];
    if (place == kNone || place % parts != part) continue;
    const float* const k = a.k + i * a.stride;
    const float length = sqrtf(row_sums<false>(k, nullptr, a.dim).squares);
    ++a.count[place];
    if (!(length > 0)) continue;
    float* const sum = a.sum + static_cast<size_t>(place) * a.dim;
    const float scale = 1.0f / length;
    int c = 0;
    for (; c + kLanes <= a.dim; c += kLanes) store(sum + c, load(sum + c) + load(k + c) * scale);
    for (; c < a.dim; ++c) sum[c] += k[c] * scale;
  }
}

inline void redundancy_range(const RedundancyArgs& a, int begin, int end) {
  for (int i = begin; i < end; ++i) {
    a.score[i] = 0;
    if (a.place[i] == kNone) continue;
    const float* const sum = a.sum + static_cast<size_t>(a.place[i]) * a.dim;
    const RowSums sums = row_sums<true>(a.k + i * a.stride, sum, a.dim);
    const float length = sqrtf(sums.squares) * static_cast<float>(a.count[a.place[i]]);
    if (length > 0) a.score[i] = -sums.dot / length;
  }
}

inline void norm_range(const NormArgs& a, int begin, int end) {
  for (int i = begin; i < end; ++i) a.norm[i] = sqrtf(row_sums<false>(a.x + i * a.stride, nullptr, a.dim).squares);
}

// What is removed is a circulant matrix times x. Its rows are one table, shifted: with the rows in falling order the
// element (row, column) is table[row + column], which the matrix kernel reads as rows that stand one apart.
constexpr int kMaxSpectral = 1024;  // tokens; longer ones go the plain way

// energy of tokens [begin, end). table: [2 n - 1], table[n - 1 + shift]. dim >= kLanes.
inline void spectral_range(const SpectralArgs& a, const float* table, int begin, int end) {
  constexpr int kColumns = kGemmVectors * kLanes;
  const int n = a.items;
  float low[kGemmRows * kColumns];
  for (int last = end - 1; last >= begin; last -= kGemmRows) {
    const int rows = least(kGemmRows, last - begin + 1);
    float total[kGemmRows] = {};
    for (int column = 0; column < a.dim;) {
      // The last columns are taken again from where a whole vector fits, and those counted already are skipped.
      const int from = least(column, a.dim - kLanes), width = from + kColumns <= a.dim ? kColumns : kLanes;
      const int skip = column - from;
      gemm({table + n - 1 - last, 1, a.x + from, a.stride, low, kColumns, n, nullptr}, rows, width);
      for (int r = 0; r < rows; ++r) {
        const float* const x = a.x + (last - r) * a.stride + from;
        float* const to = low + r * kColumns;
        for (int c = 0; c < width; c += kLanes) {
          const Vec high = load(x + c) - load(to + c);
          store(to + c, stdx::max(high, -high));
        }
        for (int c = 0; c < skip; ++c) to[c] = 0;
        Vec sum(0.0f);
        for (int c = 0; c < width; c += kLanes) sum += load(to + c);
        total[r] += stdx::reduce(sum);
      }
      column = from + width;
    }
    for (int r = 0; r < rows; ++r) a.energy[last - r] = total[r] / static_cast<float>(a.dim);
  }
}

}  // namespace
}  // namespace mosaic::cpu
