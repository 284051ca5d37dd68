// A tile: up to 32 tokens of one kv head, decoded and rotated, in the shape the matrix kernel wants. It is the only
// dequantised copy there ever is. Tokens come in units: a page, 16 summaries or 16 tokens of the block. Units stand close
// together: each is written as 16 lanes, and the next begins where its tokens end, over the lanes that hold nothing.
// Clusters leave many pages half full, and half the work would be for nobody.
#pragma once

#include <limits>

#include "backend/cpu/gemm_simd.h"
#include "backend/cpu/hadamard_simd.h"
#include "backend/cpu/planes_simd.h"
#include "backend/ops.h"
#include "codec/codecs.h"

namespace mosaic::cpu {
namespace {

constexpr int kUnit = kPageTokens;
constexpr int kTile = 2 * kUnit;
constexpr int kTileStride = kTile + kUnit;  // floats from channel to channel: the last unit may overhang
constexpr int kParts = kUnit / kLanes;      // vectors of a unit's lanes
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// Hands out aligned pieces of the scratch; with no memory it only counts, so planning and carving cannot disagree.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}
  template <class T>
  T* take(size_t count) {
    T* const piece = memory_ != nullptr ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += pad64(count * sizeof(T));
    return piece;
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

struct Tile {
  int head_dim = 0;
  int v_stride = 0;          // head_dim rounded up to whole vectors; the rest of a row of v is zero
  float* k = nullptr;        // [D][kTileStride], rotated
  float* v = nullptr;        // [kTile][v_stride]
  float* turns = nullptr;    // [2 n][kTileStride] cos of each frequency, then sin, for every lane
  float* rows = nullptr;     // [kTile][max(D, 2 n)] before a transpose
  float* columns = nullptr;  // [D][kUnit] after it
  float* scales = nullptr;   // [2][v_stride] a panel's steps and lows
  float* signs = nullptr;    // [v_stride] of the Hadamard basis
  int32_t* axis = nullptr;   // [n] which of (t, h, w) drives a frequency
  float bias[kTile];         // on the logit; -inf: nothing in this lane
  int32_t order[kTile];      // block token in this lane, seen by queries from it on; -1: seen by all
  int32_t position[kTile][3];
  int unit[kTile];  // units in this tile, and the lane of each one's token 0
  int base[kTile];
  int units = 0;
  int width = kTile;    // lanes that may be used
  int last = 0;         // one past the last lane that holds a token
  bool causal = false;  // some lane has an order

  int lanes() const { return round_up(last, kLanes); }
  void clear() {
    units = last = 0;
    causal = false;
    for (int i = 0; i < kTile; ++i) {
      bias[i] = kMinusInfinity;
      order[i] = -1;
      position[i][0] = position[i][1] = position[i][2] = 0;
    }
  }

  void carve(Carver& carver, int d) {
    head_dim = d;
    v_stride = round_up(d, kLanes);
    k = carver.take<float>(static_cast<size_t>(d) * kTileStride);
    v = carver.take<float>(static_cast<size_t>(v_stride) * kTile);
    turns = carver.take<float>(static_cast<size_t>(d + 1) * kTileStride);
    rows = carver.take<float>(static_cast<size_t>(d + 1) * kTile);
    columns = carver.take<float>(static_cast<size_t>(d) * kUnit);
    scales = carver.take<float>(2 * static_cast<size_t>(v_stride));
    signs = carver.take<float>(static_cast<size_t>(v_stride));
    axis = carver.take<int32_t>(static_cast<size_t>(d));
  }
  // For pages that are decoded a unit at a time, not rotated.
  void carve_decoding(Carver& carver, int d) {
    head_dim = d;
    v_stride = round_up(d, kLanes);
    v = carver.take<float>(static_cast<size_t>(v_stride) * kUnit);
    rows = carver.take<float>((static_cast<size_t>(d) + 48) * 4);  // turned planes
    columns = carver.take<float>(static_cast<size_t>(d) * kUnit);
    scales = carver.take<float>(2 * static_cast<size_t>(v_stride));
    signs = carver.take<float>(static_cast<size_t>(v_stride));
  }
  void fill_signs() {
    for (int c = 0; c < head_dim; ++c) signs[c] = hadamard_sign(c);
  }
};

MOSAIC_INLINE void widen(const half_t* from, int n, float* to) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) to[i] = half_to_float(from[i]);
}

// ---- angles -------------------------------------------------------------------------------------------------------

inline void fill_axes(const RopeSpec& spec, int32_t* axis) {
  for (int i = 0; i < spec.frequencies(); ++i) axis[i] = spec.axis_of(i);
}

// row: [2 n] cos, sin of one position, as RopeTable::row but by vectors.
inline void angle_row(const RopeTable& rope, const int32_t* axis, const int32_t* position, float* row) {
  const int n = rope.spec().frequencies();
  const bool multi = rope.spec().is_multi() && (position[0] != position[1] || position[0] != position[2]);
  for (int which = 0; which < (multi ? 3 : 1); ++which) {
    const float* const a = rope.coarse(position[which]);
    const float* const b = rope.fine(position[which]);
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Vec cos = load(a + i) * load(b + i) - load(a + n + i) * load(b + n + i);
      Vec sin = load(a + i) * load(b + n + i) + load(a + n + i) * load(b + i);
      if (which > 0) {
        const IVec mine(axis + i, stdx::element_aligned);
        const auto other = stdx::static_simd_cast<Vec>(mine) != Vec(static_cast<float>(which));
        stdx::where(other, cos) = load(row + i);
        stdx::where(other, sin) = load(row + n + i);
      }
      store(row + i, cos);
      store(row + n + i, sin);
    }
    for (; i < n; ++i) {
      if (which > 0 && axis[i] != which) continue;
      row[i] = a[i] * b[i] - a[n + i] * b[n + i];
      row[n + i] = a[i] * b[n + i] + a[n + i] * b[i];
    }
  }
}

