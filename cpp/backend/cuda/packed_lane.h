// What a lane of a warp holds while packed pages are attended (attend_packed.h has the layout), and its queries.
#pragma once

#include "backend/cuda/attend_parts.h"
#include "backend/cuda/packed_levels.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kPackedRows = 8, kPackedWarps = 4;
inline constexpr float kPackedKeys = 0x1p-8f;
inline constexpr uint32_t kPackedSigns = 0x1c001c00u;  // two of it
inline constexpr float kPackedLowest = -0x1p127f;      // below any logit, and finite: -inf less it is -inf

// What packed pages of a head were worth to eight rows, in shared memory: sums of values under 2^top, not yet divided.
template <int kD>
struct PackedSums {
  float sum[kPackedRows][kD];
  float top[kPackedRows], total[kPackedRows];
};
// What every unit needs of a lane's channels, by pairs of frequencies. It is read anew for each: as many registers more
// would spill, or be worked out again in every turn of the loop.
template <int kD>
struct alignas(16) PackedChannels {
  uint32_t mean[kD / 16][2];  // of channels f and f + D / 2, in the units of keys
  uint32_t flip[kD / 16];     // where the signs of f and f + D / 2 differ
};
// Shared memory while packed pages are attended.
template <int kD>
struct PackedSpace {
  PackedChannels<kD> channels[4];    // of lanes with that t
  float query[kPackedRows][kD + 4];  // turned to their positions, f and f + D / 2 with the sign of f
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
  uint32_t query[kPairs][2];         // of row g
  unsigned base;                     // whose coarse row they are turned back by
  float scale[2], top[2], total[2];  // of rows 2t and 2t + 1; total: of the lane's own tokens
  float sum[kD / 16][4];             // codes x rows

  // The first frequency of pair j: field j / (pairs / 2), then byte.
  MOSAIC_DEVICE static int frequency_of(int t, int j) {
    return kD / 4 * (j / (kPairs / 2)) + kBytes * t + 2 * (j % (kPairs / 2));
  }
  MOSAIC_DEVICE int frequency(int j) const { return frequency_of(t, j); }
};

// What a key's number is, in units of the mean.
template <int kD>
inline constexpr float kPackedUnit =
    kPackedKeys * PlanePanel<5>::kScaleUnit / (kD == 128 ? 0.08838834764831845f : 0.125f);  // hadamard_scale

// Mean and signs, for all lanes. The mean has the signs of f, as queries have them.
template <int kD>
MOSAIC_DEVICE void put_channels(const AttendArgs& a, int kv_head, PackedSpace<kD>* space) {
  constexpr int kPairs = PackedLane<kD>::kPairs;
  const float* const mean = mean_of(a.key_mean, kv_head, kD);
  for (int i = simt::thread(); i < 4 * kPairs; i += simt::threads()) {
    PackedChannels<kD>& to = space->channels[i / kPairs];
    const int j = i % kPairs, f = PackedLane<kD>::frequency_of(i / kPairs, j);
    const float first = hadamard_sign(f), second = hadamard_sign(f + 1);
    for (int half = 0; half < 2; ++half) {
      const float* const of = mean != nullptr ? mean + f + half * (kD / 2) : nullptr;
      to.mean[j][half] =
          of == nullptr ? 0 : simt::pack(of[0] * first * kPackedUnit<kD>, of[1] * second * kPackedUnit<kD>);
    }
    to.flip[j] = (hadamard_sign(f + kD / 2) != first ? 0x8000u : 0u) |
                 (hadamard_sign(f + kD / 2 + 1) != second ? 0x80000000u : 0u);
  }
}

template <int kD>
MOSAIC_DEVICE void begin_lane(const RopeTable& rope, const PackedSpace<kD>& space, PackedLane<kD>* lane) {
  const int at = simt::thread() % simt::kWarp;
  lane->g = at / 4, lane->t = at % 4;
  const bool odd = simt::ones(static_cast<unsigned>(lane->t & lane->g / 2)) % 2 == 1;
  for (int n = 0; n < 2; ++n) {
    for (int k = 0; k < 2; ++k) {
      const bool low = odd != (k == 1 && lane->g % 2 == 1), high = low != (n == 1);
      lane->signs[n][k] = kPackedSigns ^ (low ? 0x8000u : 0u) ^ (high ? 0x80000000u : 0u);
    }
  }
  lane->axis[0] = rope.spec().axis_of(lane->frequency(0));
  lane->axis[1] = rope.spec().axis_of(lane->frequency(PackedLane<kD>::kPairs / 2));
  lane->base = ~0u;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    lane->scale[r] = 1 / (space.factor[2 * lane->t + r] * kPackedUnit<kD>);
    lane->top[r] = kPackedLowest, lane->total[r] = 0;
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
      const float cos = angle[i] * factor, sin = angle[kD / 2 + i] * factor;
      x[i] = q[f + i] * cos + q[f + kD / 2 + i] * sin;
      y[i] = q[f + kD / 2 + i] * cos - q[f + i] * sin;
    }
    lane->query[j][0] = simt::pack(x[0], x[1]);
    lane->query[j][1] = simt::pack(y[0], y[1]);
  }
}

}  // namespace mosaic::MOSAIC_SIMT
