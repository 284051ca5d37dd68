// The one matrix kernel: C[m][n] (+)= A[m][k] B[k][n], where a row of A is read number by number and B and C by vectors.
// Logits (A queries, B a tile of keys, channel by channel), outputs (A weights, B a tile of values, token by token) and
// similarities (A items, B a tile of centroids) are all this shape.
#pragma once

#include "backend/cpu/simd.h"

namespace mosaic::cpu {
namespace {

// Rows x vectors of C held in registers: 16 sums hide the latency of fused multiply-add where there are 32 registers.
constexpr int kGemmRows = kLanes == 8 ? 5 : kLanes == 4 ? 4 : 8;
constexpr int kGemmVectors = 2;

struct Gemm {
  const float* a;
  size_t a_stride;
  const float* b;
  size_t b_stride;
  float* c;
  size_t c_stride;
  int k;
  const float* keep;  // C = keep[m] * C + A B; null: C = A B
};

template <int Rows, int Vectors>
MOSAIC_INLINE void gemm_tile(const Gemm& g, int row, int column) {
  const float* const a = g.a + row * g.a_stride;
  const float* b = g.b + column;
  float* const c = g.c + row * g.c_stride + column;
  Vec sum[Rows][Vectors];
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      sum[r][v] = g.keep != nullptr ? load(c + r * g.c_stride + v * kLanes) * g.keep[row + r] : Vec(0.0f);
    }
  }
  for (int k = 0; k < g.k; ++k, b += g.b_stride) {
    Vec line[Vectors];
    for (int v = 0; v < Vectors; ++v) line[v] = load(b + v * kLanes);
    for (int r = 0; r < Rows; ++r) {
      const Vec x(a[r * g.a_stride + k]);
      for (int v = 0; v < Vectors; ++v) sum[r][v] += x * line[v];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) store(c + r * g.c_stride + v * kLanes, sum[r][v]);
  }
}

template <int Rows>
void gemm_rows(const Gemm& g, int row, int n) {
  int column = 0;
  for (; column + kGemmVectors * kLanes <= n; column += kGemmVectors * kLanes) {
    gemm_tile<Rows, kGemmVectors>(g, row, column);
  }
  for (; column < n; column += kLanes) gemm_tile<Rows, 1>(g, row, column);
}

// n is a multiple of kLanes: tiles are padded.
inline void gemm(const Gemm& g, int m, int n) {
  int row = 0;
  for (; row + kGemmRows <= m; row += kGemmRows) gemm_rows<kGemmRows>(g, row, n);
  switch (m - row) {
    case 1:
      return gemm_rows<1>(g, row, n);
    case 2:
      return gemm_rows<2>(g, row, n);
    case 3:
      return gemm_rows<3>(g, row, n);
    case 4:
      return gemm_rows<4>(g, row, n);
    case 5:
      return gemm_rows<5>(g, row, n);
    case 6:
      return gemm_rows<6>(g, row, n);
    case 7:
      return gemm_rows<7>(g, row, n);
    default:
      return;
  }
}

}  // namespace
}  // namespace mosaic::cpu