// Rotates one row of head_dim numbers and scales it.
inline void rotate_row(const RopeSpec* spec, const float* turns, float scale, const float* from, int d, float* to) {
  const int n = spec != nullptr ? spec->frequencies() : 0;
  const float* const sin = turns + n;
  int c = 2 * n;
  if (n > 0 && spec->layout == RopeLayout::kHalf) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const Vec re = load(from + i) * scale, im = load(from + n + i) * scale;
      store(to + i, re * load(turns + i) - im * load(sin + i));
      store(to + n + i, im * load(turns + i) + re * load(sin + i));
    }
    for (; i < n; ++i) {
      const float re = from[i] * scale, im = from[n + i] * scale;
      to[i] = re * turns[i] - im * sin[i];
      to[n + i] = im * turns[i] + re * sin[i];
    }
  } else {
    for (int i = 0; i < n; ++i) {
      const float re = from[2 * i] * scale, im = from[2 * i + 1] * scale;
      to[2 * i] = re * turns[i] - im * sin[i];
      to[2 * i + 1] = im * turns[i] + re * sin[i];
    }
  }
  for (; c + kLanes <= d; c += kLanes) store(to + c, load(from + c) * scale);
  for (; c < d; ++c) to[c] = from[c] * scale;
}

// Angles of every lane, for all heads of the tile.
inline void fill_turns(const RopeTable* rope, Tile& tile) {
  const int n = rope != nullptr ? rope->spec().frequencies() : 0;
  if (n == 0) return;
  for (int lane = 0; lane < tile.lanes(); ++lane) {
    angle_row(*rope, tile.axis, tile.position[lane], tile.rows + static_cast<size_t>(lane) * 2 * n);
  }
  transpose(tile.rows, static_cast<size_t>(2 * n), tile.lanes(), 2 * n, tile.turns, kTileStride);
}

// ---- keys ---------------------------------------------------------------------------------------------------------

