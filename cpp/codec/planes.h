// Planes: a record a token, in few bits. (key - mean) or value, signs and Walsh-Hadamard (hadamard.h), one half as scale,
// and for every number the nearest of 2^bits levels that suit a normal distribution (Lloyd-Max). The code rises with the
// number and lies in planes: 5 bits = 2 + 2 + 1, 4 = 2 + 2, 3 = 2 + 1, 2 = 2, highest first. So the first plane alone is a
// coarse key: its four levels are what the codes under them are on average.
//   panel  plane [16][bytes of a token] ..., scales [16] as half
//   two bits  byte j holds channels j + i x quarter at bit 2i, quarter = ceil(D / 4)      a vector of bytes is four of codes
//   one bit   byte j holds channels 8j + i at bit i                                       a word of bits is a mask
// Levels are whole numbers (at most 95 to 114), so a transform of them is exact in 16 bits up to 256 channels and every
// kernel decodes the same; against the best real levels the error grows by less than 1 %.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "codec/hadamard.h"
#include "core/ids.h"

namespace mosaic {

template <int Bits>
struct PlaneLevels;  // unit: what a deviation of 1 is; levels: the positive ones, a byte each, the least first

template <>
struct PlaneLevels<2> {
  static constexpr float kUnit = 53.0f;
  static constexpr uint64_t kLow = 0x50'18, kHigh = 0;  // 24 80
  static constexpr int kCoarse = 24, kCoarseFar = 80;
};
template <>
struct PlaneLevels<3> {
  static constexpr float kUnit = 53.0f;
  static constexpr uint64_t kLow = 0x72'47'28'0d, kHigh = 0;  // 13 40 71 114
  static constexpr int kCoarse = 25, kCoarseFar = 83;
};
template <>
struct PlaneLevels<4> {
  static constexpr float kUnit = 38.25f;
  static constexpr uint64_t kLow = 0x69'4f'3e'30'24'19'0f'05, kHigh = 0;  // 5 15 25 36 48 62 79 105
  static constexpr int kCoarse = 19, kCoarseFar = 61;
};
template <>
struct PlaneLevels<5> {
  static constexpr float kUnit = 29.0f;
  static constexpr uint64_t kLow = 0x1e'1a'16'12'0e'0a'06'02;   // 2 6 10 14 18 22 26 30
  static constexpr uint64_t kHigh = 0x5f'4e'43'3b'34'2e'28'23;  // 35 40 46 52 59 67 78 95
  static constexpr int kCoarse = 15, kCoarseFar = 47;
};

// One panel, keys or values, of 16 tokens.
template <int Bits>
struct PlanePanel {
  using Levels = PlaneLevels<Bits>;
  static constexpr int kBits = Bits;
  static constexpr int kHalf = 1 << (Bits - 1);  // levels of one sign; code kHalf is the least positive one
  static constexpr int kPlanes = (Bits + 1) / 2;
  static constexpr float kScaleUnit = 8.0f;  // the half holds 8 x scale: neither small nor large rows leave its range
  static constexpr float kUnit = Levels::kUnit;

  // Bits of plane p, how far left they stand in the code, bytes of a token, and where the plane begins.
  MOSAIC_HD static constexpr int plane_bits(int p) { return 2 * p + 1 == Bits ? 1 : 2; }
  MOSAIC_HD static constexpr int plane_shift(int p) { return Bits - 2 * p - plane_bits(p); }
  MOSAIC_HD static int quarter(int d) { return (d + 3) / 4; }
  MOSAIC_HD static int plane_bytes(int d, int p) { return plane_bits(p) == 2 ? quarter(d) : (d + 7) / 8; }
  MOSAIC_HD static int plane_at(int d, int p) { return kPageTokens * p * quarter(d); }  // all before p have two bits
  MOSAIC_HD static size_t scales_at(int d) {
    return static_cast<size_t>(plane_at(d, kPlanes - 1)) +
           static_cast<size_t>(kPageTokens) * plane_bytes(d, kPlanes - 1);
  }
  MOSAIC_HD static size_t bytes(int d) { return scales_at(d) + kPageTokens * sizeof(half_t); }

