// Stands in for the CUDA backend in a build without it.
#include "backend/cuda/cuda_backend.h"
#include "core/error.h"

namespace mosaic::cuda {

BackendInfo info() { return {"cuda", false, "not compiled in; build with MOSAIC_CUDA=ON on a machine with nvcc"}; }

Backend make() { throw DeviceError("cuda: " + info().detail + ". Or set backend=\"cpu\"."); }

}  // namespace mosaic::cuda
