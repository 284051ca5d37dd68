// The k highest of n numbers without sorting them all: three counting passes over the bits find the k-th value.
#pragma once

#include <cstdint>

namespace mosaic::cpu {

// As Ops::top_k. No scratch, no allocation.
int select_top_k(const float* score, int n, int k, int32_t* index);

}  // namespace mosaic::cpu
