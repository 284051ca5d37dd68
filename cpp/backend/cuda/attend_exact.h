// attend on CUDA cores: heads of more than 128 channels, and log-sum-exp without values. A block of threads takes one KV
// head, a tile of query rows (8 or 16: the heads of a group and some tokens, which share every key that is loaded) and a run
// of units (split-KV); it goes through its units with an online softmax and writes (out, lse), or a part of it that
// combine_kernel of attend.cu joins. Two barriers a unit: keys are in shared memory; weights are. Threads are then seen as
// pairs of channels x halves of the rows, so that a byte of int4 gives both its numbers to one thread. Everything is fp32:
// keys and values are decoded in registers, never written back.
#pragma once

#include "backend/cuda/attend_parts.h"
#include "backend/cuda/attend_tile.h"

namespace mosaic::MOSAIC_SIMT {

// Two numbers of a token's values, `half` channels apart.
template <class C>
MOSAIC_DEVICE void load_value(const std::byte* panel, int d, int token, int channel, int half, float* x, float* y) {
  if constexpr (std::is_same_v<C, Int4>) {
    const float low = simt::widen(C::lows(panel, kPageTokens)[token]), step = simt::widen(C::steps(panel)[token]);
    const uint8_t code = C::codes(panel, kPageTokens)[token * half + channel];
    *x = low + step * static_cast<float>(code & 15);
    *y = low + step * static_cast<float>(code >> 4);
  } else if constexpr (std::is_same_v<C, Fp16>) {
    const half_t* const row = reinterpret_cast<const half_t*>(panel) + token * d;
    *x = simt::widen(row[channel]);
    *y = channel + half < d ? simt::widen(row[channel + half]) : 0.0f;
  } else {
    *x = C::v(panel, d, token, channel);
    *y = channel + half < d ? C::v(panel, d, token, channel + half) : 0.0f;
  }
}

// acc[row][0..1] += weight[row][key] * value(key). value(key, &x, &y) is not asked for keys that do not exist.
template <int kRows, class Value>
MOSAIC_DEVICE void add_values(const float* weight, const TileKeys& keys, const Value& value, float (*acc)[2]) {
#pragma unroll
  for (int first = 0; first < kTile; first += 4) {
    float x[4] = {}, y[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (keys.bias[first + i] != -INFINITY) value(first + i, &x[i], &y[i]);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const Float4 w = simt::load<Float4>(weight + row * kTile + first);
      acc[row][0] += w.x * x[0] + w.y * x[1] + w.z * x[2] + w.w * x[3];
      acc[row][1] += w.x * y[0] + w.y * y[1] + w.z * y[2] + w.w * y[3];
    }
  }
}

// A unit's values for the thread's pair of channels. decoded: where they lie in shared memory, or null.
template <int kRows>
MOSAIC_DEVICE void add_unit(const AttendArgs& a, Unit unit, int kv_head, const TileKeys& keys, const float* weight,
                            int channel, int half, const float* decoded, float (*acc)[2]) {
  const int d = a.shape.head_dim;
  if (decoded != nullptr) {
    const auto value = [&](int i, float* x, float* y) {
      const float* const row = decoded + i * row_stride(d);
      *x = row[channel];
      *y = channel + half < d ? row[channel + half] : 0.0f;
    };
    add_values<kRows>(weight, keys, value, acc);
  } else if (unit.part == Part::kPage) {
    const PageEntry page = a.pages[unit.index];
    const std::byte* const panel = page.data + head_offset(page.codec, d, kv_head) + k_panel(page.codec, d);
    with_codec(page.codec, [&](auto c) {
      using C = decltype(c);
      if constexpr (!C::kHadamard) {
        const auto value = [&](int i, float* x, float* y) { load_value<C>(panel, d, i, channel, half, x, y); };
        add_values<kRows>(weight, keys, value, acc);
      }
    });
  } else if (unit.part == Part::kRows) {
    const auto value = [&](int i, float* x, float* y) {
      const half_t* const row = a.mean_v + summary_at(a, unit.index + i, kv_head);
      *x = simt::widen(row[channel]);
      *y = channel + half < d ? simt::widen(row[channel + half]) : 0.0f;
    };
    add_values<kRows>(weight, keys, value, acc);
  } else {
    const auto value = [&](int i, float* x, float* y) {
      const float* const row = a.block_v + token_at(a, unit.index + i, kv_head);
      *x = row[channel];
      *y = channel + half < d ? row[channel + half] : 0.0f;
    };
    add_values<kRows>(weight, keys, value, acc);
  }
}

template <int kRows>
size_t shared_floats(int d) {
  return static_cast<size_t>(kRows + kTile) * static_cast<size_t>(row_stride(d)) + kRows * kTile + 3 * kRows;
}

// Grid: x a split, y a KV head of a lane, z a tile of query rows.
// The widest heads take more registers than two blocks of 256 threads leave them.
template <int kRows, int kThreads, bool kValues>
MOSAIC_KERNEL(kThreads, kThreads > 128 && kValues ? 1 : 2)
attend_kernel(MOSAIC_PARAMETER AttendLanes all, MOSAIC_PARAMETER RopeTable rope, const Parts parts_of_all) {
  constexpr int kLogits = kRows * kTile > kThreads ? kRows * kTile / kThreads : 1;  // of a thread
  constexpr int kPairs = kThreads / 2, kHalf = kRows / 2;                           // channels x rows of a thread
  const int heads = all.lane[0].shape.heads, lane_of_layer = simt::block_y() / heads;
  const AttendArgs& a = all.lane[lane_of_layer];
  const Parts parts = parts_of_all.of_lane(a, lane_of_layer);
  const int d = a.shape.head_dim, stride = row_stride(d), group = a.q_heads / a.shape.heads;
  const int kv_head = simt::block_y() % heads, first = simt::block_z() * kRows;
  const int left = a.tokens * group - first, rows = left < kRows ? left : kRows;

  float* const q = simt::shared<float>();
  float* const k = q + kRows * stride;
  float* const weight = k + kTile * stride;      // [kRows][16]
  float* const shrink = weight + kRows * kTile;  // [kRows] what the sums so far are worth under the new maximum
  float* const top_of = shrink + kRows;          // [kRows] at the end
  float* const total_of = top_of + kRows;
  TileKeys* const keys = reinterpret_cast<TileKeys*>(total_of + kRows);  // [2]: this unit's and the next one's

  const Run run = run_of(a, (first + rows - 1) / group + 1);

  clear_padding(kRows + kTile, d, q);
  load_queries<kRows>(a, rope, kv_head * group, group, first, rows, q);
  if (run.begin < run.end) describe(a, rope, unit_at(a, run.begin), simt::thread(), &keys[run.begin % 2]);
  simt::barrier();

  float top[kLogits], total[kLogits], acc[kHalf][2];
  for (int i = 0; i < kLogits; ++i) top[i] = -INFINITY, total[i] = 0;
  for (int row = 0; row < kHalf; ++row) acc[row][0] = acc[row][1] = 0;
  const int half = (d + 1) / 2, channel = simt::thread() % kPairs, row_base = simt::thread() / kPairs * kHalf;

  for (int u = run.begin; u < run.end; ++u) {
    const Unit unit = unit_at(a, u);
    const TileKeys& now = keys[u % 2];
    load_keys(a, rope, unit, kv_head, now, k);
    simt::barrier();
    if (u + 1 < run.end) describe(a, rope, unit_at(a, u + 1), simt::thread(), &keys[(u + 1) % 2]);
#pragma unroll
    for (int i = 0; i < kLogits; ++i) {  // 16 lanes hold a row's 16 logits; whole warps take part or none of it
      const int row = (simt::thread() + i * kThreads) / kTile, key = simt::thread() % kTile;
      if (row >= kRows) break;
      const float logit = logit_of(q + row * stride, k + key * stride, d, now, key, (first + row) / group);
      const float most = simt::max_lanes(logit, kTile), above = most > top[i] ? most : top[i];
      const float p = logit == -INFINITY ? 0.0f : simt::exp2_of(logit - above);
      const float factor = top[i] == -INFINITY ? 0.0f : simt::exp2_of(top[i] - above);
      total[i] = total[i] * factor + simt::sum_lanes(p, kTile);
      top[i] = above;
      weight[row * kTile + key] = p;
      if (key == 0) shrink[row] = factor;
    }
    simt::barrier();
    const bool record = kValues && in_hadamard(a, unit);
    if (record) {  // where its keys were: the logits are made
      load_record_values(a, unit, kv_head, k);
      simt::barrier();
    }
    if (kValues && channel < half) {
      for (int row = 0; row < kHalf; ++row) {
        const float factor = shrink[row_base + row];
        acc[row][0] *= factor, acc[row][1] *= factor;
      }
      add_unit<kHalf>(a, unit, kv_head, now, weight + row_base * kTile, channel, half, record ? k : nullptr, acc);
    }
    if (record) simt::barrier();  // before the next unit's keys
  }

#pragma unroll
  for (int i = 0; i < kLogits; ++i) {
    const int row = (simt::thread() + i * kThreads) / kTile;
    if (row < kRows && simt::thread() % kTile == 0) top_of[row] = top[i], total_of[row] = total[i];
  }
  simt::barrier();
  if (simt::thread() < rows) {
    const int row = simt::thread();
    *result_of(a, parts, kv_head, first + row).lse = lse_of(top_of[row], total_of[row]);
  }
  if constexpr (kValues) {
    if (channel >= half) return;
#pragma unroll
    for (int r = 0; r < kHalf; ++r) {
      const int row = row_base + r;
      if (row >= rows) break;
      const float sum = total_of[row], inverse = sum > 0 ? 1.0f / sum : 0.0f;
      float* const out = result_of(a, parts, kv_head, first + row).out;
      out[channel] = acc[r][0] * inverse;
      if (channel + half < d) out[channel + half] = acc[r][1] * inverse;
    }
  }
}

template <int kRows, int kThreads, bool kValues>
void queue_rows(const simt::Queue& on, const AttendLanes& all, int lanes, const RopeTable& rope, int splits,
                const Parts& parts) {
  const AttendArgs& a = all.lane[0];
  const int tiles = (a.tokens * (a.q_heads / a.shape.heads) + kRows - 1) / kRows;
  const simt::Grid grid{static_cast<unsigned>(splits), static_cast<unsigned>(lanes * a.shape.heads),
                        static_cast<unsigned>(tiles)};
  const size_t bytes = shared_floats<kRows>(a.shape.head_dim) * sizeof(float) + 2 * sizeof(TileKeys);
  simt::launch(on, "attend", attend_kernel<kRows, kThreads, kValues>, grid, kThreads, bytes, all, rope, parts);
}
template <int kThreads, bool kValues>
void queue_exact(const simt::Queue& on, const AttendLanes& all, int lanes, const RopeTable& rope, int splits,
                 const Parts& parts) {
  const AttendArgs& a = all.lane[0];
  exact_rows(a.tokens * (a.q_heads / a.shape.heads)) == 8
      ? queue_rows<8, kThreads, kValues>(on, all, lanes, rope, splits, parts)
      : queue_rows<16, kThreads, kValues>(on, all, lanes, rope, splits, parts);
}

}  // namespace mosaic::MOSAIC_SIMT
