// A vector of floats of whatever width this object was compiled for, and what <experimental/simd> lacks: conversions
// from half and from bytes, exp2, transpose. Included only by simd_ops.cc, which is compiled once per instruction set;
// everything lives in an unnamed namespace so that no two of those objects ever share a function.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <experimental/simd>

#include "core/dtype.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MOSAIC_INLINE inline __attribute__((always_inline))

namespace mosaic::cpu {
namespace {

namespace stdx = std::experimental;
using Vec = stdx::native_simd<float>;
using IVec = stdx::rebind_simd_t<int32_t, Vec>;
constexpr int kLanes = static_cast<int>(Vec::size());
static_assert(kLanes == 4 || kLanes == 8 || kLanes == 16);

// The same registers as plain compiler vectors, for shuffles and conversions.
using RawFloat = float __attribute__((vector_size(kLanes * 4)));
using RawUint = uint32_t __attribute__((vector_size(kLanes * 4)));
using RawInt = int32_t __attribute__((vector_size(kLanes * 4)));
using RawShort = uint16_t __attribute__((vector_size(kLanes * 2)));

MOSAIC_INLINE Vec from_raw(RawFloat v) { return std::bit_cast<Vec>(v); }
MOSAIC_INLINE RawFloat to_raw(Vec v) { return std::bit_cast<RawFloat>(v); }

MOSAIC_INLINE Vec load(const float* p) { return Vec(p, stdx::element_aligned); }
MOSAIC_INLINE void store(float* p, Vec v) { v.copy_to(p, stdx::element_aligned); }

// kLanes bytes in the low end of a register. By intrinsics: GCC 12 takes __builtin_convertvector of bytes apart.
#if defined(__aarch64__)
using Bytes = uint8x8_t;
MOSAIC_INLINE Bytes load_bytes(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return vreinterpret_u8_u32(vdup_n_u32(word));
}
MOSAIC_INLINE Bytes low_nibbles(Bytes b) { return vand_u8(b, vdup_n_u8(15)); }
MOSAIC_INLINE Bytes high_nibbles(Bytes b) { return vshr_n_u8(b, 4); }
MOSAIC_INLINE Vec to_floats(Bytes b) { return Vec(vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(b))))); }
#else
using Bytes = __m128i;
MOSAIC_INLINE Bytes load_bytes(const void* p) {
#if defined(__AVX512F__)
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
#elif defined(__AVX2__)
  return _mm_loadl_epi64(static_cast<const __m128i*>(p));
#else
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm_cvtsi32_si128(word);
#endif
}
MOSAIC_INLINE Bytes low_nibbles(Bytes b) { return _mm_and_si128(b, _mm_set1_epi8(15)); }
MOSAIC_INLINE Bytes high_nibbles(Bytes b) { return _mm_and_si128(_mm_srli_epi16(b, 4), _mm_set1_epi8(15)); }
MOSAIC_INLINE Vec to_floats(Bytes b) {
#if defined(__AVX512F__)
  return Vec(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b)));
#elif defined(__AVX2__)
  return Vec(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)));
#else
  const __m128i zero = _mm_setzero_si128();
  return Vec(_mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(b, zero), zero)));
#endif
}
#endif

// Part `part` of 16 codes kept in eight bytes: 0-7 in the low nibbles, 8-15 in the high ones.
MOSAIC_INLINE Vec load_nibbles(const uint8_t* p, int part) {
#if defined(__AVX512F__)
  (void)part;
  const Bytes pairs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return to_floats(_mm_unpacklo_epi64(low_nibbles(pairs), high_nibbles(pairs)));
#else
  const Bytes pairs = load_bytes(p + part * kLanes % 8);
  return to_floats(part * kLanes < 8 ? low_nibbles(pairs) : high_nibbles(pairs));
#endif
}

