// int8: one byte a number, 256 levels between the least and the greatest of the group.
//   K panel: [step x D][low x D] as half, then codes [D][16].   V panel: [step x 16][low x 16], then codes [16][D].
#pragma once

#include "codec/affine.h"
#include "core/ids.h"

namespace mosaic {

struct Int8 {
  static constexpr bool kExact = false;
  static constexpr bool kRecord = false;
  static constexpr bool kHadamard = false;
  static constexpr int kLevels = 255;
  MOSAIC_HD static size_t k_bytes(int head_dim) { return static_cast<size_t>(head_dim) * (4 + kPageTokens); }
  MOSAIC_HD static size_t v_bytes(int head_dim) { return kPageTokens * (4 + static_cast<size_t>(head_dim)); }

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
    encode(panel, head_dim, channel, x, stride, count, codes(panel, head_dim) + channel * kPageTokens);
  }
  MOSAIC_HD static void encode_v(std::byte* panel, int head_dim, int token, const float* x) {
    encode(panel, kPageTokens, token, x, 1, head_dim,
           codes(panel, kPageTokens) + static_cast<size_t>(token) * head_dim);
  }
  MOSAIC_HD static float k(const std::byte* panel, int head_dim, int channel, int token) {
    const float code = codes(panel, head_dim)[channel * kPageTokens + token];
    return half_to_float(lows(panel, head_dim)[channel]) + half_to_float(steps(panel)[channel]) * code;
  }
  MOSAIC_HD static float v(const std::byte* panel, int head_dim, int token, int channel) {
    const float code = codes(panel, kPageTokens)[static_cast<size_t>(token) * head_dim + channel];
    return half_to_float(lows(panel, kPageTokens)[token]) + half_to_float(steps(panel)[token]) * code;
  }

 private:
  MOSAIC_HD static void encode(std::byte* panel, int groups, int group, const float* x, size_t stride, int n,
                               uint8_t* to) {
    float low, high;
    affine_range(x, stride, n, &low, &high);
    const AffineScale scale = affine_scale(low, high, kLevels);
    steps(panel)[group] = scale.step;
    steps(panel)[groups + group] = scale.low;
    if (scale.step == 0) return;
    const float from = half_to_float(scale.low), inverse = 1.0f / half_to_float(scale.step);
    for (int i = 0; i < n; ++i) to[i] = affine_code(x[i * stride], from, inverse, kLevels);
  }
};

}  // namespace mosaic
