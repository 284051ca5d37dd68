// What attend and attention_mass share: tiles of 16 keys - a page, 16 summaries, 16 tokens of the block - decoded, rotated
// and laid in shared memory; rows of queries beside them; and their logits. A "row" is a query token and head of one KV
// head's group, token by token, so that a group shares every key that was loaded. Logits are in base 2: log2(e) goes into
// the query.
#pragma once

#include <type_traits>

#include "backend/cuda/page_layout.h"
#include "backend/cuda/simt.h"
#include "backend/ops.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kTile = kPageTokens;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
inline constexpr int kMostHead = 256;  // channels of a head

struct alignas(16) Float4 {
  float x, y, z, w;
};

// A head's row in shared memory: 16-byte pieces, and the next row four banks on, so that eight rows are read at once.
MOSAIC_HD inline int row_stride(int head_dim) { return (head_dim + 3) / 4 * 4 + 4; }

// What is known of a tile's keys before they are loaded.
struct TileKeys {
  int at[kTile][3];   // t, h, w
  float bias[kTile];  // base 2; -inf: there is no such key
  int from[kTile];    // the first query token that sees it
};

enum class Part { kPage, kRows, kBlock };
struct Unit {
  Part part;
  int index;  // page, or first summary, or first token of the block
};

// Units in the order of the parts: n_pages pages, then summaries and block by 16.
MOSAIC_HD inline int row_units(const AttendArgs& a) { return (a.n_rows + kTile - 1) / kTile; }
MOSAIC_HD inline int block_units(const AttendArgs& a, int tokens) {
  return a.block_k != nullptr ? (tokens + kTile - 1) / kTile : 0;
}
MOSAIC_DEVICE Unit unit_at(const AttendArgs& a, int unit) {
  if (unit < a.n_pages) return {Part::kPage, unit};
  unit -= a.n_pages;
  const int rows = row_units(a);
  return unit < rows ? Unit{Part::kRows, unit * kTile} : Unit{Part::kBlock, (unit - rows) * kTile};
}

// Threads 0..15 describe the unit's keys.
MOSAIC_DEVICE void describe(const AttendArgs& a, bool rotates, Unit unit, TileKeys* keys) {
  const int i = simt::thread();
  if (i >= kTile) return;
  float bias = -INFINITY;
  int from = 0, t = 0, h = 0, w = 0;
  if (unit.part == Part::kPage) {
    const PageEntry page = a.pages[unit.index];
    if (i >= page.begin && i < page.end) {
      bias = 0;
      if (rotates) {
        const int at = page.first + i - page.begin;
        const RopeSpec& spec = a.rope->spec();
        t = a.positions[at];
        if (a.places != nullptr) h = spec.place_at(t, a.places[2 * at]), w = spec.place_at(t, a.places[2 * at + 1]);
      }
    }
  } else if (unit.part == Part::kRows) {
    const int row = unit.index + i;
    if (row < a.n_rows) {
      bias = a.row_bias != nullptr ? a.row_bias[row] * kLog2E : 0.0f;
      if (rotates) t = a.row_positions[3 * row], h = a.row_positions[3 * row + 1], w = a.row_positions[3 * row + 2];
    }
  } else if (unit.index + i < a.tokens) {
    bias = 0, from = unit.index + i;
    if (rotates) t = a.q_positions[3 * from], h = a.q_positions[3 * from + 1], w = a.q_positions[3 * from + 2];
  }
  keys->at[i][0] = t, keys->at[i][1] = h, keys->at[i][2] = w;
  keys->bias[i] = bias;
  keys->from[i] = from;
}

// The channels that turn together, as items 0..count-1: pairs, then the single ones that do not turn.
struct Channels {
  int pairs, count;
  bool half;
  MOSAIC_DEVICE Channels(const RopeTable& rope, int head_dim)
      : pairs(rope.spec().frequencies()),
        count(head_dim - rope.spec().frequencies()),
        half(rope.spec().layout == RopeLayout::kHalf) {}
  MOSAIC_DEVICE int first(int i) const { return i >= pairs ? pairs + i : half ? i : 2 * i; }
  MOSAIC_DEVICE int second(int i) const { return half ? i + pairs : 2 * i + 1; }
};

MOSAIC_DEVICE void turn(const RopeTable& rope, int frequency, int position, float* re, float* im) {
  const int n = rope.spec().frequencies();
  const float* const a = rope.coarse(position) + frequency;
  const float* const b = rope.fine(position) + frequency;
  const float cos = a[0] * b[0] - a[n] * b[n], sin = a[0] * b[n] + a[n] * b[0];
  const float x = *re, y = *im;
  *re = x * cos - y * sin;
  *im = y * cos + x * sin;
}

