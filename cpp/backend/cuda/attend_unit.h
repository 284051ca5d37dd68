// A unit of what is attended: 16 keys - a page, 16 summaries, 16 tokens of the block - what is known of them, and how
// threads read them: an item is a pair of channels that turn together x 8 tokens of K, or 8 channels x 2 tokens of V.
// What a kernel does with the numbers is its own. Logits are in base 2: log2(e) goes into the query.
#pragma once

#include <bit>
#include <type_traits>

#include "backend/cuda/page_layout.h"
#include "backend/cuda/record_row.h"
#include "backend/cuda/simt.h"
#include "backend/ops.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kTile = kPageTokens;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// A position as the angle tables have it: where its coarse and its fine row begin.
struct TableAt {
  int coarse, fine;
};
MOSAIC_DEVICE TableAt table_at(const RopeTable& rope, int position) {
  const auto at = static_cast<unsigned>(position);
  const int row = 2 * rope.spec().frequencies(), bits = rope.fine_bits();
  return {static_cast<int>(at >> bits) * row, static_cast<int>(at & ((1u << bits) - 1)) * row};
}

// What is known of a tile's keys before they are loaded.
struct TileKeys {
  TableAt at[kTile][3];  // t, h, w
  float bias[kTile];     // base 2; -inf: there is no such key
  int from[kTile];       // the first query token that sees it
};

