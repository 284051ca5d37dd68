// fp32: the numbers as they came. For the window and for tests that must equal full attention.
#pragma once

#include <cstddef>

#include "core/dtype.h"
#include "core/ids.h"

namespace mosaic {

struct Fp32 {
  static constexpr bool kExact = true;
  static constexpr bool kRecord = true;
  static constexpr bool kHadamard = false;
  MOSAIC_HD static size_t k_bytes(int head_dim) { return sizeof(float) * kPageTokens * static_cast<size_t>(head_dim); }
  MOSAIC_HD static size_t v_bytes(int head_dim) { return k_bytes(head_dim); }

  MOSAIC_HD static void encode_v(std::byte* panel, int head_dim, int token, const float* x) {
    float* to = reinterpret_cast<float*>(panel) + static_cast<size_t>(token) * head_dim;
    for (int c = 0; c < head_dim; ++c) to[c] = x[c];
  }
  // One token's keys: no scale spans the tokens.
  MOSAIC_HD static void set_k(std::byte* panel, int head_dim, int token, const float* x) {
    float* to = reinterpret_cast<float*>(panel) + token;
    for (int c = 0; c < head_dim; ++c) to[c * kPageTokens] = x[c];
  }
  MOSAIC_HD static float k(const std::byte* panel, int, int channel, int token) {
    return reinterpret_cast<const float*>(panel)[channel * kPageTokens + token];
  }
  MOSAIC_HD static float v(const std::byte* panel, int head_dim, int token, int channel) {
    return reinterpret_cast<const float*>(panel)[static_cast<size_t>(token) * head_dim + channel];
  }
};

}  // namespace mosaic
