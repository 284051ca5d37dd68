// The scale that int8, int4 and k8v8 have: x = low + step * code, code in [0, levels]. Low rounds down and step rounds up in
// half precision, so the codes always span the group and nothing is clipped: a key channel far from zero would lose
// more to a rounded low than to its codes. Only a step whose last level would pass 65504 rounds down: what is decoded may
// be kept in half precision again, where a page that grows comes back to an exact slot. Asymmetric, because key channels
// carry an offset (the bias of k_proj): over such channels it has less than half the error of a symmetric scale of as many
// codes (tests/cpp/codec/codec_test.cc).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace mosaic {

struct AffineScale {
  half_t step = 0;
  half_t low = 0;
};

MOSAIC_HD inline half_t half_neighbour(half_t h, bool up) {  // the next representable number; finite stays finite
  if ((h & 0x7fffu) == 0) return up ? half_t{0x0001} : half_t{0x8001};
  const bool grows = up == ((h & 0x8000u) == 0);
  if (grows && (h & 0x7fffu) >= 0x7bffu) return h;
  return static_cast<half_t>(grows ? h + 1 : h - 1);
}

MOSAIC_HD inline AffineScale affine_scale(float low, float high, int levels) {
  AffineScale scale;
  low = low < -kMostHalf ? -kMostHalf : low > kMostHalf ? kMostHalf : low;
  scale.low = float_to_half(low);
  if (half_to_float(scale.low) > low) scale.low = half_neighbour(scale.low, false);
  const float step = (high - half_to_float(scale.low)) / static_cast<float>(levels);
  scale.step = float_to_half(step < kMostHalf ? step : kMostHalf);
  if (half_to_float(scale.step) < step) scale.step = half_neighbour(scale.step, true);
  const float last = half_to_float(scale.low) + static_cast<float>(levels) * half_to_float(scale.step);
  if (last > kMostHalf) scale.step = half_neighbour(scale.step, false);
  return scale;
}

MOSAIC_HD inline uint8_t affine_code(float x, float low, float inverse_step, int levels) {
  const float code = (x - low) * inverse_step + 0.5f;
  return code <= 0.0f                                ? uint8_t{0}
         : code >= static_cast<float>(levels) + 0.5f ? static_cast<uint8_t>(levels)
                                                     : static_cast<uint8_t>(code);
}

// Smallest and largest of n numbers, `stride` apart.
MOSAIC_HD inline void affine_range(const float* x, size_t stride, int n, float* low, float* high) {
  float a = x[0], b = x[0];
  for (int i = 1; i < n; ++i) {
    const float value = x[i * stride];
    a = value < a ? value : a;
    b = value > b ? value : b;
  }
  *low = a;
  *high = b;
}

}  // namespace mosaic
