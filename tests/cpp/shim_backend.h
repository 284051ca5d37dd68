// The CUDA backend's kernels on the CPU, as a backend: a device whose memory is allocated to the byte, so that ASan sees
// one too far, with a stream that does nothing until somebody waits, and memory of the kernels' own that the host cannot
// touch; and CudaOps over the fibres of simt_cpu.cc.
#pragma once

#include "backend/backend.h"

namespace mosaic::test {

// processors: how many the kernels think there are; few, so that work is cut in odd places.
Backend make_shim(int processors = 3);

// What lies where kernels alone reach, as the host's.
void copy_from_shim(Backend& shim, void* to, const void* from, size_t bytes);

}  // namespace mosaic::test
