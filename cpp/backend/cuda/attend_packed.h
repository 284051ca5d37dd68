// attend of record pages in the Hadamard basis (codec/planes.h), by at most eight query rows: a warp takes a unit for
// itself, from the bits in its registers to weights and sums, and neither keys nor values ever lie in shared memory.
//
// Keys. Lane (g, t), g = lane / 4 and t = lane % 4, holds a quarter of the codes of tokens g and g + 8: of byte b of D / 16
// bytes of a plane, field q, code (D / 4) q + (D / 16) t + b. Tensor cores do the transform's steps over t, the upper bit of
// q, the lowest of b (a product with signs) and the lower bit of q (products added or taken off); the other bits of b are
// sums in the lane. Then it holds channels f and f + D / 2 for D / 4 frequencies f: it adds the mean, turns them by the
// fine row of the angle table, and has the left side of the product with the queries, which are turned back by the coarse
// row that all tokens of the unit share (or some: then once for each such row).
// Values stay in the Hadamard basis, with scales in the weights; sums leave it once a block.
//
// Precision is that of halves, as elsewhere on tensor cores. Ranges: keys are taken in 256ths of their codes' scale.
#pragma once

#include "backend/cuda/packed_keys.h"

namespace mosaic::MOSAIC_SIMT {

// The right side of the product of values and weights: row g; tokens 2t, 2t + 1 and 2t + 8, 2t + 9. Weights are those of the
// softmax times their token's scale.
template <class Panel, int kD>
MOSAIC_DEVICE void packed_weights(const std::byte* panel, const PackedToken (&tokens)[2], const float (&logit)[2][2],
                                  PackedLane<kD>* lane, uint32_t (&weight)[2]) {
  bool grew = false;
#pragma unroll
  for (int i = 0; i < 4; ++i) grew = grew || logit[i / 2][i % 2] > lane->top[i % 2];
  if (simt::ballot(grew) != 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(logit[0][r], logit[1][r]);
      for (int step = 4; step < simt::kWarp; step *= 2) most = fmaxf(most, simt::shuffle_xor(most, step));
      const float before = lane->top[r], top = fmaxf(most, before);
      const float factor = simt::exp2_of(before - top);
      lane->top[r] = top, lane->total[r] *= factor;
#pragma unroll
      for (int m = 0; m < kD / 16; ++m) lane->sum[m][r] *= factor, lane->sum[m][2 + r] *= factor;
    }
  }
  const half_t* const scales = Panel::scales(panel, kD) + static_cast<unsigned>(lane->g);
#pragma unroll
  for (int token = 0; token < 2; ++token) {
    const half_t raw = scales[8 * token];
    const float scale = tokens[token].exists ? simt::widen(raw) : 0.0f;
    float w[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      w[r] = simt::exp2_of(logit[token][r] - lane->top[r]);
      lane->total[r] += w[r];
    }
    weight[token] = simt::transpose_halves(simt::pack(w[0] * scale, w[1] * scale));
  }
}

// The lane's codes of the values of token 2t + `more`: bytes (D / 32) g to (D / 32) (g + 1).
template <class Panel, int kD>
MOSAIC_DEVICE void load_value_codes(const std::byte* panel, int t, int more, int g, Codes<1>* codes) {
  const std::byte* const high = panel + static_cast<unsigned>(t * (kD / 2) + g * (kD / 32)) + more * (kD / 4);
  const std::byte* const low = high + Panel::plane_at(kD, 1);
  if constexpr (kD == 128) {
    codes->high[0] = simt::load<uint32_t>(high);
    if constexpr (Panel::kBits >= 4) codes->low[0] = simt::load<uint32_t>(low);
  } else {
    codes->high[0] = simt::load<uint16_t>(high);
    if constexpr (Panel::kBits >= 4) codes->low[0] = simt::load<uint16_t>(low);
  }
  if constexpr (Panel::kBits % 2 == 1) {
    const std::byte* const last =
        panel + static_cast<unsigned>(t * (kD / 4)) + (more * (kD / 8) + Panel::plane_at(kD, Panel::kPlanes - 1));
    if constexpr (kD == 128) {
      codes->last = byte_row(simt::load<simt::Bytes16>(last), g / 2) >> 4 * (g % 2);
    } else {
      codes->last = byte_row(simt::load<simt::Bytes8>(last), g / 4) >> 2 * (g % 4);
    }
  }
}

