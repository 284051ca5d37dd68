// Query rows of attend on tensor cores (attend_tensor.h): what a warp holds of 16 of them, and how they get there.
#pragma once

#include "backend/cuda/attend_parts.h"
#include "backend/cuda/attend_unit.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kGroupRows = 16;
inline constexpr int kSteps = kMostTensorHead / 16;            // of channels; a head may have fewer
inline constexpr float kKeys = 0x1p-6f;                        // what a key is multiplied with
inline constexpr float kValues = 0x1p-2f, kWeights = 0x1p10f;  // their product is kSum, in either kind of unit
inline constexpr float kExactValues = 0x1p-6f, kExactWeights = 0x1p14f;
inline constexpr float kSum = 0x1p8f;
inline constexpr float kLow = 0x1p11f;  // low halves are kept as many times larger, so that they are normal numbers too

MOSAIC_HD inline int channel_steps(int d) { return (d + 15) / 16; }
MOSAIC_DEVICE float high_of(uint32_t word, int i) { return simt::widen(static_cast<half_t>(word >> 16 * i)); }

// Two numbers as two halves each: *high, and what it leaves of them, times kLow.
MOSAIC_DEVICE uint32_t pack_low(float x, float y, uint32_t high) {
  return simt::pack((x - high_of(high, 0)) * kLow, (y - high_of(high, 1)) * kLow);
}
MOSAIC_DEVICE float saturate(float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); }
MOSAIC_DEVICE float power_of_two(uint32_t biased) { return std::bit_cast<float>(biased << 23); }

// A warp's 16 query rows and what they have attended so far, spread over its lanes as fragments: a lane has parts of
// rows g and g + 8, g = lane / 4.
struct Rows {
  uint32_t high[kSteps][4];  // queries
  float scale[2];            // of a logit
  int token[2];              // of each row
  float top[2], total[2];    // total: of the lane's own keys
  float sum[2 * kSteps][4];  // kSum x weighted values; channels 8n + 2 (lane % 4), + 1
};
// What halves leave of the queries, of a group of rows in shared memory: exact units alone read it, and 32 registers more
// would spill.
using LowQueries = uint32_t[simt::kWarp][4];  // [channel steps], a lane's fragment
MOSAIC_HD inline size_t low_bytes(int d, int groups) {
  return static_cast<size_t>(channel_steps(d) * groups) * sizeof(LowQueries);
}

// Rows [first, first + 16) of those before `end`, rotated; zeros beyond. They pass through `space`, of the warp's own,
// eight at a time: [8][16 channel_steps + 4] floats. low: of the rows, or null where another warp writes it; it is there after
// the next barrier. Every warp of the block calls it.
MOSAIC_DEVICE void load_rows(const AttendArgs& a, const RopeTable& rope, int kv_head, int first, int end, float* space,
                             LowQueries* low, Rows* to) {
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads, pitch = 16 * channel_steps(d) + 4;
  const int lane = simt::thread() % simt::kWarp, t = 2 * (lane % 4);
  const Channels channels(rope, d);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    for (int i = lane; i < 8 * pitch; i += simt::kWarp) space[i] = 0;
    simt::barrier();
    for (int i = lane; i < 8 * channels.count; i += simt::kWarp) {
      const int row = first + 8 * r + i / channels.count, item = i % channels.count, c = channels.first(item);
      if (row >= end) break;
      const int token = row / group;
      const float* const q =
          a.q + static_cast<size_t>(token) * a.q_stride + static_cast<size_t>(kv_head * group + row % group) * d;
      float* const turned = space + i / channels.count * pitch;
      float x = q[c] * (a.scale * kLog2E);
      if (item < channels.pairs) {
        float y = q[channels.second(item)] * (a.scale * kLog2E);
        turn(rope, item, table_at(rope, a.q_positions[3 * token + rope.spec().axis_of(item)]), &x, &y);
        turned[channels.second(item)] = y;
      }
      turned[c] = x;
    }
    simt::barrier();
    const float* const mine = space + lane / 4 * pitch;
    float most = 0;
    for (int c = lane % 4; c < d; c += 4) most = fmaxf(most, fabsf(mine[c]));
    const uint32_t bits = std::bit_cast<uint32_t>(simt::max_lanes(most, 4)) >> 23;
    const uint32_t exponent = bits < 6 ? 6 : bits > 254 ? 254 : bits;
    const float factor = power_of_two(260 - exponent);  // most x factor is in [2^6, 2^7)
    const int row = first + lane / 4 + 8 * r;
    to->scale[r] = power_of_two(exponent);  // 1 / (factor x kKeys)
    to->token[r] = row < end ? row / group : 0;
    to->top[r] = -INFINITY, to->total[r] = 0;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool there = s < channel_steps(d);
        const float x = there ? mine[16 * s + 8 * i + t] * factor : 0.0f;
        const float y = there ? mine[16 * s + 8 * i + t + 1] * factor : 0.0f;
        to->high[s][2 * i + r] = simt::pack(x, y);
        if (there && low != nullptr) low[s][lane][2 * i + r] = pack_low(x, y, to->high[s][2 * i + r]);
      }
    }
    simt::barrier();
  }
#pragma unroll
  for (int n = 0; n < 2 * kSteps; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to->sum[n][i] = 0;
  }
}

}  // namespace mosaic::MOSAIC_SIMT
