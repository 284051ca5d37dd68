// What a settled token is worth, and how like it is to a better one, in 16 bits: ten for the worth, a half without its sign
// and its five lowest bits (to 1.6 %), six for the likeness c, as c^4, since 1 - c^4 of the worth is what is left.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/dtype.h"

namespace mosaic {

class WorthCode {
 public:
  static uint16_t of(float worth) {
    const auto half = static_cast<unsigned>(finite_half(worth));
    return static_cast<uint16_t>(std::min((half + 16) >> 5, kMostWorth) << kLikeBits);
  }
  static float worth(uint16_t code) { return half_to_float(static_cast<half_t>(code >> kLikeBits << 5)); }
  static float like(uint16_t code) { return std::sqrt(std::sqrt(static_cast<float>(code & kMostLike) / kMostLike)); }
  static bool is_finite(uint16_t code) { return code >> kLikeBits <= kMostWorth; }
  // The same worth, at least so like.
  static uint16_t raised(uint16_t code, float like) {
    const float c = std::clamp(like, 0.0f, 1.0f);
    const auto x = static_cast<uint16_t>(c * c * c * c * kMostLike + 0.5f);
    return static_cast<uint16_t>((code & ~kMostLike) | std::max<uint16_t>(x, code & kMostLike));
  }

 private:
  static constexpr int kLikeBits = 6;
  static constexpr int kMostLike = (1 << kLikeBits) - 1;
  static constexpr unsigned kMostWorth = 0x7bff >> 5;
};

}  // namespace mosaic