struct alignas(8) Float2 {
  float x, y;
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

// Key i of the unit; nothing for i from 16 on, so that every thread may call it with its own number.
MOSAIC_DEVICE void describe(const AttendArgs& a, const RopeTable& rope, Unit unit, int i, TileKeys* keys) {
  if (i >= kTile) return;
  const bool rotates = rope.spec().frequencies() > 0;
  float bias = -INFINITY;
  int from = 0, t = 0, h = 0, w = 0;
  if (unit.part == Part::kPage) {
    const PageEntry page = a.pages[unit.index];
    if (page.has(i)) {
      bias = 0;
      if (rotates) {
        const int at = page.first + i - page.begin();
        t = a.positions[at];
        const RopeSpec& spec = rope.spec();
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
  keys->at[i][0] = table_at(rope, t), keys->at[i][1] = table_at(rope, h), keys->at[i][2] = table_at(rope, w);
  keys->bias[i] = bias;
  keys->from[i] = from;
}

// The channels that turn together, as items 0..count-1: pairs, then the single ones that do not turn.
struct Channels {
  int pairs, count;
  bool half;
  bool doubled;  // all turn, and items 2i and 2i + 1 are neighbours in the page and in aligned tables: taken together
  MOSAIC_DEVICE Channels(const RopeTable& rope, int head_dim)
      : pairs(rope.spec().frequencies()),
        count(head_dim - pairs),
        half(rope.spec().layout == RopeLayout::kHalf),
        doubled(half && count == pairs && pairs % 2 == 0 && reinterpret_cast<uintptr_t>(rope.fine(0)) % 8 == 0) {}
  MOSAIC_DEVICE int first(int i) const { return i >= pairs ? pairs + i : half ? i : 2 * i; }
  MOSAIC_DEVICE int second(int i) const { return half ? i + pairs : 2 * i + 1; }
  MOSAIC_DEVICE int key_items() const { return doubled ? count : 2 * count; }
};

MOSAIC_DEVICE void turn_by(float coarse_cos, float coarse_sin, float fine_cos, float fine_sin, float* re, float* im) {
  const float cos = coarse_cos * fine_cos - coarse_sin * fine_sin, sin = coarse_cos * fine_sin + coarse_sin * fine_cos;
  const float x = *re, y = *im;
  *re = x * cos - y * sin;
  *im = y * cos + x * sin;
}
MOSAIC_DEVICE void turn(const RopeTable& rope, int frequency, TableAt at, float* re, float* im) {
  const int n = rope.spec().frequencies();
  const float* const a = rope.coarse(0) + at.coarse + frequency;
  const float* const b = rope.fine(0) + at.fine + frequency;
  turn_by(a[0], a[n], b[0], b[n], re, im);
}
// Two neighbouring frequencies, the first even, in wide loads.
MOSAIC_DEVICE void turn_two(const RopeTable& rope, int frequency, TableAt at, float* re, float* im, float* next_re,
                            float* next_im) {
  const int n = rope.spec().frequencies();
  const float* const a = rope.coarse(0) + at.coarse + frequency;
  const float* const b = rope.fine(0) + at.fine + frequency;
  const auto a_cos = simt::load<Float2>(a), a_sin = simt::load<Float2>(a + n);
  const auto b_cos = simt::load<Float2>(b), b_sin = simt::load<Float2>(b + n);
  turn_by(a_cos.x, a_sin.x, b_cos.x, b_sin.x, re, im);
  turn_by(a_cos.y, a_sin.y, b_cos.y, b_sin.y, next_re, next_im);
}

// Eight numbers in a row, in wide loads where they are aligned for it.
MOSAIC_DEVICE void load_eight(const half_t* from, float* x) {
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const auto raw = simt::load<simt::Bytes16>(from);
    for (int i = 0; i < 8; ++i) x[i] = simt::widen(static_cast<half_t>(raw.word[i / 2] >> 16 * (i % 2)));
  } else {
    for (int i = 0; i < 8; ++i) x[i] = simt::widen(from[i]);
  }
}
MOSAIC_DEVICE void load_eight(const float* from, float* x) {
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    for (int i = 0; i < 8; i += 4) {
      const auto raw = simt::load<simt::Bytes16>(from + i);
      for (int j = 0; j < 4; ++j) x[i + j] = std::bit_cast<float>(raw.word[j]);
    }
  } else {
    for (int i = 0; i < 8; ++i) x[i] = from[i];
  }
}

// Eight tokens of one channel of a K panel, in one wide load where the codec's rows are aligned for it.
template <class C>
MOSAIC_DEVICE void load_channel(const std::byte* panel, int d, int channel, int part, float* x) {
  constexpr bool kInt8 = std::is_same_v<C, Int8>, kInt4 = std::is_same_v<C, Int4>;
  if constexpr (std::is_same_v<C, Fp16>) {
    const auto raw = simt::load<simt::Bytes16>(panel + (channel * kPageTokens + 8 * part) * 2);
    for (int i = 0; i < 8; ++i) x[i] = simt::widen(static_cast<half_t>(raw.word[i / 2] >> 16 * (i % 2)));
  } else if constexpr (kInt8 || kInt4) {
    const float low = simt::widen(C::lows(panel, d)[channel]), step = simt::widen(C::steps(panel)[channel]);
    const uint8_t* const codes = C::codes(panel, d) + channel * (kInt8 ? 16 : 8) + (kInt8 ? 8 * part : 0);
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
  } else if constexpr (std::is_same_v<C, K8V8>) {
    const auto raw = simt::load<simt::Bytes8>(C::codes(panel) + channel * kPageTokens + 8 * part);
    const auto steps = simt::load<simt::Bytes16>(C::steps(panel) + 8 * part);
    const auto lows = simt::load<simt::Bytes16>(C::lows(panel) + 8 * part);
    for (int i = 0; i < 8; ++i) {
      const float low = simt::widen(static_cast<half_t>(lows.word[i / 2] >> 16 * (i % 2)));
      const float step = simt::widen(static_cast<half_t>(steps.word[i / 2] >> 16 * (i % 2)));
      x[i] = low + step * static_cast<float>(raw.word[i / 4] >> 8 * (i % 4) & 0xffu);
    }
  } else if constexpr (std::is_same_v<C, Fp32>) {
    load_eight(reinterpret_cast<const float*>(panel) + channel * kPageTokens + 8 * part, x);
  } else {
    for (int i = 0; i < 8; ++i) x[i] = C::k(panel, d, channel, 8 * part + i);
  }
}

// Channels [first, first + 8) of a token of a V panel; zeros beyond d. A codec that has no wide loads here reads its own v.
template <class C>
MOSAIC_DEVICE void load_values(const std::byte* panel, int d, int token, int first, float* x) {
  constexpr bool kInt8 = std::is_same_v<C, Int8>, kInt4 = std::is_same_v<C, Int4>;
  const bool whole = first + 8 <= d;
  if constexpr (std::is_same_v<C, Fp16> || std::is_same_v<C, Fp32>) {
    using Number = std::conditional_t<std::is_same_v<C, Fp16>, half_t, float>;
    if (whole) return load_eight(reinterpret_cast<const Number*>(panel) + token * d + first, x);
  } else if constexpr (kInt8 || kInt4) {
    const int row = kInt8 ? d : (d + 1) / 2, from = kInt8 || first < row ? first : first - row;
    if (whole && row % 8 == 0) {  // int4: all eight are low nibbles, or all high ones
      const float low = simt::widen(C::lows(panel, kPageTokens)[token]), step = simt::widen(C::steps(panel)[token]);
      const auto raw = simt::load<simt::Bytes8>(C::codes(panel, kPageTokens) + token * row + from);
      for (int i = 0; i < 8; ++i) {
        const uint32_t byte = raw.word[i / 4] >> 8 * (i % 4) & 0xffu;
        x[i] = low + step * static_cast<float>(kInt8 ? byte : from == first ? byte & 15u : byte >> 4);
      }
      return;
    }
  }
  for (int i = 0; i < 8; ++i) x[i] = first + i < d ? C::v(panel, d, token, first + i) : 0.0f;
}

// Pages whose rows are decoded whole, a warp a row; their keys and values go another way than items do.
MOSAIC_DEVICE bool in_hadamard(const AttendArgs& a, Unit unit) {
  return unit.part == Part::kPage &&
         with_codec(a.pages[unit.index].codec, [](auto c) { return decltype(c)::kHadamard; });
}
// Keys before rotation, or values, of a token of such a page; zeros where it is not attended.
template <int kParts>
MOSAIC_DEVICE void record_key(const AttendArgs& a, Unit unit, int kv_head, int token, RowOf<kParts>* row) {
  const PageEntry page = a.pages[unit.index];
  const int d = a.shape.head_dim;
  with_codec(page.codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kHadamard) {
      const std::byte* const panel = page.data + static_cast<size_t>(kv_head) * head_bytes_of<C>(d);
      decode_record<typename C::K>(panel, d, token, page.has(token), mean_of(a.key_mean, kv_head, d), row);
    }
  });
}
template <int kParts>
MOSAIC_DEVICE void record_value(const AttendArgs& a, Unit unit, int kv_head, int token, RowOf<kParts>* row) {
  const PageEntry page = a.pages[unit.index];
  const int d = a.shape.head_dim;
  with_codec(page.codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kHadamard) {
      const std::byte* const panel = page.data + static_cast<size_t>(kv_head) * head_bytes_of<C>(d) + k_panel_of<C>(d);
      decode_record<typename C::V>(panel, d, token, page.has(token), nullptr, row);
    }
  });
}

