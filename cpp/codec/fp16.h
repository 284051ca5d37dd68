// fp16: half precision, the default of a cache. Numbers beyond +-65504 become infinity, so callers check their input.
#pragma once

#include <cstddef>

#include "core/dtype.h"
#include "core/ids.h"

namespace mosaic {

struct Fp16 {
  static constexpr bool kExact = true;
  static constexpr bool kRecord = true;
  static constexpr bool kHadamard = false;
  MOSAIC_HD static size_t k_bytes(int head_dim) { return sizeof(half_t) * kPageTokens * static_cast<size_t>(head_dim); }
  MOSAIC_HD static size_t v_bytes(int head_dim) { return k_bytes(head_dim); }

  MOSAIC_HD static void encode_v(std::byte* panel, int head_dim, int token, const float* x) {
    half_t* to = reinterpret_cast<half_t*>(panel) + static_cast<size_t>(token) * head_dim;
    for (int c = 0; c < head_dim; ++c) to[c] = float_to_half(x[c]);
  }
  // One token's keys: no scale spans the tokens.
  MOSAIC_HD static void set_k(std::byte* panel, int head_dim, int token, const float* x) {
    half_t* to = reinterpret_cast<half_t*>(panel) + token;
    for (int c = 0; c < head_dim; ++c) to[c * kPageTokens] = float_to_half(x[c]);
  }
  MOSAIC_HD static float k(const std::byte* panel, int, int channel, int token) {
    return half_to_float(reinterpret_cast<const half_t*>(panel)[channel * kPageTokens + token]);
  }
  MOSAIC_HD static float v(const std::byte* panel, int head_dim, int token, int channel) {
    return half_to_float(reinterpret_cast<const half_t*>(panel)[static_cast<size_t>(token) * head_dim + channel]);
  }
};

}  // namespace mosaic