// A panel's keys by channel and part of the unit's lanes. Codecs that have no way of their own here are read number by
// number, and out of the Hadamard basis where they are in it. mean [D], or null, is what record codecs took off the keys.
template <class Codec>
struct KeyPanel {
  const float* at;
  KeyPanel(const std::byte* panel, const Tile& tile, const float* mean) : at(tile.columns) {
    const int d = tile.head_dim;
    for (int c = 0; c < d; ++c) {
      for (int t = 0; t < kUnit; ++t) tile.columns[c * kUnit + t] = Codec::k(panel, d, c, t);
    }
    if constexpr (Codec::kHadamard) {
      alignas(64) float scale[kUnit];
      for (int t = 0; t < kUnit; ++t) scale[t] = Codec::K::scale(panel, d, t);
      hadamard_columns(tile.columns, d, kUnit);
      for (int c = 0; c < d; ++c) {
        const Vec base(mean != nullptr ? mean[c] : 0.0f);
        for (int part = 0; part < kParts; ++part) {
          float* const x = tile.columns + c * kUnit + part * kLanes;
          store(x, load(x) * (load(scale + part * kLanes) * tile.signs[c]) + base);
        }
      }
    }
  }
  MOSAIC_INLINE Vec operator()(int channel, int part) const { return load(at + channel * kUnit + part * kLanes); }
};

template <>
struct KeyPanel<Fp32> {
  const float* at;
  KeyPanel(const std::byte* panel, const Tile&, const float*) : at(reinterpret_cast<const float*>(panel)) {}
  explicit KeyPanel(const float* columns) : at(columns) {}
  MOSAIC_INLINE Vec operator()(int channel, int part) const { return load(at + channel * kUnit + part * kLanes); }
};
template <>
struct KeyPanel<Fp16> {
  const half_t* at;
  KeyPanel(const std::byte* panel, const Tile&, const float*) : at(reinterpret_cast<const half_t*>(panel)) {}
  MOSAIC_INLINE Vec operator()(int channel, int part) const { return load(at + channel * kUnit + part * kLanes); }
};

// int8 and int4: the scales of all channels are widened first, the codes as they are met.
struct ScaledKeys {
  const uint8_t* codes;
  const float* steps;
  const float* lows;
  ScaledKeys(const std::byte* panel, const Tile& tile, const float*)
      : codes(Int8::codes(panel, tile.head_dim)), steps(tile.scales), lows(tile.scales + tile.v_stride) {
    widen(Int8::steps(panel), tile.head_dim, tile.scales);
    widen(Int8::lows(panel, tile.head_dim), tile.head_dim, tile.scales + tile.v_stride);
  }
  MOSAIC_INLINE Vec scale(Vec code, int channel) const { return code * steps[channel] + lows[channel]; }
};
template <>
struct KeyPanel<Int8> : ScaledKeys {
  using ScaledKeys::ScaledKeys;
  MOSAIC_INLINE Vec operator()(int channel, int part) const {
    return scale(to_floats(load_bytes(codes + channel * kUnit + part * kLanes)), channel);
  }
};
template <>
struct KeyPanel<Int4> : ScaledKeys {
  using ScaledKeys::ScaledKeys;
  MOSAIC_INLINE Vec operator()(int channel, int part) const {
    return scale(load_nibbles(codes + channel * (kUnit / 2), part), channel);
  }
};

// k8v8: a scale a token, so a vector of them for all channels.
template <>
struct KeyPanel<K8V8> {
  const uint8_t* codes;
  alignas(64) float steps[kUnit], lows[kUnit];
  KeyPanel(const std::byte* panel, const Tile&, const float*) : codes(K8V8::codes(panel)) {
    widen(K8V8::steps(panel), kUnit, steps);
    widen(K8V8::lows(panel), kUnit, lows);
  }
  MOSAIC_INLINE Vec operator()(int channel, int part) const {
    const Vec code = to_floats(load_bytes(codes + channel * kUnit + part * kLanes));
    return code * load(steps + part * kLanes) + load(lows + part * kLanes);
  }
};

// Planes: their transform as whole numbers, brought to size as they are met.
template <int KeyBits, int ValueBits>
struct KeyPanel<Planes<KeyBits, ValueBits>> {
  using Panel = PlanePanel<KeyBits>;
  const int16_t* at;  // [D][kUnit]
  const float* signs;
  const float* mean;
  alignas(64) float scale[2][kUnit];  // of positive channels, of negative ones

