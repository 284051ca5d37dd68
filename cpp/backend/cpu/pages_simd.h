// encode, encode_row and decode by vectors. Pages are byte for byte what the codecs' group functions write: 16 channels
// at a time are turned so that a channel's tokens lie in a row, and rows are coded whole.
#pragma once

#include "backend/cpu/tile_simd.h"
#include "codec/rows.h"

namespace mosaic::cpu {
namespace {

// Stops the compiler from fusing what comes before with what follows: codes must round as the plain loop rounds.
MOSAIC_INLINE Vec settle(Vec v) {
#if defined(__x86_64__)
  RawFloat raw = to_raw(v);
  asm("" : "+x"(raw));
  return from_raw(raw);
#else
  RawFloat raw = to_raw(v);
  asm("" : "+w"(raw));
  return from_raw(raw);
#endif
}

MOSAIC_INLINE void store_halves(half_t* to, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(static_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(static_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(static_cast<float32x4_t>(v))));
#else
  for (int i = 0; i < kLanes; ++i) to[i] = float_to_half(v[i]);
#endif
}

// Codes of n numbers; `to` has room for whole vectors.
MOSAIC_INLINE void code_row(const float* x, int n, float low, float inverse, int levels, uint8_t* to) {
  const Vec top(static_cast<float>(levels));
  for (int i = 0; i < n; i += kLanes) {
    const Vec code = stdx::min(stdx::max(settle((load(x + i) - low) * inverse) + 0.5f, Vec(0.0f)), top);
    const IVec whole = stdx::static_simd_cast<IVec>(code);
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(static_cast<__m512i>(whole)));
#else
    for (int lane = 0; lane < kLanes; ++lane) to[i + lane] = static_cast<uint8_t>(whole[lane]);
#endif
  }
}

// One group: its scale into the panel's header, its codes into `codes` (whole vectors). False: all codes are zero.
template <class Codec>
MOSAIC_INLINE bool code_group(std::byte* panel, int groups, int group, float low, float high, const float* x, int n,
                              uint8_t* codes) {
  const AffineScale scale = affine_scale(low, high, Codec::kLevels);
  Codec::steps(panel)[group] = scale.step;
  Codec::steps(panel)[groups + group] = scale.low;
  if (scale.step == 0) return false;
  code_row(x, n, half_to_float(scale.low), 1.0f / half_to_float(scale.step), Codec::kLevels, codes);
  return true;
}

// 16 channels of `count` tokens, lanes beyond the tokens zero: columns[channel][token], and each channel's range.
struct Columns {
  alignas(64) float rows[kUnit][kUnit];
  alignas(64) float columns[kUnit][kUnit];
  alignas(64) float low[kUnit];
  alignas(64) float high[kUnit];