template <class Panel, int kD>
MOSAIC_DEVICE void add_packed_values(const std::byte* panel, const uint32_t (&weight)[2], PackedLane<kD>* lane) {
  Codes<1> codes[4];
  Nibbles nibbles[4][1];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    load_value_codes<Panel, kD>(panel, lane->t, i % 2 + i / 2 * 8, lane->g, &codes[i]);
    nibbles[i][0] = nibbles_of<Panel>(codes[i].high[0], codes[i].low[0]);
  }
#pragma unroll
  for (int group = 0; group < kD / 32; ++group) {
    uint32_t left[2][4];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of tokens
      const uint32_t first = levels_of<Panel>(codes[2 * pair], nibbles[2 * pair], 0, group / 2, group % 2);
      const uint32_t second = levels_of<Panel>(codes[2 * pair + 1], nibbles[2 * pair + 1], 0, group / 2, group % 2);
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        const uint32_t mixed = simt::permute(first, second, b == 0 ? 0x5140 : 0x7362);
        left[b][2 * pair] = simt::add_halves(widen_bytes(mixed, 0, 1), kLevelsBack);
        left[b][2 * pair + 1] = simt::add_halves(widen_bytes(mixed, 2, 3), kLevelsBack);
      }
    }
#pragma unroll
    for (int b = 0; b < 2; ++b) simt::multiply_add(left[b], weight, lane->sum[2 * group + b]);
  }
}

// The warp's units of one codec.
template <class Codec, int kD>
MOSAIC_DEVICE void attend_packed(const AttendArgs& a, const RopeTable& rope, Run run, int kv_head, CodecId codec,
                                 const PackedSpace<kD>& space, PackedLane<kD>* lane) {
  using K = typename Codec::K;
  using V = typename Codec::V;
  const int first = run.begin + simt::thread() / simt::kWarp, end = run.end < a.n_pages ? run.end : a.n_pages;
  const size_t head = static_cast<size_t>(kv_head) * head_bytes_of<Codec>(kD);
  const auto next_of = [&](int u) {
    while (u < end && a.pages[u].codec != codec) u += kPackedWarps;
    return u;
  };
  int u = next_of(first);
#pragma unroll 1
  while (u < end) {
    const PageEntry page = a.pages[u];
    const std::byte* const keys = page.data + head;
    const std::byte* const values = keys + k_panel_of<Codec>(kD);
    u = next_of(u + kPackedWarps);
    if (u < end && 128 * (simt::thread() % simt::kWarp) < static_cast<int>(head_bytes_of<Codec>(kD)))
      simt::prefetch(a.pages[u].data + head + 128 * (simt::thread() % simt::kWarp));
    const PackedToken tokens[2] = {token_of(a, rope, page, lane->g), token_of(a, rope, page, lane->g + 8)};
    uint32_t key[PackedLane<kD>::kPairs][2][2], weight[2];
    float logit[2][2];
    transform_keys<K, kD>(keys, *lane, key);
    turn_keys<K, kD>(keys, rope, space.channels[lane->t], *lane, tokens, key);
    packed_logits<kD>(rope, space, tokens, key, lane, logit);
    packed_weights<V, kD>(values, tokens, logit, lane, weight);
    add_packed_values<V, kD>(values, weight, lane);
  }
}

// Queries of all rows -> space, turned and in base 2; zeros beyond `rows`.
template <int kD>
MOSAIC_DEVICE void load_packed_queries(const AttendArgs& a, const RopeTable& rope, int kv_head, int rows,
                                       PackedSpace<kD>* space) {
  const int group = a.q_heads / a.shape.heads;
  for (int i = simt::thread(); i < kPackedRows * kD / 2; i += simt::threads()) {
    const int row = i / (kD / 2), f = i % (kD / 2), token = row < rows ? row / group : 0;
    float x = 0, y = 0;
    if (row < rows) {
      const float* const q =
          a.q + static_cast<size_t>(token) * a.q_stride + static_cast<size_t>(kv_head * group + row % group) * kD;
      const float scale = a.scale * kLog2E * hadamard_sign(f);
      x = q[f] * scale, y = q[f + kD / 2] * scale;
      turn(rope, f, table_at(rope, a.q_positions[3 * token + rope.spec().axis_of(f)]), &x, &y);
    }
    space->query[row][f] = x, space->query[row][f + kD / 2] = y;
  }
  simt::barrier();
  for (int row = simt::thread() / simt::kWarp; row < kPackedRows; row += kPackedWarps) {
    float most = 0;
    for (int c = lane(); c < kD; c += simt::kWarp) most = fmaxf(most, fabsf(space->query[row][c]));
    const uint32_t bits = std::bit_cast<uint32_t>(simt::max_lanes(most, simt::kWarp)) >> 23;
    const uint32_t exponent = bits < 6 ? 6 : bits > 254 ? 254 : bits;
    if (lane() == 0) space->factor[row] = std::bit_cast<float>((260 - exponent) << 23);
  }
  simt::barrier();
}