// The row of the mean tables that summary i stands for.
MOSAIC_DEVICE size_t mean_row(const AttendArgs& a, int i) {
  return static_cast<size_t>(a.rows != nullptr ? a.rows[i] : i);
}
// Where summary or block token i has its head's numbers.
MOSAIC_DEVICE size_t summary_at(const AttendArgs& a, int i, int kv_head) {
  return (mean_row(a, i) * a.shape.heads + kv_head) * a.shape.head_dim;
}
MOSAIC_DEVICE size_t token_at(const AttendArgs& a, int i, int kv_head) {
  return static_cast<size_t>(i) * a.kv_stride + static_cast<size_t>(kv_head) * a.shape.head_dim;
}

// Items of a unit's keys: channels.key_items(), the first half of them tokens 0..7. load(channel, part, x) gives eight
// tokens of a channel; put(token, channel, x) takes a rotated number, put(token, channel, x, y) those of an even
// channel and the next.
template <class Load, class Put>
MOSAIC_DEVICE void turn_item(const RopeTable& rope, const Channels& channels, const TileKeys& keys, int i,
                             const Load& load, const Put& put) {
  const int part = i >= channels.count, item = i - part * channels.count, a = channels.first(item);
  float x[8], y[8];
  load(a, part, x);
  if (item < channels.pairs) {
    const int b = channels.second(item), axis = rope.spec().axis_of(item);
    load(b, part, y);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      turn(rope, item, keys.at[8 * part + j][axis], &x[j], &y[j]);
      put(8 * part + j, a, x[j]);
      put(8 * part + j, b, y[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) put(8 * part + j, a, x[j]);
  }
}
template <class Load, class Put>
MOSAIC_DEVICE void turn_two_items(const RopeTable& rope, const Channels& channels, const TileKeys& keys, int i,
                                  const Load& load, const Put& put) {
  const int part = i >= channels.count / 2, item = 2 * (i - part * (channels.count / 2)), n = channels.pairs;
  const int axis = rope.spec().axis_of(item), next_axis = rope.spec().axis_of(item + 1);
  float x[2][8], y[2][8];
  load(item, part, x[0]);
  load(item + 1, part, x[1]);
  load(item + n, part, y[0]);
  load(item + n + 1, part, y[1]);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int token = 8 * part + j;
    const TableAt angle = keys.at[token][axis];
    if (axis == next_axis) {
      turn_two(rope, item, angle, &x[0][j], &y[0][j], &x[1][j], &y[1][j]);
    } else {
      turn(rope, item, angle, &x[0][j], &y[0][j]);
      turn(rope, item + 1, keys.at[token][next_axis], &x[1][j], &y[1][j]);
    }
    put(token, item, x[0][j], x[1][j]);
    put(token, item + n, y[0][j], y[1][j]);
  }
}
template <bool kDoubled, class Load, class Put>
MOSAIC_DEVICE void turn_items(const RopeTable& rope, const Channels& channels, const TileKeys& keys, int i,
                              const Load& load, const Put& put) {
  if (kDoubled || channels.doubled) return turn_two_items(rope, channels, keys, i, load, put);
  if constexpr (!kDoubled) turn_item(rope, channels, keys, i, load, put);
}
// kDoubled: channels.doubled is known to hold, and what does otherwise is not compiled.
template <bool kDoubled, class Put>
MOSAIC_DEVICE void key_item(const AttendArgs& a, const RopeTable& rope, const Channels& channels, Unit unit,
                            int kv_head, const TileKeys& keys, int i, const Put& put) {
  const int d = a.shape.head_dim;
  if (unit.part == Part::kPage) {
    const PageEntry page = a.pages[unit.index];
    const std::byte* const panel = page.data + head_offset(page.codec, d, kv_head);
    with_codec(page.codec, [&](auto c) {
      using C = decltype(c);
      if constexpr (!C::kHadamard) {
        const auto load = [&](int channel, int part, float* x) { load_channel<C>(panel, d, channel, part, x); };
        turn_items<kDoubled>(rope, channels, keys, i, load, put);
      }
    });
    return;
  }
  const auto load = [&](int channel, int part, float* x) {
    for (int j = 0; j < 8; ++j) {
      const int at = unit.index + 8 * part + j;
      x[j] = unit.part == Part::kRows
                 ? (at < a.n_rows ? simt::widen(a.mean_k[summary_at(a, at, kv_head) + channel]) : 0.0f)
                 : (at < a.tokens ? a.block_k[token_at(a, at, kv_head) + channel] : 0.0f);
    }
  };
  turn_items<kDoubled>(rope, channels, keys, i, load, put);
}

