// MirrorOps: lets one contract suite run on any backend. Each call copies what its arguments point at into memory of the
// backend's device, as large as what the op may touch and no larger, runs the op there, and copies the results back. So
// the suite keeps its vectors, and an op that reads anything else of the host, or a byte too far, is found out.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace mosaic::testing {

// An Ops that mirrors for `backend`.
std::unique_ptr<Ops> make_mirror(Backend backend);

// "shim": the CUDA backend's kernels on the CPU; "cuda": on the GPU; else the CPU kernels of that name.
std::unique_ptr<Ops> make_ops(const std::string& implementation, int threads);

// Every implementation of Ops that runs here: those of the CPU, "shim" (not on an emulated CPU), and "cuda" where there is
// a GPU.
std::vector<std::string> implementations();

// The fibres' order in the shim from now on: 0 rising, 1 falling, else shuffled by that seed.
void set_shim_order(unsigned order);

}  // namespace mosaic::testing