MOSAIC_INLINE Vec load(const half_t* p) {
#if defined(__AVX512F__)
  return Vec(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return Vec(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__aarch64__)
  return Vec(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))));
#else
  // Exponent and mantissa move into place, and a product by 2^112 fixes the bias, subnormals included.
  RawShort raw;
  std::memcpy(&raw, p, sizeof raw);
  const RawInt bits = __builtin_convertvector(raw, RawInt);
  const RawInt magnitude = (bits & 0x7fff) << 13;
  RawInt value = std::bit_cast<RawInt>(std::bit_cast<RawFloat>(magnitude) * 0x1p112f);
  value = (magnitude >= 0x0f800000) ? (magnitude | 0x7f800000) : value;
  return std::bit_cast<Vec>(value | (bits & 0x8000) << 16);
#endif
}

// 2^x for x <= 0 or moderate, to 2e-7: 2^round(x) through the exponent bits, a polynomial for the rest. Below -126: 0.
MOSAIC_INLINE Vec exp2(Vec x) {
  x = stdx::max(x, Vec(-127.0f));
  x = stdx::min(x, Vec(127.0f));
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const Vec shifted = x + 12582912.0f;
  const Vec f = x - (shifted - 12582912.0f);  // in [-0.5, 0.5]
  // Taylor series of 2^f about 0: the terms are ln(2)^n / n!, and the first one dropped is at most 1.2e-7.
  Vec p = f * 1.5403530e-4f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  const RawUint exponent = (std::bit_cast<RawUint>(shifted) << 23) + (127u << 23);  // wraps to 0 at -127
  return p * std::bit_cast<Vec>(exponent);
}

// Lane by lane: GCC 12's vector of 16 warns of its own header.
MOSAIC_INLINE Vec square_root(Vec x) {
  return Vec([&](int lane) { return __builtin_sqrtf(x[lane]); });
}

// Halves of two vectors, interleaved.
template <int... I>
MOSAIC_INLINE RawFloat zip_low(RawFloat a, RawFloat b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * kLanes)...);
}
template <int... I>
MOSAIC_INLINE RawFloat zip_high(RawFloat a, RawFloat b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + (I % 2) * kLanes)...);
}

// to[c * to_stride + r] = from[r * from_stride + c] for kLanes rows and columns.
MOSAIC_INLINE void transpose_square(const float* from, size_t from_stride, float* to, size_t to_stride) {
  constexpr auto kIndex = std::make_integer_sequence<int, kLanes>{};
  RawFloat a[kLanes], b[kLanes];
  for (int r = 0; r < kLanes; ++r) a[r] = to_raw(load(from + r * from_stride));
  for (int step = 1; step < kLanes; step *= 2) {  // log2(kLanes) perfect shuffles make a transpose
    for (int i = 0; i < kLanes / 2; ++i) {
      b[2 * i] = zip_low(a[i], a[i + kLanes / 2], kIndex);
      b[2 * i + 1] = zip_high(a[i], a[i + kLanes / 2], kIndex);
    }
    for (int i = 0; i < kLanes; ++i) a[i] = b[i];
  }
  for (int c = 0; c < kLanes; ++c) store(to + c * to_stride, from_raw(a[c]));
}

// to[c * to_stride + r] = from[r * from_stride + c] for `rows` (a multiple of kLanes) rows of n columns.
MOSAIC_INLINE void transpose(const float* from, size_t from_stride, int rows, int n, float* to, size_t to_stride) {
  for (int r = 0; r < rows; r += kLanes) {
    int c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
    }
    for (; c < n; ++c) {
      for (int i = r; i < r + kLanes; ++i) to[c * to_stride + i] = from[i * from_stride + c];
    }
  }
}

MOSAIC_INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
MOSAIC_INLINE int least(int a, int b) { return a < b ? a : b; }
MOSAIC_INLINE int most(int a, int b) { return a > b ? a : b; }

}  // namespace
}  // namespace mosaic::cpu
