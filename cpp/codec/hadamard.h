// The basis that record codecs code in: signs, then a Walsh-Hadamard transform over runs of the largest power of two
// that divides the head (64, 128; 16 of 80; 32 of 96; 1 of an odd head). It is orthogonal, so inner products stay what they
// are, and it spreads an outlier channel over its run: what is coded is close to normal whatever the model is.
// The transform here is not normalised; one factor, hadamard_scale(), goes with the scale of a record.
#pragma once

#include "core/dtype.h"

namespace mosaic {

// Channels of the longest head a record holds.
inline constexpr int kMostRecordHead = 1024;

MOSAIC_HD inline int hadamard_order(int head_dim) { return head_dim & -head_dim; }

// 1 / sqrt(order).
MOSAIC_HD inline float hadamard_scale(int head_dim) {
  float scale = 1;
  for (int order = hadamard_order(head_dim); order > 1; order /= 4) scale *= order == 2 ? 0.70710678f : 0.5f;
  return scale;
}

// A fixed table of +-1 by channel, as a mixed integer: no memory to carry, the same on every machine.
MOSAIC_HD inline bool hadamard_negative(int channel) {
  uint32_t x = (static_cast<uint32_t>(channel) + 1) * 0x9e3779b1u;
  x = (x ^ x >> 15) * 0x85ebca77u;
  return ((x ^ x >> 13) & 1u) != 0;
}
MOSAIC_HD inline float hadamard_sign(int channel) { return hadamard_negative(channel) ? -1.0f : 1.0f; }

// In place; its own inverse but for a factor of the order.
MOSAIC_HD inline void hadamard(float* x, int head_dim) {
  const int order = hadamard_order(head_dim);
  for (int step = 1; step < order; step *= 2) {
    for (int i = 0; i < head_dim; ++i) {
      if ((i & step) != 0) continue;
      const float a = x[i], b = x[i + step];
      x[i] = a + b;
      x[i + step] = a - b;
    }
  }
}

}  // namespace mosaic