  KeyPanel(const std::byte* panel, const Tile& tile, const float* mean_of_lane)
      : at(reinterpret_cast<const int16_t*>(tile.columns)), signs(tile.signs), mean(mean_of_lane) {
    const int d = tile.head_dim;
    auto* const transform = reinterpret_cast<int16_t*>(tile.columns);
    if (has_planes_path(d)) {
      auto* const levels = reinterpret_cast<int8_t*>(transform + d * kUnit);
      unpack_columns<Panel>(panel, d, reinterpret_cast<uint8_t*>(tile.rows), levels);
      hadamard_levels(levels, d, transform);
    } else {
      read_numbers(panel, d, transform);
    }
    planes_scales<Panel>(panel, d, scale[0]);
    for (int at = 0; at < kUnit; at += kLanes) store(scale[1] + at, -load(scale[0] + at));
  }
  MOSAIC_INLINE Vec operator()(int channel, int part) const {
    const Vec levels = shorts_to_floats(at + channel * kUnit + part * kLanes);
    const Vec number = levels * load(scale[signs[channel] < 0 ? 1 : 0] + part * kLanes);
    return mean != nullptr ? number + mean[channel] : number;
  }
  // Heads that vectors do not divide. Few of their channels are transformed, so 16 bits are enough.
  static void read_numbers(const std::byte* panel, int d, int16_t* to) {
    for (int t = 0; t < kUnit; ++t) {
      float row[kMostRecordHead];
      for (int c = 0; c < d; ++c) row[c] = static_cast<float>(Panel::level(Panel::code_at(panel, d, t, c)));
      hadamard(row, d);
      for (int c = 0; c < d; ++c) to[c * kUnit + t] = static_cast<int16_t>(row[c]);
    }
  }
};

// Keys of one unit into lanes [lane, lane + 16) of tile.k, rotated on the way.
template <class Keys>
inline void fill_keys(const Keys& keys, const RopeSpec* spec, int lane, Tile& tile) {
  const int n = spec != nullptr ? spec->frequencies() : 0;
  const int next = n > 0 && spec->layout == RopeLayout::kHalf ? n : 1;  // from one channel of a pair to the other
  const int step = next == 1 ? 2 : 1;                                   // from one pair to the next
  float* const k = tile.k + lane;
  const float* const turns = tile.turns + lane;
  for (int i = 0; i < n; ++i) {
    const int a = i * step, b = a + next;
    for (int part = 0; part < kParts; ++part) {
      const int at = part * kLanes;
      const Vec re = keys(a, part), im = keys(b, part);
      const Vec cos = load(turns + i * kTileStride + at), sin = load(turns + (n + i) * kTileStride + at);
      store(k + a * kTileStride + at, re * cos - im * sin);
      store(k + b * kTileStride + at, im * cos + re * sin);
    }
  }
  for (int c = 2 * n; c < tile.head_dim; ++c) {
    for (int part = 0; part < kParts; ++part) store(k + c * kTileStride + part * kLanes, keys(c, part));
  }
}

// ---- values -------------------------------------------------------------------------------------------------------

MOSAIC_INLINE void copy_row(const float* from, int n, float* to) {
  int c = 0;
  for (; c + kLanes <= n; c += kLanes) store(to + c, load(from + c));
  for (; c < n; ++c) to[c] = from[c];
}
MOSAIC_INLINE void clear_row(int n, float* to) {
  for (int c = 0; c < n; c += kLanes) store(to + c, Vec(0.0f));
}

MOSAIC_INLINE void byte_row(const uint8_t* codes, int n, float step, float low, float* to) {
  int c = 0;
  for (; c + kLanes <= n; c += kLanes) store(to + c, to_floats(load_bytes(codes + c)) * step + low);
  for (; c < n; ++c) to[c] = static_cast<float>(codes[c]) * step + low;
}

