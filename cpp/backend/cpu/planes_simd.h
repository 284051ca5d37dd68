// Planes by vectors (codec/planes.h). Keys: a plane's bytes are turned so that 16 tokens of one byte lie together, codes
// become levels by a table of 16 bytes, and a Hadamard transform of whole numbers in 16 bits runs along the channels: no
// shuffles, and exact. Values: a token's levels in a row. Heads of a multiple of 16 channels; the rest goes by the number.
#pragma once

#include "backend/cpu/simd.h"
#include "codec/planes.h"

namespace mosaic::cpu {
namespace {

constexpr int kByteLanes = 4 * kLanes;
using RawBytes = uint8_t __attribute__((vector_size(kByteLanes)));
using RawBytes16 = uint8_t __attribute__((vector_size(16)));

template <class V>
MOSAIC_INLINE V load_raw(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
MOSAIC_INLINE void store_raw(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// table[index] byte by byte, index < 16; the table is repeated every 16 bytes.
MOSAIC_INLINE RawBytes16 lookup(RawBytes16 table, RawBytes16 index) {
#if defined(__SSSE3__)
  return reinterpret_cast<RawBytes16>(
      _mm_shuffle_epi8(reinterpret_cast<__m128i>(table), reinterpret_cast<__m128i>(index)));
#elif defined(__aarch64__)
  return reinterpret_cast<RawBytes16>(
      vqtbl1q_u8(reinterpret_cast<uint8x16_t>(table), reinterpret_cast<uint8x16_t>(index)));
#else
  RawBytes16 found;
  for (int i = 0; i < 16; ++i) found[i] = table[index[i]];
  return found;
#endif
}
#if defined(__AVX2__)
MOSAIC_INLINE RawBytes lookup(RawBytes table, RawBytes index) {
#if defined(__AVX512F__)
  return reinterpret_cast<RawBytes>(
      _mm512_shuffle_epi8(reinterpret_cast<__m512i>(table), reinterpret_cast<__m512i>(index)));
#else
  return reinterpret_cast<RawBytes>(
      _mm256_shuffle_epi8(reinterpret_cast<__m256i>(table), reinterpret_cast<__m256i>(index)));
#endif
}
#endif

// Levels by the code's upper bits: where the last plane has one bit, `odd` where it is set.
template <class Panel>
struct LevelTables {
  alignas(64) uint8_t even[kByteLanes] = {}, odd[kByteLanes] = {};
  static constexpr bool kOneBit = Panel::kBits % 2 == 1;
  constexpr LevelTables() {
    constexpr int kUpper = kOneBit ? Panel::kBits - 1 : Panel::kBits;
    for (int i = 0; i < kByteLanes; ++i) {
      const int upper = i % (1 << kUpper) % 16;
      even[i] = static_cast<uint8_t>(Panel::level(kOneBit ? 2 * upper : upper));
      odd[i] = static_cast<uint8_t>(Panel::level(kOneBit ? 2 * upper + 1 : upper));
    }
  }
};
template <class Panel>
constexpr LevelTables<Panel> kLevelTables;

// The levels of four codes a byte: high and low are bytes of the first plane and, where there is a second of two bits, of
// that. bit(i): all ones where the last bit of part i is set. put(i, levels).
template <class Panel, class Raw, class Bit, class Put>
MOSAIC_INLINE void levels_of(Raw high, Raw low, const Bit& bit, const Put& put) {
  const Raw even = load_raw<Raw>(kLevelTables<Panel>.even), odd = load_raw<Raw>(kLevelTables<Panel>.odd);
  const auto give = [&](int i, Raw upper) {
    const Raw level = lookup(even, upper);
    if constexpr (LevelTables<Panel>::kOneBit) {
      const Raw set = bit(i), other = lookup(odd, upper);
      put(i, (level & ~set) | (other & set));
    } else {
      put(i, level);
    }
  };
  if constexpr (Panel::kBits <= 3) {
    give(0, high & 3), give(1, (high >> 2) & 3), give(2, (high >> 4) & 3), give(3, high >> 6);
  } else {  // two parts' upper four bits a byte
    const Raw first = ((high & 0x33) << 2) | (low & 0x33), second = (high & 0xcc) | ((low >> 2) & 0x33);
    give(0, first & 15), give(1, second & 15), give(2, first >> 4), give(3, second >> 4);
  }
}

// ---- keys: columns of 16 tokens -----------------------------------------------------------------------------------

// to[j][16] = byte j of 16 tokens, whose rows are `bytes` long. Reads whole vectors: up to 15 bytes behind the plane, which
// a panel has.
inline void turn_plane(const uint8_t* plane, int bytes, uint8_t* to) {
  for (int j = 0; j < bytes; j += 16) {
    RawBytes16 a[16], b[16];
    for (int t = 0; t < 16; ++t) a[t] = load_raw<RawBytes16>(plane + t * bytes + j);
    for (int round = 0; round < 4; ++round) {  // perfect shuffles, as in transpose_square
      for (int i = 0; i < 8; ++i) {
        b[2 * i] = __builtin_shufflevector(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        b[2 * i + 1] =
            __builtin_shufflevector(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
      }
      for (int i = 0; i < 16; ++i) a[i] = b[i];
    }
    for (int i = 0; i < 16; ++i) store_raw(to + (j + i) * 16, a[i]);
  }
}

// 16 bytes as often as a vector holds them.
MOSAIC_INLINE RawBytes repeat(const uint8_t* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<RawBytes>(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  return reinterpret_cast<RawBytes>(
      _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  return load_raw<RawBytes>(from);
#endif
}
// The bit of a channel c, of those a vector begins with, and of the next ones behind it; all are in one byte.
struct BitMasks {
  alignas(64) uint8_t of[8][kByteLanes] = {};
  constexpr BitMasks() {
    for (int bit = 0; bit < 8; ++bit)
      for (int i = 0; i < kByteLanes; ++i) of[bit][i] = static_cast<uint8_t>(1u << (bit + i / 16) % 8);
  }
};
constexpr BitMasks kBitMasks;

// Levels of a panel -> to [D][16]. space: turned planes, [2 x round_up(quarter, 16) + round_up(D / 8, 16)][16].
template <class Panel>
inline void unpack_columns(const std::byte* panel, int d, uint8_t* space, int8_t* to) {
  constexpr int kStep = kByteLanes / 16;  // channels a vector
  const int quarter = Panel::quarter(d);
  const auto* const bytes = reinterpret_cast<const uint8_t*>(panel);
  uint8_t* planes[Panel::kPlanes];
  for (int p = 0; p < Panel::kPlanes; ++p) {
    planes[p] = space;
    turn_plane(bytes + Panel::plane_at(d, p), Panel::plane_bytes(d, p), space);
    space += round_up(Panel::plane_bytes(d, p), 16) * 16;
  }
  const uint8_t* const bits = planes[Panel::kPlanes - 1];
  for (int j = 0; j < quarter; j += kStep) {
    const auto high = load_raw<RawBytes>(planes[0] + j * 16);
    const auto low = Panel::kBits >= 4 ? load_raw<RawBytes>(planes[Panel::kBits >= 4 ? 1 : 0] + j * 16) : high;
    const auto bit = [&](int i) {
      const int c = j + i * quarter;
      const RawBytes found = repeat(bits + c / 8 * 16), mask = load_raw<RawBytes>(kBitMasks.of[c % 8]);
      return reinterpret_cast<RawBytes>((found & mask) == mask);
    };
    levels_of<Panel>(high, low, bit, [&](int i, RawBytes levels) { store_raw(to + (j + i * quarter) * 16, levels); });
  }
}

// Whole numbers of 16 bits, as many as make 16 tokens or half of them.
constexpr int kShortLanes = kLanes == 4 ? 8 : 16;
using RawShorts = int16_t __attribute__((vector_size(2 * kShortLanes)));

MOSAIC_INLINE RawShorts load_shorts(const int16_t* from) { return load_raw<RawShorts>(from); }
MOSAIC_INLINE RawShorts load_shorts(const int8_t* from) {
#if defined(__AVX2__)
  return reinterpret_cast<RawShorts>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
  return reinterpret_cast<RawShorts>(vmovl_s8(vld1_s8(from)));
#else
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<RawShorts>(_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8));
#endif
}

// log2(Radix) steps of the transform from `step` on, over [D][16].
template <int Radix, class From>
inline void hadamard_pass(const From* from, int d, int step, int16_t* to) {
  for (int c = 0; c < d; c += Radix * step) {
    for (int i = c; i < c + step; ++i) {
      for (int part = 0; part < 16; part += kShortLanes) {
        RawShorts x[Radix];
        for (int r = 0; r < Radix; ++r) x[r] = load_shorts(from + (i + r * step) * 16 + part);
        for (int half = 1; half < Radix; half *= 2) {
          for (int r = 0; r < Radix; ++r) {
            if ((r & half) != 0) continue;
            const RawShorts a = x[r], b = x[r + half];
            x[r] = a + b, x[r + half] = a - b;
          }
        }
        for (int r = 0; r < Radix; ++r) store_raw(to + (i + r * step) * 16 + part, x[r]);
      }
    }
  }
}

// Levels [D][16] -> their transform. The largest level times 256 fits 16 bits.
inline void hadamard_levels(const int8_t* from, int d, int16_t* to) {
  const int order = hadamard_order(d);  // 16 at least
  hadamard_pass<8>(from, d, 1, to);
  int step = 8;
  for (; 8 * step <= order; step *= 8) hadamard_pass<8>(to, d, step, to);
  if (4 * step == order) hadamard_pass<4>(to, d, step, to);
  if (2 * step == order) hadamard_pass<2>(to, d, step, to);
}

MOSAIC_INLINE bool has_planes_path(int d) { return d % 16 == 0 && hadamard_order(d) <= 256; }

MOSAIC_INLINE Vec shorts_to_floats(const int16_t* from) {
#if defined(__AVX512F__)
  return Vec(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))));
#elif defined(__AVX2__)
  return Vec(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
#elif defined(__aarch64__)
  return Vec(vcvtq_f32_s32(vmovl_s16(vld1_s16(from))));
#else
  const __m128i shorts = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return Vec(_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(shorts, shorts), 16)));
#endif
}

// ---- values: a token's row ----------------------------------------------------------------------------------------

// kLanes bytes of x from `at` on.
MOSAIC_INLINE Vec signed_bytes_to_floats(RawBytes16 x, int at) {
#if defined(__AVX512F__)
  (void)at;
  return Vec(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(x))));
#elif defined(__AVX2__)
  const auto bytes = reinterpret_cast<__m128i>(x);
  return Vec(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(at == 0 ? bytes : _mm_unpackhi_epi64(bytes, bytes))));
#else
  alignas(16) int8_t from[32];  // wide loads look behind the last
  store_raw(from, x);
#if defined(__aarch64__)
  return Vec(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(from + at))))));
