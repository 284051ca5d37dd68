// int4: half a byte a number, 16 levels between the least and the greatest of the group.
//   K panel: [step x D][low x D] as half, then codes [D][8]: byte j holds tokens j (low nibble) and j + 8 (high).
//   V panel: [step x 16][low x 16], then codes [16][ceil(D/2)]: byte j holds channels j and j + ceil(D/2).
// Halves, not neighbours, share a byte: a vector of bytes splits into two vectors of consecutive numbers.
#pragma once

#include "codec/affine.h"
#include "core/ids.h"

namespace mosaic {

struct Int4 {
  static constexpr bool kExact = false;
  static constexpr bool kRecord = false;
  static constexpr bool kHadamard = false;
  static constexpr int kLevels = 15;
  MOSAIC_HD static int half_row(int n) { return (n + 1) / 2; }
  MOSAIC_HD static size_t k_bytes(int head_dim) { return static_cast<size_t>(head_dim) * (4 + kPageTokens / 2); }
  MOSAIC_HD static size_t v_bytes(int head_dim) { return kPageTokens * (4 + static_cast<size_t>(half_row(head_dim))); }

  // Where the parts of a panel start; n is the number of groups: D for K, 16 for V.
  MOSAIC_HD static half_t* steps(std::byte* panel) { return reinterpret_cast<half_t*>(panel); }
  MOSAIC_HD static const half_t* steps(const std::byte* panel) { return reinterpret_cast<const half_t*>(panel); }
  MOSAIC_HD static const half_t* lows(const std::byte* panel, int n) { return steps(panel) + n; }
  MOSAIC_HD static uint8_t* codes(std::byte* panel, int n) { return reinterpret_cast<uint8_t*>(panel + 4 * n); }
  MOSAIC_HD static const uint8_t* codes(const std::byte* panel, int n) {
    return reinterpret_cast<const uint8_t*>(panel + 4 * n);
  }

  MOSAIC_HD static void encode_k(std::byte* panel, int head_dim, int channel, const float* x, size_t stride,
                                 int count) {
    encode(panel, head_dim, channel, x, stride, count, kPageTokens / 2,
           codes(panel, head_dim) + channel * (kPageTokens / 2));
  }
  MOSAIC_HD static void encode_v(std::byte* panel, int head_dim, int token, const float* x) {
    const int half = half_row(head_dim);
    encode(panel, kPageTokens, token, x, 1, head_dim, half,
           codes(panel, kPageTokens) + static_cast<size_t>(token) * half);
  }
  MOSAIC_HD static float k(const std::byte* panel, int head_dim, int channel, int token) {
    const float code = nibble(codes(panel, head_dim) + channel * (kPageTokens / 2), kPageTokens / 2, token);
    return half_to_float(lows(panel, head_dim)[channel]) + half_to_float(steps(panel)[channel]) * code;
  }
  MOSAIC_HD static float v(const std::byte* panel, int head_dim, int token, int channel) {
    const int half = half_row(head_dim);
    const float code = nibble(codes(panel, kPageTokens) + static_cast<size_t>(token) * half, half, channel);
    return half_to_float(lows(panel, kPageTokens)[token]) + half_to_float(steps(panel)[token]) * code;
  }

 private:
  MOSAIC_HD static float nibble(const uint8_t* row, int half, int i) {
    return static_cast<float>(i < half ? row[i] & 15 : row[i - half] >> 4);
  }
  MOSAIC_HD static void encode(std::byte* panel, int groups, int group, const float* x, size_t stride, int n, int half,
                               uint8_t* to) {
    float low, high;
    affine_range(x, stride, n, &low, &high);
    const AffineScale scale = affine_scale(low, high, kLevels);
    steps(panel)[group] = scale.step;
    steps(panel)[groups + group] = scale.low;
    if (scale.step == 0) return;
    const float from = half_to_float(scale.low), inverse = 1.0f / half_to_float(scale.step);
    for (int i = 0; i < half; ++i) {
      const int first = i < n ? affine_code(x[i * stride], from, inverse, kLevels) : 0;
      const int second = i + half < n ? affine_code(x[(i + half) * stride], from, inverse, kLevels) : 0;
      to[i] = static_cast<uint8_t>(first | second << 4);
    }
  }
};

}  // namespace mosaic