  void read(const float* x, size_t stride, int channels, int count) {
    for (int t = 0; t < kUnit; ++t) {
      for (int at = 0; at < kUnit; at += kLanes) store(&rows[t][at], Vec(0.0f));
      if (t >= count) continue;
      if (channels == kUnit) {
        for (int at = 0; at < kUnit; at += kLanes) store(&rows[t][at], load(x + t * stride + at));
      } else {
        for (int c = 0; c < channels; ++c) rows[t][c] = x[t * stride + c];
      }
    }
    transpose(&rows[0][0], kUnit, kUnit, kUnit, &columns[0][0], kUnit);
    for (int at = 0; at < kUnit; at += kLanes) {
      Vec least_of = load(&rows[0][at]), most_of_all = least_of;
      for (int t = 1; t < count; ++t) {
        least_of = stdx::min(least_of, load(&rows[t][at]));
        most_of_all = stdx::max(most_of_all, load(&rows[t][at]));
      }
      store(low + at, least_of);
      store(high + at, most_of_all);
    }
  }
};

template <class Codec>
inline void encode_keys(std::byte* panel, int d, const float* x, size_t stride, int count) {
  Columns group;
  for (int first = 0; first < d; first += kUnit) {
    const int channels = least(kUnit, d - first);
    group.read(x + first, stride, channels, count);
    for (int i = 0; i < channels; ++i) {
      const int c = first + i;
      if constexpr (std::is_same_v<Codec, Fp32>) {
        copy_row(group.columns[i], kUnit, reinterpret_cast<float*>(panel) + c * kUnit);
      } else if constexpr (std::is_same_v<Codec, Fp16>) {
        half_t* const to = reinterpret_cast<half_t*>(panel) + c * kUnit;
        for (int at = 0; at < kUnit; at += kLanes) store_halves(to + at, load(&group.columns[i][at]));
      } else {
        alignas(16) uint8_t codes[kUnit];
        if (!code_group<Codec>(panel, d, c, group.low[i], group.high[i], group.columns[i], kUnit, codes)) continue;
        for (int t = count; t < kUnit; ++t) codes[t] = 0;
        if constexpr (std::is_same_v<Codec, Int8>) {
          std::memcpy(Codec::codes(panel, d) + c * kUnit, codes, kUnit);
        } else {
          uint64_t halves[2];
          std::memcpy(halves, codes, sizeof halves);
          halves[0] |= halves[1] << 4;
          std::memcpy(Codec::codes(panel, d) + c * (kUnit / 2), halves, sizeof halves[0]);
        }
      }
    }
  }
}

// One token's values. codes: [d rounded up to whole vectors] scratch.
template <class Codec>
inline void encode_values(std::byte* panel, int d, int token, const float* x, uint8_t* codes) {
  if constexpr (std::is_same_v<Codec, Fp32>) {
    copy_row(x, d, reinterpret_cast<float*>(panel) + static_cast<size_t>(token) * d);
  } else if constexpr (std::is_same_v<Codec, Fp16>) {
    half_t* const to = reinterpret_cast<half_t*>(panel) + static_cast<size_t>(token) * d;
    int c = 0;
    for (; c + kLanes <= d; c += kLanes) store_halves(to + c, load(x + c));
    for (; c < d; ++c) to[c] = float_to_half(x[c]);
  } else {
    Vec least_of(x[0]), most_of_all(x[0]);
    int c = 0;
    for (; c + kLanes <= d; c += kLanes) {
      least_of = stdx::min(least_of, load(x + c));
      most_of_all = stdx::max(most_of_all, load(x + c));
    }
    float low = stdx::hmin(least_of), high = stdx::hmax(most_of_all);
    const int whole = c;
    for (; c < d; ++c) {
      low = x[c] < low ? x[c] : low;
      high = x[c] > high ? x[c] : high;
    }
    if (!code_group<Codec>(panel, kUnit, token, low, high, x, whole, codes)) return;
    const float from = half_to_float(Codec::lows(panel, kUnit)[token]);
    const float inverse = 1.0f / half_to_float(Codec::steps(panel)[token]);
    for (c = whole; c < d; ++c) {
      float rest[kLanes] = {x[c]};
      uint8_t one[kLanes];
      code_row(rest, 1, from, inverse, Codec::kLevels, one);
      codes[c] = one[0];
    }
    if constexpr (std::is_same_v<Codec, Int8>) {
      std::memcpy(Codec::codes(panel, kUnit) + static_cast<size_t>(token) * d, codes, static_cast<size_t>(d));
    } else {
      const int half = Codec::half_row(d);
      uint8_t* const to = Codec::codes(panel, kUnit) + static_cast<size_t>(token) * half;
      codes[d] = 0;  // of an odd row's last byte
      for (c = 0; c < half; ++c) to[c] = static_cast<uint8_t>(codes[c] | codes[c + half] << 4);
    }
  }
}

// Codecs whose pages are coded by vectors here; the rest by the plain loops.
template <class C>
constexpr bool kHasPagePath =
    std::is_same_v<C, Fp32> || std::is_same_v<C, Fp16> || std::is_same_v<C, Int8> || std::is_same_v<C, Int4>;
inline bool has_page_path(CodecId codec) {
  return with_codec(codec, [](auto c) { return kHasPagePath<decltype(c)>; });
}

inline void encode_page(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count,
                        uint8_t* codes, std::byte* data) {
  const int d = shape.head_dim;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (kHasPagePath<C>) {
      std::memset(data, 0, static_cast<size_t>(shape.heads) * head_bytes_of<C>(d));
      for (int head = 0; head < shape.heads && count > 0; ++head) {
        std::byte* const panel = data + static_cast<size_t>(head) * head_bytes_of<C>(d);
        encode_keys<C>(panel, d, k + head * d, stride, count);
        for (int t = 0; t < count; ++t)
          encode_values<C>(panel + k_panel_of<C>(d), d, t, v + t * stride + head * d, codes);
      }
    }
  });
}