// The lane's sums -> its warp's in shared memory, codes in their order.
template <int kD>
MOSAIC_DEVICE void put_packed(const PackedLane<kD>& lane, PackedSums<kD>* to) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float total = lane.total[r];
    for (int step = 4; step < simt::kWarp; step *= 2) total += simt::shuffle_xor(total, step);
    const int row = 2 * lane.t + r;
    if (lane.g == 0) to->top[row] = total > 0 ? lane.top[r] : -INFINITY, to->total[row] = total;
#pragma unroll
    for (int m = 0; m < kD / 16; ++m) {
      const int group = m / 2, code = kD / 4 * (group % 2) + kD / 32 * lane.g + group / 2 * 2 + m % 2;
      to->sum[row][code] = lane.sum[m][r];
      to->sum[row][code + kD / 2] = lane.sum[m][2 + r];
    }
  }
}

// The warps' sums joined -> to, out of the Hadamard basis. A warp takes a row.
template <int kD>
MOSAIC_DEVICE void join_packed(const PackedSpace<kD>& space, PackedSums<kD>* to) {
  constexpr float kScale = (kD == 128 ? 0.08838834764831845f : 0.125f) / PlanePanel<5>::kScaleUnit;
  for (int row = simt::thread() / simt::kWarp; row < kPackedRows; row += kPackedWarps) {
    float top = -INFINITY, total = 0;
    for (int w = 0; w < kPackedWarps; ++w) top = fmaxf(top, space.warp[w].top[row]);
    RowOf<kD / simt::kWarp> sum = {};
    for (int w = 0; w < kPackedWarps && top != -INFINITY; ++w) {
      const float worth = simt::exp2_of(space.warp[w].top[row] - top);
      total += worth * space.warp[w].total[row];
#pragma unroll
      for (int i = 0; i < kD / simt::kWarp; ++i) sum.x[i] += worth * space.warp[w].sum[row][lane() + simt::kWarp * i];
    }
    hadamard(&sum, kD);
#pragma unroll
    for (int i = 0; i < kD / simt::kWarp; ++i) {
      const int c = lane() + simt::kWarp * i;
      to->sum[row][c] = sum.x[i] * (kScale * hadamard_sign(c));
    }
    if (lane() == 0) to->top[row] = top, to->total[row] = total;
  }
}

// The codecs of the run's packed pages, a bit each.
MOSAIC_DEVICE unsigned packed_codecs(const AttendArgs& a, Run run) {
  const int end = run.end < a.n_pages ? run.end : a.n_pages;
  unsigned found = 0;
  for (int u = run.begin + lane(); u < end; u += simt::kWarp) found |= 1u << static_cast<int>(a.pages[u].codec);
  for (int step = 1; step < simt::kWarp; step *= 2)
    found |= static_cast<unsigned>(simt::shuffle_xor(static_cast<int>(found), step));
  return found;
}

// The packed pages of a run, by all warps of the block -> to. space: free before and after.
template <int kD>
MOSAIC_DEVICE void packed_sums(const AttendArgs& a, const RopeTable& rope, Run run, int kv_head, int rows,
                               PackedSpace<kD>* space, PackedSums<kD>* to) {
  const unsigned found = packed_codecs(a, run);
  put_channels<kD>(a, kv_head, space);
  load_packed_queries<kD>(a, rope, kv_head, rows, space);
  PackedLane<kD> mine;
  begin_lane<kD>(rope, *space, &mine);
  turn_queries<kD>(rope, *space, 0, &mine);
#define MOSAIC_CODEC(id, name, ...)                                                      \
  if constexpr (__VA_ARGS__::kHadamard) {                                                \
    if ((found >> static_cast<int>(CodecId::id) & 1u) != 0)                              \
      attend_packed<__VA_ARGS__, kD>(a, rope, run, kv_head, CodecId::id, *space, &mine); \
  }
#include "codec/codecs.def"
#undef MOSAIC_CODEC
  put_packed<kD>(mine, &space->warp[simt::thread() / simt::kWarp]);
  simt::barrier();
  join_packed<kD>(*space, to);
  simt::barrier();
}

}  // namespace mosaic::MOSAIC_SIMT