  // The token's pieces of a panel: piece p of token t is the bytes at offset + t x size.
  static constexpr int kPieces = kPlanes + 1;
  MOSAIC_HD static void piece(int d, int p, size_t* offset, size_t* size) {
    *offset = p < kPlanes ? static_cast<size_t>(plane_at(d, p)) : scales_at(d);
    *size = p < kPlanes ? static_cast<size_t>(plane_bytes(d, p)) : sizeof(half_t);
  }

  MOSAIC_HD static constexpr int magnitude(int i) {
    return static_cast<int>((i < 8 ? Levels::kLow >> 8 * i : Levels::kHigh >> 8 * (i - 8)) & 0xffu);
  }
  MOSAIC_HD static constexpr int level(int code) {
    return code < kHalf ? -magnitude(kHalf - 1 - code) : magnitude(code - kHalf);
  }
  // The code of x deviations times kUnit; borders lie halfway between levels.
  MOSAIC_HD static int code(float x) {
    const float size = x < 0 ? -x : x;
    int i = 0;
    for (int j = 0; j + 1 < kHalf; ++j) i += size > 0.5f * static_cast<float>(magnitude(j) + magnitude(j + 1)) ? 1 : 0;
    return x < 0 ? kHalf - 1 - i : kHalf + i;
  }
  // What the first plane alone says of a code.
  MOSAIC_HD static int coarse_level(int code) {
    const int top = code >> (Bits - 2);
    const int size = top == 0 || top == 3 ? Levels::kCoarseFar : Levels::kCoarse;
    return top < 2 ? -size : size;
  }

  MOSAIC_HD static half_t* scales(std::byte* panel, int d) { return reinterpret_cast<half_t*>(panel + scales_at(d)); }
  MOSAIC_HD static const half_t* scales(const std::byte* panel, int d) {
    return reinterpret_cast<const half_t*>(panel + scales_at(d));
  }
  // What a transformed row of levels is multiplied with.
  MOSAIC_HD static float scale(const std::byte* panel, int d, int token) {
    return half_to_float(scales(panel, d)[token]) * (hadamard_scale(d) / kScaleUnit);
  }
  // The scale of a row whose transform has product `ry` with its levels, which have the square sum `yy`.
  MOSAIC_HD static half_t scale_of(float ry, float yy, int d) {
    const float scale = ry / yy * (hadamard_scale(d) * kScaleUnit);
    return float_to_half(scale < 65504.0f ? scale : 65504.0f);
  }

  // Byte j of a token's plane p, from the codes of its d channels.
  MOSAIC_HD static uint8_t plane_byte(const uint8_t* codes, int d, int p, int j) {
    uint32_t byte = 0;
    const int bits = plane_bits(p), count = 8 / bits;
    for (int i = 0; i < count; ++i) {
      const int channel = bits == 2 ? j + i * quarter(d) : 8 * j + i;
      if (channel < d)
        byte |= (static_cast<uint32_t>(codes[channel]) >> plane_shift(p) & ((1u << bits) - 1)) << bits * i;
    }
    return static_cast<uint8_t>(byte);
  }
  MOSAIC_HD static int code_at(const std::byte* panel, int d, int token, int channel) {
    int code = 0;
    for (int p = 0; p < kPlanes; ++p) {
      const auto* const row = reinterpret_cast<const uint8_t*>(panel) + plane_at(d, p) + token * plane_bytes(d, p);
      const int part = channel / quarter(d);
      const int found =
          plane_bits(p) == 2 ? row[channel - part * quarter(d)] >> 2 * part & 3 : row[channel / 8] >> channel % 8 & 1;
      code |= found << plane_shift(p);
    }
    return code;
  }
};

template <int KeyBits, int ValueBits>
struct Planes {
  static constexpr bool kExact = false;
  static constexpr bool kRecord = true;
  static constexpr bool kHadamard = true;
  using K = PlanePanel<KeyBits>;
  using V = PlanePanel<ValueBits>;
  MOSAIC_HD static size_t k_bytes(int head_dim) { return K::bytes(head_dim); }
  MOSAIC_HD static size_t v_bytes(int head_dim) { return V::bytes(head_dim); }
  MOSAIC_HD static float k(const std::byte* panel, int head_dim, int channel, int token) {
    return static_cast<float>(K::level(K::code_at(panel, head_dim, token, channel)));
  }
  MOSAIC_HD static float v(const std::byte* panel, int head_dim, int token, int channel) {
    return static_cast<float>(V::level(V::code_at(panel, head_dim, token, channel)));
  }
};

}  // namespace mosaic