// The longest head these kernels take; longer ones go the plain way.
constexpr int kMaxHead = 512;

// One token's keys and values into the panels of a half precision page.
inline void encode_half_token(std::byte* panel, size_t k_bytes, int d, int token, const float* k, const float* v) {
  half_t row[kMaxHead];
  int c = 0;
  for (; c + kLanes <= d; c += kLanes) store_halves(row + c, load(k + c));
  for (; c < d; ++c) row[c] = float_to_half(k[c]);
  half_t* const to = reinterpret_cast<half_t*>(panel) + token;
  for (c = 0; c < d; ++c) to[c * kUnit] = row[c];
  encode_values<Fp16>(panel + k_bytes, d, token, v, nullptr);
}

// Keys of tokens [begin, end), `stride` apart: by squares of 16 x 16, or for a token or two number by number.
template <class Codec>
inline void decode_keys(const std::byte* panel, const Tile& tile, const float* mean, int begin, int end, float* to,
                        size_t stride) {
  const int d = tile.head_dim;
  if constexpr (std::is_same_v<Codec, Fp32> || std::is_same_v<Codec, Fp16> || std::is_same_v<Codec, Int8>) {
    if (end - begin <= 2) {
      for (int t = begin; t < end; ++t, to += stride) {
        if constexpr (std::is_same_v<Codec, Fp32>) {
          for (int c = 0; c < d; ++c) to[c] = reinterpret_cast<const float*>(panel)[c * kUnit + t];
        } else if constexpr (std::is_same_v<Codec, Fp16>) {
          half_t row[kMaxHead];
          for (int c = 0; c < d; ++c) row[c] = reinterpret_cast<const half_t*>(panel)[c * kUnit + t];
          widen(row, d, to);
        } else {
          const ScaledKeys scaled(panel, tile, nullptr);
          for (int c = 0; c < d; ++c) to[c] = scaled.lows[c] + scaled.steps[c] * scaled.codes[c * kUnit + t];
        }
      }
      return;
    }
  }
  const KeyPanel<Codec> keys(panel, tile, mean);
  alignas(64) float columns[kUnit][kUnit], rows[kUnit][kUnit];
  for (int first = 0; first < d; first += kUnit) {
    const int channels = least(kUnit, d - first);
    for (int c = 0; c < channels; ++c) {
      for (int part = 0; part < kParts; ++part) store(&columns[c][part * kLanes], keys(first + c, part));
    }
    transpose(&columns[0][0], kUnit, kUnit, kUnit, &rows[0][0], kUnit);  // unused channels hold anything
    for (int t = begin; t < end; ++t) copy_row(rows[t], channels, to + (t - begin) * stride + first);
  }
}

inline void decode_page(CodecId codec, PageShape shape, const std::byte* data, int begin, int end, float* k, float* v,
                        size_t stride, const float* key_mean) {
  const int d = shape.head_dim;
  float scales[2 * (kMaxHead + kLanes)], signs[kMaxHead + kLanes];
  alignas(64) float columns[kMaxHead * kUnit], rows[(kMaxHead + 16) * 4];  // of turned planes
  Tile tile;
  tile.head_dim = d;
  tile.v_stride = round_up(d, kLanes);
  tile.scales = scales, tile.signs = signs, tile.columns = columns, tile.rows = rows;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kHadamard) tile.fill_signs();
    for (int head = 0; head < shape.heads; ++head) {
      const std::byte* const panel = data + static_cast<size_t>(head) * head_bytes_of<C>(d);
      const float* const mean = key_mean != nullptr ? key_mean + head * d : nullptr;
      decode_keys<C>(panel, tile, mean, begin, end, k + head * d, stride);
      for (int t = begin; t < end; ++t) keep_to_half<C>(k + (t - begin) * stride + head * d, d);
      if (v == nullptr) continue;
      const ValuePanel<C> values(panel + k_panel_of<C>(d), d);
      for (int t = begin; t < end; ++t) {
        float* const to = v + (t - begin) * stride + head * d;
        if constexpr (C::kHadamard) {
          alignas(64) float row[kMaxHead + kLanes] = {};
          values(t, row);
          leave_hadamard(tile, row);
          copy_row(row, d, to);
          keep_to_half<C>(to, d);
        } else {
          values(t, to);
        }
      }
    }
  });
}

}  // namespace
}  // namespace mosaic::cpu
