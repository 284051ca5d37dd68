// Run: tokens handed over in one call, all of one lane.
#pragma once

#include "core/ids.h"

namespace mosaic {

struct Run {
  const float* k = nullptr;         // [n, row], before rotation
  const float* v = nullptr;         // [n, row]
  const TokenMeta* meta = nullptr;  // [n]
  int n = 0;
  uint32_t number = 0;  // of the first one, counted as an archive counts
};

}  // namespace mosaic
