// The CUDA backend's kernels on the CPU, as a backend: a device whose memory is allocated to the byte, so that ASan sees
// one too far, and CudaOps over the fibres of simt_cpu.cc.
#pragma once

#include "backend/backend.h"

namespace mosaic::test {

// `processors`: how many the kernels think there are; few, so that work is cut in odd places.
// `everywhere`: its kernels reach all of the host's memory, not only what the device gave out.
Backend make_shim(int processors = 3, bool everywhere = false);

}  // namespace mosaic::test
