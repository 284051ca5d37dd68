#include "backend/cpu/cpu_ops.h"

#include "backend/cpu/plain_ops.h"
#include "core/error.h"

namespace mosaic::cpu {

std::vector<std::string> implementations() { return {"plain"}; }

std::unique_ptr<Ops> make_ops(const std::string& implementation, int) {
  if (implementation == "plain") return std::make_unique<PlainOps>();
  throw InvalidInput("no CPU kernels are called \"" + implementation + "\" here. Choose one of: plain.");
}

}  // namespace mosaic::cpu
