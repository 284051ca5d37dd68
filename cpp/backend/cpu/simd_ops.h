// One factory per instruction set simd_ops.cc was compiled for; which exist is decided by simd.cmake.
#pragma once

#include "backend/ops.h"

namespace mosaic::cpu {

#if defined(__aarch64__)
Ops* make_ops_neon(int threads);
#else
Ops* make_ops_sse2(int threads);
Ops* make_ops_avx2(int threads);
Ops* make_ops_avx512(int threads);
Ops* make_ops_avx512bf16(int threads);
#endif

}  // namespace mosaic::cpu
