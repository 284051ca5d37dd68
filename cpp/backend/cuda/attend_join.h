// How the parts that splits left of a query row become its out and lse.
#pragma once

#include "backend/cuda/attend_parts.h"
#include "backend/cuda/record_row.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kJoinThreads = 128, kJoinWarps = kJoinThreads / simt::kWarp;

// Of join_row's shared memory: [splits], [kJoinWarps][d], [2 kJoinWarps].
inline size_t join_bytes(int splits, int d) {
  return static_cast<size_t>(splits + kJoinWarps * (d + 2)) * sizeof(float);
}

// The splits of one query row, by a block of kJoinThreads -> out, lse; lse alone without values. Threads weigh splits; then
// warps take splits and lanes channels, so that a row's parts are read side by side.
MOSAIC_DEVICE void join_row(const AttendArgs& a, const Parts& parts, size_t row, int splits, bool values) {
  const int d = a.shape.head_dim, warp = simt::thread() / simt::kWarp;
  const size_t rows = parts.rows;
  float* const weight = simt::shared<float>();
  float* const sums = weight + splits;
  float* const space = sums + kJoinWarps * d;
  float top = -INFINITY;
  for (int s = simt::thread(); s < splits; s += kJoinThreads) top = fmaxf(top, parts.lse[s * rows + row]);
  top = simt::max_lanes(top, simt::kWarp);
  if (lane() == 0) space[warp] = top;
  simt::barrier();
  for (int w = 0; w < kJoinWarps; ++w) top = fmaxf(top, space[w]);
  float total = 0;
  for (int s = simt::thread(); s < splits; s += kJoinThreads) {
    weight[s] = top == -INFINITY ? 0.0f : simt::exp2_of((parts.lse[s * rows + row] - top) * kLog2E);
    total += weight[s];
  }
  total = simt::sum_block(total, space + kJoinWarps);
  if (simt::thread() == 0) a.lse[row] = total > 0 ? top + simt::log2_of(total) * kLn2 : -INFINITY;
  if (!values) return;
  for (int c = lane(); c < d; c += simt::kWarp) {
    float sum = 0;
#pragma unroll 4  // loads in flight
    for (int s = warp; s < splits; s += kJoinWarps) {
      // A split that found nothing weighs nothing, whatever lies there.
      if (weight[s] > 0) sum += weight[s] * parts.out[(s * rows + row) * d + c];
    }
    sums[warp * d + c] = sum;
  }
  simt::barrier();
  float* const to = a.out + row / a.q_heads * a.q_stride + row % a.q_heads * d;
  for (int c = simt::thread(); c < d; c += kJoinThreads) {
    float sum = 0;
    for (int w = 0; w < kJoinWarps; ++w) sum += sums[w * d + c];
    to[c] = total > 0 ? sum / total : 0.0f;
  }
}

// lse of a query row, by an aligned group of `lanes` lanes, each of which has it.
MOSAIC_DEVICE float joined_lse(const Parts& parts, size_t row, int splits, int lanes) {
  const int first = simt::thread() % lanes;
  float top = -INFINITY, total = 0;
  for (int s = first; s < splits; s += lanes) top = fmaxf(top, parts.lse[s * parts.rows + row]);
  top = simt::max_lanes(top, lanes);
  for (int s = first; s < splits && top != -INFINITY; s += lanes)
    total += simt::exp2_of((parts.lse[s * parts.rows + row] - top) * kLog2E);
  total = simt::sum_lanes(total, lanes);
  return total > 0 ? top + simt::log2_of(total) * kLn2 : -INFINITY;
}

}  // namespace mosaic::MOSAIC_SIMT