#else
  int32_t word;
  std::memcpy(&word, from + at, sizeof word);
  const __m128i four = _mm_cvtsi32_si128(word), shorts = _mm_unpacklo_epi8(four, four);
  return Vec(_mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(shorts, shorts), 24)));
#endif
#endif
}

// All ones in byte i where bit i is set.
MOSAIC_INLINE RawBytes16 spread_bits(uint32_t bits) {
#if defined(__AVX512BW__)
  return reinterpret_cast<RawBytes16>(_mm_movm_epi8(static_cast<__mmask16>(bits)));
#elif defined(__SSSE3__)
  const __m128i which = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m128i mask = _mm_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m128i bytes = _mm_shuffle_epi8(_mm_cvtsi32_si128(static_cast<int>(bits)), which);
  return reinterpret_cast<RawBytes16>(_mm_cmpeq_epi8(_mm_and_si128(bytes, mask), mask));
#else
  constexpr uint64_t kOnes = 0x0101010101010101u, kBits = 0x8040201008040201u;
  const uint64_t words[2] = {(bits & 0xffu) * kOnes, (bits >> 8 & 0xffu) * kOnes}, masks[2] = {kBits, kBits};
  const auto mask = load_raw<RawBytes16>(masks);
  return reinterpret_cast<RawBytes16>((load_raw<RawBytes16>(words) & mask) == mask);
#endif
}

