// The exact tiles of attend and attention_mass: 16 keys of a unit, rotated, in shared memory as fp32; rows of queries
// beside them; and their logits. A "row" is a query token and head of one KV head's group, token by token, so that a
// group shares every key that was loaded.
#pragma once

#include "backend/cuda/attend_unit.h"

namespace mosaic::MOSAIC_SIMT {

struct alignas(16) Float4 {
  float x, y, z, w;
};

// A head's row in shared memory: 16-byte pieces, and the next row four banks on, so that eight rows are read at once.
MOSAIC_HD inline int row_stride(int head_dim) { return (head_dim + 3) / 4 * 4 + 4; }

struct PutFloats {
  float* k;
  int stride;
  MOSAIC_DEVICE void operator()(int token, int channel, float x) const { k[token * stride + channel] = x; }
  MOSAIC_DEVICE void operator()(int token, int channel, float x, float y) const {
    k[token * stride + channel] = x, k[token * stride + channel + 1] = y;
  }
};

// Keys of a unit -> k [16][stride]. Threads take channels, so that neighbours write neighbouring banks.
MOSAIC_DEVICE void load_keys(const AttendArgs& a, const RopeTable& rope, Unit unit, int kv_head, const TileKeys& keys,
                             float* k) {
  const Channels channels(rope, a.shape.head_dim);
  const int stride = row_stride(a.shape.head_dim);
  const PutFloats put{k, stride};
  if (!in_hadamard(a, unit)) {
    for (int i = simt::thread(); i < channels.key_items(); i += simt::threads()) {
      key_item<false>(a, rope, channels, unit, kv_head, keys, i, put);
    }
    return;
  }
#pragma unroll 1  // registers
  for (int token = simt::thread() / simt::kWarp; token < kTile; token += simt::threads() / simt::kWarp) {
    WarpRow row;
    record_key(a, unit, kv_head, token, &row);
    put_row(row, a.shape.head_dim, k + token * stride);
  }
  simt::barrier();
  for (int i = simt::thread(); i < kTile * channels.pairs; i += simt::threads()) {
    const int token = i / channels.pairs, item = i % channels.pairs;
    float* const row = k + token * stride;
    turn(rope, item, keys.at[token][rope.spec().axis_of(item)], &row[channels.first(item)],
         &row[channels.second(item)]);
  }
}

// Values of a unit in the Hadamard basis, as numbers -> v [16][stride]; zeros for tokens that are not attended.
MOSAIC_DEVICE void load_record_values(const AttendArgs& a, Unit unit, int kv_head, float* v) {
#pragma unroll 1  // registers
  for (int token = simt::thread() / simt::kWarp; token < kTile; token += simt::threads() / simt::kWarp) {
    WarpRow row;
    record_value(a, unit, kv_head, token, &row);
    put_row(row, a.shape.head_dim, v + token * row_stride(a.shape.head_dim));
  }
}

// `rows` rows of head_dim numbers, read by number(row, channel), turned to position(row, axis) -> to [rows][stride].
template <class Number, class At>
MOSAIC_DEVICE void load_rows(int rows, int d, const RopeTable& rope, const Number& number, const At& position,
                             float* to) {
  const Channels channels(rope, d);
  const int stride = row_stride(d);
  for (int i = simt::thread(); i < rows * channels.count; i += simt::threads()) {
    const int row = i / channels.count, item = i % channels.count, a = channels.first(item);
    float x = number(row, a);
    if (item < channels.pairs) {
      const int b = channels.second(item);
      float y = number(row, b);
      turn(rope, item, table_at(rope, position(row, rope.spec().axis_of(item))), &x, &y);
      to[row * stride + b] = y;
    }
    to[row * stride + a] = x;
  }
}

// Query rows [first, first + rows), of `group` heads from `head_of_group` on -> q [kRows][stride], rotated and scaled; zeros
// from `rows` on.
template <int kRows>
MOSAIC_DEVICE void load_queries(const AttendArgs& a, const RopeTable& rope, int head_of_group, int group, int first,
                                int rows, float* q) {
  const int d = a.shape.head_dim;
  const float scale = a.scale * kLog2E;
  const auto number = [&](int row, int c) {
    if (row >= rows) return 0.0f;
    const int token = (first + row) / group, head = head_of_group + (first + row) % group;
    return a.q[static_cast<size_t>(token) * a.q_stride + static_cast<size_t>(head) * d + c] * scale;
  };
  const auto at = [&](int row, int axis) { return row < rows ? a.q_positions[3 * ((first + row) / group) + axis] : 0; };
  load_rows(kRows, d, rope, number, at, q);
}

// Rows have round_up(d, 4) numbers; those beyond d are zero from the start and never written again.
MOSAIC_DEVICE void clear_padding(int rows, int d, float* x) {
  const int stride = row_stride(d), from = d, to = stride - 4;
  for (int i = simt::thread(); i < rows * (to - from); i += simt::threads()) {
    x[i / (to - from) * stride + from + i % (to - from)] = 0;
  }
}

MOSAIC_DEVICE float dot_rows(const float* a, const float* b, int d) {
  float x = 0, y = 0, z = 0, w = 0;
  for (int c = 0; c < d; c += 4) {
    const Float4 p = simt::load<Float4>(a + c), q = simt::load<Float4>(b + c);
    x += p.x * q.x, y += p.y * q.y, z += p.z * q.z, w += p.w * q.w;
  }
  return (x + y) + (z + w);
}

// The logit of a query token for key i of the tile; -inf where it does not see it. NaN in a stale key goes no further.
MOSAIC_DEVICE float logit_of(const float* q, const float* k, int d, const TileKeys& keys, int i, int token) {
  const float bias = keys.bias[i];
  const float logit = dot_rows(q, k, d) + bias;
  return bias == -INFINITY || token < keys.from[i] ? -INFINITY : logit;
}

}  // namespace mosaic::MOSAIC_SIMT
