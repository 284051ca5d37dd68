// k8v8: a record a token, one byte a number, 256 levels between the least and the greatest of its keys, and of its values.
// No mean and no transform: it is for tokens that are few and read by all, where half precision would take twice the bytes.
//   K panel: [step x 16][low x 16] as half, then codes [D][16].   V panel: [step x 16][low x 16], then codes [16][D].
#pragma once

#include "codec/affine.h"
#include "codec/coded_number.h"
#include "core/ids.h"

namespace mosaic {

struct K8V8 {
  static constexpr bool kExact = false;
  static constexpr bool kRecord = true;
  static constexpr bool kHadamard = false;
  static constexpr int kLevels = 255;
  MOSAIC_HD static size_t k_bytes(int head_dim) { return kPageTokens * (4 + static_cast<size_t>(head_dim)); }
  MOSAIC_HD static size_t v_bytes(int head_dim) { return k_bytes(head_dim); }

  MOSAIC_HD static half_t* steps(std::byte* panel) { return reinterpret_cast<half_t*>(panel); }
  MOSAIC_HD static const half_t* steps(const std::byte* panel) { return reinterpret_cast<const half_t*>(panel); }
  MOSAIC_HD static const half_t* lows(const std::byte* panel) { return steps(panel) + kPageTokens; }
  MOSAIC_HD static uint8_t* codes(std::byte* panel) { return reinterpret_cast<uint8_t*>(panel + kHeader); }
  MOSAIC_HD static const uint8_t* codes(const std::byte* panel) {
    return reinterpret_cast<const uint8_t*>(panel + kHeader);
  }

  MOSAIC_HD static void set_k(std::byte* panel, int head_dim, int token, const float* x) {
    encode(panel, head_dim, token, x, codes(panel) + token, kPageTokens);
  }
  MOSAIC_HD static void encode_v(std::byte* panel, int head_dim, int token, const float* x) {
    encode(panel, head_dim, token, x, codes(panel) + static_cast<size_t>(token) * head_dim, 1);
  }
  MOSAIC_HD static float k(const std::byte* panel, int, int channel, int token) {
    return number(panel, token, codes(panel)[channel * kPageTokens + token]);
  }
  MOSAIC_HD static float v(const std::byte* panel, int head_dim, int token, int channel) {
    return number(panel, token, codes(panel)[static_cast<size_t>(token) * head_dim + channel]);
  }
  template <class Visit>
  MOSAIC_HD static void pieces(int head_dim, Visit&& visit) {
    const size_t d = static_cast<size_t>(head_dim), v_panel = (k_bytes(head_dim) + 31) / 32 * 32;
    for (const size_t panel : {size_t{0}, v_panel}) {
      visit(panel, sizeof(half_t));
      visit(panel + kHeader / 2, sizeof(half_t));
    }
    for (size_t c = 0; c < d; ++c) visit(kHeader + c * kPageTokens, 1);
    visit(v_panel + kHeader, d);
  }

 private:
  static constexpr size_t kHeader = 2 * sizeof(half_t) * kPageTokens;

  MOSAIC_HD static float number(const std::byte* panel, int token, uint8_t code) {
    return half_to_float(lows(panel)[token]) + half_to_float(steps(panel)[token]) * static_cast<float>(code);
  }
  MOSAIC_HD static void encode(std::byte* panel, int head_dim, int token, const float* x, uint8_t* to, int apart) {
    float low = coded_number(x[0]), high = low;
    for (int c = 1; c < head_dim; ++c) {
      const float number = coded_number(x[c]);
      low = number < low ? number : low;
      high = number > high ? number : high;
    }
    const AffineScale scale = affine_scale(low, high, kLevels);
    steps(panel)[token] = scale.step;
    steps(panel)[kPageTokens + token] = scale.low;
    const float from = half_to_float(scale.low), inverse = scale.step == 0 ? 0 : 1.0f / half_to_float(scale.step);
    for (int c = 0; c < head_dim; ++c) to[c * apart] = affine_code(coded_number(x[c]), from, inverse, kLevels);
  }
};

}  // namespace mosaic
