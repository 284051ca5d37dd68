#include <cstdio>
#include <cstdlib>

#include "backend/cpu/cpu_ops.h"
#include "backend/cuda/cuda_backend.h"
#include "core/error.h"
#include "support/mirror_ops.h"
#include "support/shim_backend.h"

namespace mosaic::testing {

std::unique_ptr<Ops> make_ops(const std::string& implementation, int threads) {
  if (implementation == "shim") return make_mirror(make_shim());
  if (implementation == "cuda") return make_mirror(make_backend("cuda", 0));
  return cpu::make_ops(implementation, threads);
}

// The environment: MOSAIC_NEEDS_CUDA fails without a GPU, MOSAIC_ONLY=NAME runs that one alone (under a sanitizer).
std::vector<std::string> implementations() {
  static const std::vector<std::string> names = [] {
    auto all = cpu::implementations();
#if !defined(MOSAIC_EMULATED)  // the shim is shipped nowhere, and takes most of an emulated CPU's time
    all.push_back("shim");
#endif
    const BackendInfo cuda = cuda::info();
    if (cuda.available) {
      all.push_back("cuda");
    } else if (std::getenv("MOSAIC_NEEDS_CUDA") != nullptr) {
      throw DeviceError("cuda: " + cuda.detail + ".");
    } else {
      std::fprintf(stderr, "the contract suite runs without cuda: %s\n", cuda.detail.c_str());
    }
    if (const char* const only = std::getenv("MOSAIC_ONLY")) all.assign(1, only);
    return all;
  }();
  return names;
}

}  // namespace mosaic::testing
