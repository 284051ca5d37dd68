// The CPU's implementations of Ops: "plain", and the vectorised source once per instruction set.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/ops.h"

namespace mosaic::cpu {

// Names this machine can run, slowest first; the last is what make_backend takes.
std::vector<std::string> implementations();
// threads: 0 for one per usable core. Throws InvalidInput naming the implementations there are.
std::unique_ptr<Ops> make_ops(const std::string& implementation, int threads);

}  // namespace mosaic::cpu