// One token's values, in the codec's basis. A page is read for its tokens only: what lies in other rows may be anything.
template <class Codec>
MOSAIC_INLINE void value_row(const std::byte* panel, int d, int token, float* to) {
  int c = 0;
  if constexpr (std::is_same_v<Codec, Fp32>) {
    copy_row(reinterpret_cast<const float*>(panel) + static_cast<size_t>(token) * d, d, to);
  } else if constexpr (std::is_same_v<Codec, Fp16>) {
    widen(reinterpret_cast<const half_t*>(panel) + static_cast<size_t>(token) * d, d, to);
  } else if constexpr (std::is_same_v<Codec, K8V8>) {
    const float step = half_to_float(Codec::steps(panel)[token]), low = half_to_float(Codec::lows(panel)[token]);
    byte_row(Codec::codes(panel) + static_cast<size_t>(token) * d, d, step, low, to);
  } else if constexpr (!std::is_same_v<Codec, Int8> && !std::is_same_v<Codec, Int4>) {
    for (; c < d; ++c) to[c] = Codec::v(panel, d, token, c);
    if constexpr (Codec::kHadamard) {
      const float scale = Codec::V::scale(panel, d, token);
      for (c = 0; c < d; ++c) to[c] *= scale;
    }
  } else {
    const float step = half_to_float(Codec::steps(panel)[token]);
    const float low = half_to_float(Codec::lows(panel, kUnit)[token]);
    if constexpr (std::is_same_v<Codec, Int8>) {
      byte_row(Codec::codes(panel, kUnit) + static_cast<size_t>(token) * d, d, step, low, to);
    } else {
      const int half = Codec::half_row(d);
      const uint8_t* const codes = Codec::codes(panel, kUnit) + static_cast<size_t>(token) * half;
      for (; c + kLanes <= d - half; c += kLanes) {
        const Bytes pairs = load_bytes(codes + c);
        store(to + c, to_floats(low_nibbles(pairs)) * step + low);
        store(to + half + c, to_floats(high_nibbles(pairs)) * step + low);
      }
      for (; c < half; ++c) {
        to[c] = static_cast<float>(codes[c] & 15) * step + low;
        if (half + c < d) to[half + c] = static_cast<float>(codes[c] >> 4) * step + low;
      }
    }
  }
}

template <class Codec>
constexpr bool kIsPlanes = false;
template <int KeyBits, int ValueBits>
constexpr bool kIsPlanes<Planes<KeyBits, ValueBits>> = true;

// A panel's values, token by token.
template <class Codec>
struct ValuePanel {
  const std::byte* panel;
  int d;
  ValuePanel(const std::byte* values, int head_dim) : panel(values), d(head_dim) {}
  MOSAIC_INLINE void operator()(int token, float* to) const { value_row<Codec>(panel, d, token, to); }
};
template <int KeyBits, int ValueBits>
struct ValuePanel<Planes<KeyBits, ValueBits>> {
  using Codec = Planes<KeyBits, ValueBits>;
  const std::byte* panel;
  int d;
  alignas(64) float scale[kUnit];
  ValuePanel(const std::byte* values, int head_dim) : panel(values), d(head_dim) {
    planes_scales<typename Codec::V>(panel, d, scale);
  }
  MOSAIC_INLINE void operator()(int token, float* to) const {
    if (has_planes_path(d)) return planes_row<typename Codec::V>(panel, d, token, scale[token], to);
    value_row<Codec>(panel, d, token, to);
  }
};

// What was summed in the Hadamard basis, as numbers.
inline void leave_hadamard(const Tile& tile, float* x) {
  hadamard_row(x, tile.head_dim);
  int c = 0;
  for (; c + kLanes <= tile.head_dim; c += kLanes) store(x + c, load(x + c) * load(tile.signs + c));
  for (; c < tile.head_dim; ++c) x[c] *= tile.signs[c];
}

inline bool in_hadamard(CodecId codec) {
  return with_codec(codec, [](auto c) { return decltype(c)::kHadamard; });
}

}  // namespace
}  // namespace mosaic::cpu
