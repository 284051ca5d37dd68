// What half precision does not hold, found by threads that each look at every step-th number.
#pragma once

#include "backend/cuda/simt.h"
#include "backend/ops.h"
#include "core/finite.h"

namespace mosaic::MOSAIC_SIMT {

MOSAIC_DEVICE void look_at_numbers(const float* x, size_t n, size_t first, size_t step, NumberFaults* faults,
                                   float* cut) {
  for (size_t i = first; i < n; i += step) {
    const float number = x[i], there = cut_to_half(number);
    if (!(number - number == 0)) {
      faults->not_finite = 1;  // whoever writes, writes the same
    } else if (there != number) {
      simt::count_one(&faults->beyond);
    }
    if (cut != nullptr) cut[i] = there;
  }
}

}  // namespace mosaic::MOSAIC_SIMT
