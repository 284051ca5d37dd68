// Whether numbers are finite, and within what half precision holds. Compared as integers, so that the loops may be
// vectorised: without its sign a float is larger the larger its bits are, and only NaN and infinity have an exponent of
// all ones.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace mosaic {

inline bool all_finite(const float* x, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) bad |= (std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  return bad == 0;
}

inline bool fits_half(float x) {
  return (std::bit_cast<uint32_t>(x) & 0x7fffffffu) <= std::bit_cast<uint32_t>(kMostHalf);
}

inline bool all_fit_half(const float* x, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) bad |= fits_half(x[i]) ? 0u : 1u;
  return bad == 0;
}

// NaN stays.
MOSAIC_HD inline float cut_to_half(float x) { return x > kMostHalf ? kMostHalf : x < -kMostHalf ? -kMostHalf : x; }

}  // namespace mosaic