// The scales of 16 tokens.
template <class Panel>
MOSAIC_INLINE void planes_scales(const std::byte* panel, int d, float* to) {
  const Vec factor(hadamard_scale(d) / Panel::kScaleUnit);
  for (int at = 0; at < 16; at += kLanes) store(to + at, load(Panel::scales(panel, d) + at) * factor);
}

// A token's levels times their scale: numbers of the Hadamard basis.
template <class Panel>
inline void planes_row(const std::byte* panel, int d, int token, float scale, float* to) {
  const int quarter = Panel::quarter(d);
  const auto* const bytes = reinterpret_cast<const uint8_t*>(panel);
  const auto row = [&](int p) { return bytes + Panel::plane_at(d, p) + token * Panel::plane_bytes(d, p); };
  const uint8_t *const high_row = row(0), *const low_row = row(Panel::kBits >= 4 ? 1 : 0);
  const uint8_t* const bits = row(Panel::kPlanes - 1);
  for (int j = 0; j < quarter; j += 16) {
    const auto high = load_raw<RawBytes16>(high_row + j), low = load_raw<RawBytes16>(low_row + j);
    const auto bit = [&](int i) {
      const int c = j + i * quarter;
      uint32_t word;
      std::memcpy(&word, bits + c / 8, sizeof word);
      return spread_bits(word >> c % 8);
    };
    const int count = least(16, quarter - j);
    levels_of<Panel>(high, low, bit, [&](int i, RawBytes16 levels) {
      float* const part = to + j + i * quarter;
      if (count == 16) {
        for (int c = 0; c < 16; c += kLanes) store(part + c, signed_bytes_to_floats(levels, c) * scale);
      } else {
        for (int c = 0; c < count; ++c) part[c] = static_cast<float>(static_cast<int8_t>(levels[c])) * scale;
      }
    });
  }
}

}  // namespace
}  // namespace mosaic::cpu