// Channels [first, first + 8) of the values of key i of a unit; zeros for a key that does not exist.
MOSAIC_DEVICE void value_item(const AttendArgs& a, Unit unit, int kv_head, const TileKeys& keys, int i, int first,
                              float* x) {
  const int d = a.shape.head_dim;
  if (keys.bias[i] == -INFINITY) {
    for (int j = 0; j < 8; ++j) x[j] = 0;
  } else if (unit.part == Part::kPage) {
    const PageEntry page = a.pages[unit.index];
    const std::byte* const panel = page.data + head_offset(page.codec, d, kv_head) + k_panel(page.codec, d);
    with_codec(page.codec, [&](auto c) {
      if constexpr (!decltype(c)::kHadamard) load_values<decltype(c)>(panel, d, i, first, x);
    });
  } else if (unit.part == Part::kRows) {
    const half_t* const row = a.mean_v + summary_at(a, unit.index + i, kv_head);
    if (first + 8 <= d) return load_eight(row + first, x);
    for (int j = 0; j < 8; ++j) x[j] = first + j < d ? simt::widen(row[first + j]) : 0.0f;
  } else {
    const float* const row = a.block_v + token_at(a, unit.index + i, kv_head);
    if (first + 8 <= d) return load_eight(row + first, x);
    for (int j = 0; j < 8; ++j) x[j] = first + j < d ? row[first + j] : 0.0f;
  }
}

}  // namespace mosaic::MOSAIC_SIMT