// Eight tokens of one channel of a K block, in one wide load where the codec's rows are aligned for it.
template <class C>
MOSAIC_DEVICE void load_channel(const std::byte* block, int d, int channel, int part, float* x) {
  constexpr bool kInt8 = std::is_same_v<C, Int8>, kInt4 = std::is_same_v<C, Int4>;
  if constexpr (std::is_same_v<C, Fp16>) {
    const auto raw = simt::load<simt::Bytes16>(block + (channel * kPageTokens + 8 * part) * 2);
    for (int i = 0; i < 8; ++i) x[i] = simt::widen(static_cast<half_t>(raw.word[i / 2] >> 16 * (i % 2)));
  } else if constexpr (kInt8 || kInt4) {
    const float low = simt::widen(C::lows(block, d)[channel]), step = simt::widen(C::steps(block)[channel]);
    const uint8_t* const codes = C::codes(block, d) + channel * (kInt8 ? 16 : 8) + (kInt8 ? 8 * part : 0);
    simt::Bytes8 raw;
    if (d % 2 == 0) {
      raw = simt::load<simt::Bytes8>(codes);
    } else {
      for (int i = 0; i < 2; ++i) {
        raw.word[i] = codes[4 * i] | codes[4 * i + 1] << 8 | codes[4 * i + 2] << 16;
        raw.word[i] |= static_cast<uint32_t>(codes[4 * i + 3]) << 24;
      }
    }
    for (int i = 0; i < 8; ++i) {
      const uint32_t byte = raw.word[i / 4] >> 8 * (i % 4) & 0xffu;
      x[i] = low + step * static_cast<float>(kInt8 ? byte : part == 0 ? byte & 15u : byte >> 4);
    }
  } else {
    for (int i = 0; i < 8; ++i) x[i] = C::k(block, d, channel, 8 * part + i);
  }
}

// Keys of a page -> k [16][stride], rotated. Threads take channels, so that neighbours write neighbouring banks.
template <class C>
MOSAIC_DEVICE void load_page_keys(const std::byte* block, int d, const RopeTable& rope, const TileKeys& keys,
                                  float* k) {
  const Channels channels(rope, d);
  const int stride = row_stride(d);
  for (int i = simt::thread(); i < 2 * channels.count; i += simt::threads()) {
    const int part = i >= channels.count, item = i - part * channels.count, a = channels.first(item);
    float x[8], y[8];
    load_channel<C>(block, d, a, part, x);
    float* const to = k + 8 * part * stride;
    if (item < channels.pairs) {
      const int b = channels.second(item), axis = rope.spec().axis_of(item);
      load_channel<C>(block, d, b, part, y);
      for (int j = 0; j < 8; ++j) {
        turn(rope, item, keys.at[8 * part + j][axis], &x[j], &y[j]);
        to[j * stride + a] = x[j];
        to[j * stride + b] = y[j];
      }
    } else {
      for (int j = 0; j < 8; ++j) to[j * stride + a] = x[j];
    }
  }
}

// `rows` rows of head_dim numbers, read by number(row, channel), turned to place(row, axis) -> to [rows][stride].
template <class Number, class At>
MOSAIC_DEVICE void load_rows(int rows, int d, const RopeTable& rope, const Number& number, const At& place, float* to) {
  const Channels channels(rope, d);
  const int stride = row_stride(d);
  for (int i = simt::thread(); i < rows * channels.count; i += simt::threads()) {
    const int row = i / channels.count, item = i % channels.count, a = channels.first(item);
    float x = number(row, a);
    if (item < channels.pairs) {
      const int b = channels.second(item);
      float y = number(row, b);
      turn(rope, item, place(row, rope.spec().axis_of(item)), &x, &y);
      to[row * stride + b] = y;
    }
    to[row * stride + a] = x;
  }
}

// The row of the mean tables that summary i stands for.
MOSAIC_DEVICE size_t mean_row(const AttendArgs& a, int i) {
  return static_cast<size_t>(a.rows != nullptr ? a.rows[i] : i);
}

MOSAIC_DEVICE void load_keys(const AttendArgs& a, const RopeTable& rope, Unit unit, int kv_head, const TileKeys& keys,
                             float* k) {
  const int d = a.shape.head_dim;
  const auto at = [&](int i, int axis) { return keys.at[i][axis]; };
  if (unit.part == Part::kPage) {
    const PageEntry page = a.pages[unit.index];
    const std::byte* const block = page.data + head_offset(page.codec, d, kv_head);
    with_codec(page.codec, [&](auto c) { load_page_keys<decltype(c)>(block, d, rope, keys, k); });
  } else if (unit.part == Part::kRows) {
    const auto number = [&](int i, int c) {
      if (unit.index + i >= a.n_rows) return 0.0f;
      const size_t row = mean_row(a, unit.index + i) * a.shape.heads + kv_head;
      return simt::widen(a.mean_k[row * d + c]);
    };
    load_rows(kTile, d, rope, number, at, k);
  } else {
    const auto number = [&](int i, int c) {
      if (unit.index + i >= a.tokens) return 0.0f;
      return a.block_k[static_cast<size_t>(unit.index + i) * a.kv_stride + kv_head * d + c];
    };
    load_rows(kTile, d, rope, number, at, k);
  }
}

// Query rows [first, first + rows) of a KV head -> q [kRows][stride], rotated and scaled; zeros from `rows` on.
template <int kRows>
MOSAIC_DEVICE void load_queries(const AttendArgs& a, const RopeTable& rope, int kv_head, int first, int rows,
                                float* q) {
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads;
  const float scale = a.scale * kLog2E;
  const auto number = [&](int row, int c) {
    if (row >= rows) return 0.0f;
    const int token = (first + row) / group, head = kv_head * group + (first + row) % group;
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
