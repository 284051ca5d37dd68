// k8v8: a record a token, one byte a number, 256 levels between the least and the greatest of its keys, and of its values.
// No mean and no transform: it is for tokens that are few and read by all, where half precision would take twice the bytes.
//   K block: [step x 16][low x 16] as half, then codes [D][16].   V block: [step x 16][low x 16], then codes [16][D].
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

  MOSAIC_HD static half_t* steps(std::byte* block) { return reinterpret_cast<half_t*>(block); }
  MOSAIC_HD static const half_t* steps(const std::byte* block) { return reinterpret_cast<const half_t*>(block); }
  MOSAIC_HD static const half_t* lows(const std::byte* block) { return steps(block) + kPageTokens; }
  MOSAIC_HD static uint8_t* codes(std::byte* block) { return reinterpret_cast<uint8_t*>(block + kHeader); }
  MOSAIC_HD static const uint8_t* codes(const std::byte* block) {
    return reinterpret_cast<const uint8_t*>(block + kHeader);
  }

  MOSAIC_HD static void set_k(std::byte* block, int head_dim, int token, const float* x) {
    encode(block, head_dim, token, x, codes(block) + token, kPageTokens);
  }
  MOSAIC_HD static void encode_v(std::byte* block, int head_dim, int token, const float* x) {
    encode(block, head_dim, token, x, codes(block) + static_cast<size_t>(token) * head_dim, 1);
  }
  MOSAIC_HD static float k(const std::byte* block, int, int channel, int token) {
    return number(block, token, codes(block)[channel * kPageTokens + token]);
  }
  MOSAIC_HD static float v(const std::byte* block, int head_dim, int token, int channel) {
    return number(block, token, codes(block)[static_cast<size_t>(token) * head_dim + channel]);
  }
  template <class Visit>
  MOSAIC_HD static void pieces(int head_dim, Visit&& visit) {
    const size_t d = static_cast<size_t>(head_dim), v_block = (k_bytes(head_dim) + 31) / 32 * 32;
    for (const size_t block : {size_t{0}, v_block}) {
      visit(block, sizeof(half_t));
      visit(block + kHeader / 2, sizeof(half_t));
    }
    for (size_t c = 0; c < d; ++c) visit(kHeader + c * kPageTokens, 1);
    visit(v_block + kHeader, d);
  }

 private:
  static constexpr size_t kHeader = 2 * sizeof(half_t) * kPageTokens;

  MOSAIC_HD static float number(const std::byte* block, int token, uint8_t code) {
    return half_to_float(lows(block)[token]) + half_to_float(steps(block)[token]) * static_cast<float>(code);
  }
  MOSAIC_HD static void encode(std::byte* block, int head_dim, int token, const float* x, uint8_t* to, int apart) {
    float low = coded_number(x[0]), high = low;
    for (int c = 1; c < head_dim; ++c) {
      const float number = coded_number(x[c]);
      low = number < low ? number : low;
      high = number > high ? number : high;
    }
    const AffineScale scale = affine_scale(low, high, kLevels);
    steps(block)[token] = scale.step;
    steps(block)[kPageTokens + token] = scale.low;
    const float from = half_to_float(scale.low), inverse = scale.step == 0 ? 0 : 1.0f / half_to_float(scale.step);
    for (int c = 0; c < head_dim; ++c) to[c * apart] = affine_code(coded_number(x[c]), from, inverse, kLevels);
  }
};

}  // namespace mosaic
