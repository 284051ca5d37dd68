// The contract suite runs over the kernels that are there: that the vectorised ones of this architecture are.
#include <doctest/doctest.h>

#include <algorithm>

#include "backend/cpu/cpu_ops.h"
#include "support/mirror_ops.h"

TEST_CASE("the contract suite runs the plain loops, the shim, and this architecture's vectorised kernels") {
#if defined(__aarch64__)
  const char* const vectorised = "neon";
#else
  const char* const vectorised = "sse2";
#endif
  const auto here = mosaic::cpu::implementations();
  for (const char* const name : {"plain", vectorised}) {
    CAPTURE(name);
    CHECK(std::count(here.begin(), here.end(), name) == 1);
  }
#if !defined(MOSAIC_EMULATED)
  const auto all = mosaic::testing::implementations();
  CHECK((all.size() == 1 || std::count(all.begin(), all.end(), "shim") == 1));  // one: MOSAIC_ONLY names it
#endif
}
