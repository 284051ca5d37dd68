// A number as record codecs take it.
#pragma once

#include "core/dtype.h"

namespace mosaic {

inline constexpr float kMostCoded = 65504.0f;  // what a larger number, or an infinite one, is taken for

// Finite. NaN, which no caller should let through, is 0.
MOSAIC_HD inline float coded_number(float x) {
  return x > kMostCoded ? kMostCoded : x < -kMostCoded ? -kMostCoded : x == x ? x : 0.0f;
}

}  // namespace mosaic
