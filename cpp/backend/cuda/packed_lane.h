// What a lane of a warp holds while packed pages are attended (attend_packed.h has the layout), and its queries.
#pragma once

#include "backend/cuda/attend_parts.h"
#include "backend/cuda/packed_levels.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kPackedRows = 8, kPackedWarps = 4;
inline constexpr float kPackedKeys = 0x1p-8f;
inline constexpr uint32_t kPackedSigns = 0x1c001c00u;  // two of it

// What packed pages of a head were worth to eight rows, in shared memory: sums of values under 2^top, not yet divided.
template <int kD>
struct PackedSums {
  float sum[kPackedRows][kD];
  float top[kPackedRows], total[kPackedRows];
};
// Shared memory while packed pages are attended.
template <int kD>
struct PackedSpace {
  float query[kPackedRows][kD + 4];  // turned to their positions
  float factor[kPackedRows];         // what brings the row's largest number into [2^6, 2^7)
  PackedSums<kD> warp[kPackedWarps];
};

// Heads that packed_sums takes: all channels turn, in halves, and no position's coarse row is past ten bits. The tables have
// wide loads; runs of eight frequencies turn by one axis.
inline bool packs(const AttendArgs& a, const RopeTable& rope) {
  const RopeSpec& spec = rope.spec();
  const int d = a.shape.head_dim, n = spec.frequencies(), run = d / 16;
  if ((d != 64 && d != 128) || spec.layout != RopeLayout::kHalf || 2 * n != d) return false;
  if (reinterpret_cast<uintptr_t>(rope.fine(0)) % 16 != 0 || rope.max_position() >> rope.fine_bits() >= 1024)
    return false;
  for (int i = 0; i < n; ++i)
    if (spec.axis_of(i) != spec.axis_of(i / run * run)) return false;
  return a.tokens * (a.q_heads / a.shape.heads) <= kPackedRows;
}

template <int kD>
struct PackedLane {
  static constexpr int kBytes = kD / 16, kWords = kBytes / 4, kPairs = kD / 16;  // kPairs: of frequencies f, f + 1
  int g, t;
  int axis[2];
  uint32_t signs[2][2];              // right side of the transform's product
  uint32_t mean[kPairs][2];          // of channels f and f + D / 2, in the units of keys
  uint32_t flip[kPairs];             // where the signs of f and f + D / 2 differ
  uint32_t query[kPairs][2];         // of row g
  unsigned base;                     // whose coarse row they are turned back by
  float scale[2], top[2], total[2];  // of rows 2t and 2t + 1; total: of the lane's own tokens
  float sum[kD / 16][4];             // codes x rows

  // The first frequency of pair j: field j / (pairs / 2), then byte.
  MOSAIC_DEVICE int frequency(int j) const { return kD / 4 * (j / (kPairs / 2)) + kBytes * t + 2 * (j % (kPairs / 2)); }
};

template <int kD>
MOSAIC_DEVICE void begin_lane(const AttendArgs& a, const RopeTable& rope, int kv_head, const PackedSpace<kD>& space,
                              PackedLane<kD>* lane) {
  constexpr float kScale = kD == 128 ? 0.08838834764831845f : 0.125f;  // hadamard_scale
  const int at = simt::thread() % simt::kWarp;
  lane->g = at / 4, lane->t = at % 4;
  const bool odd = simt::ones(static_cast<unsigned>(lane->t & lane->g / 2)) % 2 == 1;
  for (int n = 0; n < 2; ++n) {
    for (int k = 0; k < 2; ++k) {
      const bool low = odd != (k == 1 && lane->g % 2 == 1), high = low != (n == 1);
      lane->signs[n][k] = kPackedSigns ^ (low ? 0x8000u : 0u) ^ (high ? 0x80000000u : 0u);
    }
  }
  const float* const mean = mean_of(a.key_mean, kv_head, kD);
  constexpr float kUnit = kPackedKeys * PlanePanel<5>::kScaleUnit / kScale;
#pragma unroll
  for (int j = 0; j < PackedLane<kD>::kPairs; ++j) {
    const int f = lane->frequency(j);
    const float first = hadamard_sign(f), second = hadamard_sign(f + 1);  // the query has them too
    const float m[4] = {mean != nullptr ? mean[f] * first : 0.0f, mean != nullptr ? mean[f + 1] * second : 0.0f,
                        mean != nullptr ? mean[f + kD / 2] * first : 0.0f,
                        mean != nullptr ? mean[f + kD / 2 + 1] * second : 0.0f};
    lane->mean[j][0] = simt::pack(m[0] * kUnit, m[1] * kUnit);
    lane->mean[j][1] = simt::pack(m[2] * kUnit, m[3] * kUnit);
    lane->flip[j] = (hadamard_sign(f + kD / 2) != first ? 0x8000u : 0u) |
                    (hadamard_sign(f + kD / 2 + 1) != second ? 0x80000000u : 0u);
  }
  lane->axis[0] = rope.spec().axis_of(lane->frequency(0));
  lane->axis[1] = rope.spec().axis_of(lane->frequency(PackedLane<kD>::kPairs / 2));
  lane->base = ~0u;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    lane->scale[r] = 1 / (space.factor[2 * lane->t + r] * kUnit);
    lane->top[r] = -INFINITY, lane->total[r] = 0;
  }
#pragma unroll
  for (int i = 0; i < kD / 4; ++i) lane->sum[i / 4][i % 4] = 0;
}

// Row g's queries turned back by a coarse row: q . turn(coarse + fine) k is turn(-coarse) q . turn(fine) k.
template <int kD>
MOSAIC_DEVICE void turn_queries(const RopeTable& rope, const PackedSpace<kD>& space, unsigned base,
                                PackedLane<kD>* lane) {
  lane->base = base;
  const float* const q = space.query[lane->g];
  const float factor = space.factor[lane->g];
#pragma unroll
  for (int j = 0; j < PackedLane<kD>::kPairs; ++j) {
    const int f = lane->frequency(j), axis = lane->axis[j / (PackedLane<kD>::kPairs / 2)];
    const float* const angle = rope.coarse(0) + (base >> 10 * axis & 1023u) * kD + f;
    float x[2], y[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float cos = angle[i] * factor * hadamard_sign(f + i),
                  sin = angle[kD / 2 + i] * factor * hadamard_sign(f + i);
      x[i] = q[f + i] * cos + q[f + kD / 2 + i] * sin;
      y[i] = q[f + kD / 2 + i] * cos - q[f + i] * sin;
    }
    lane->query[j][0] = simt::pack(x[0], x[1]);
    lane->query[j][1] = simt::pack(y[0], y[1]);
  }
}

}  // namespace mosaic::MOSAIC_SIMT
