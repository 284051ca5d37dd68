// The cosine of two vectors, in double; 0 with a zero vector.
#pragma once

#include <cmath>
#include <cstddef>

namespace mosaic {

inline double cosine(const float* a, const float* b, size_t dim) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < dim; ++i) {
    dot += static_cast<double>(a[i]) * b[i];
    aa += static_cast<double>(a[i]) * a[i];
    bb += static_cast<double>(b[i]) * b[i];
  }
  return aa > 0 && bb > 0 ? dot / std::sqrt(aa * bb) : 0;
}

}  // namespace mosaic
