// The Hadamard basis by vectors: of a row (outputs, queries of the basis) and of columns of 16 tokens (keys of a page).
#pragma once

#include "backend/cpu/simd.h"
#include "codec/hadamard.h"

namespace mosaic::cpu {
namespace {

// Lane i of the result is lane i ^ Step.
template <int Step, int... I>
MOSAIC_INLINE RawFloat swap_lanes(RawFloat x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, (I ^ Step)...);
}

// Steps below kLanes, inside a vector: a lane and the one Step away become their sum and difference.
template <int Step>
MOSAIC_INLINE Vec butterfly(Vec x, int order) {
  if constexpr (Step < kLanes) {
    if (Step >= order) return x;
    const Vec signs([](int i) { return (i & Step) != 0 ? -1.0f : 1.0f; });
    const Vec other = from_raw(swap_lanes<Step>(to_raw(x), std::make_integer_sequence<int, kLanes>{}));
    return butterfly<2 * Step>(x * signs + other, order);
  } else {
    return x;
  }
}

// A row of d numbers in place, not normalised; whole vectors are read and written.
inline void hadamard_row(float* x, int d) {
  const int order = hadamard_order(d);
  for (int c = 0; c < d; c += kLanes) store(x + c, butterfly<1>(load(x + c), order));
  for (int step = kLanes; step < order; step *= 2) {
    for (int c = 0; c < d; c += 2 * step) {
      for (int i = c; i < c + step; i += kLanes) {
        const Vec a = load(x + i), b = load(x + i + step);
        store(x + i, a + b);
        store(x + i + step, a - b);
      }
    }
  }
}

// [d][width] in place, along the channels; width is a multiple of kLanes.
inline void hadamard_columns(float* x, int d, int width) {
  const int order = hadamard_order(d);
  for (int step = 1; step < order; step *= 2) {
    for (int c = 0; c < d; ++c) {
      if ((c & step) != 0) continue;
      float *const low = x + static_cast<size_t>(c) * width, *const high = low + static_cast<size_t>(step) * width;
      for (int i = 0; i < width; i += kLanes) {
        const Vec a = load(low + i), b = load(high + i);
        store(low + i, a + b);
        store(high + i, a - b);
      }
    }
  }
}

}  // namespace
}  // namespace mosaic::cpu
