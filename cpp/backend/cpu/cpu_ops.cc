#include "backend/cpu/cpu_ops.h"

#include "backend/cpu/plain_ops.h"
#include "backend/cpu/simd_ops.h"
#include "core/error.h"

namespace mosaic::cpu {
namespace {

struct Implementation {
  const char* name;
  bool runs_here;
  Ops* (*make)(int threads);
};

Ops* make_plain(int) { return new PlainOps(); }

std::vector<Implementation> known() {
#if defined(__aarch64__)
  return {{"plain", true, make_plain}, {"neon", true, make_ops_neon}};
#else
  __builtin_cpu_init();
  [[maybe_unused]] const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  [[maybe_unused]] const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  return {
      {"plain", true, make_plain},
      {"sse2", true, make_ops_sse2},
#if !defined(MOSAIC_WITHOUT_AVX2)
      {"avx2", avx2, make_ops_avx2},
#endif
#if !defined(MOSAIC_WITHOUT_AVX512)
      {"avx512", avx512, make_ops_avx512},
#endif
#if !defined(MOSAIC_WITHOUT_AVX512BF16)
      {"avx512bf16", bf16, make_ops_avx512bf16},
#endif
  };
#endif
}

}  // namespace

void beyond_limits(const char* op) {
  throw InvariantError(std::string(op) + ": larger than the limits its scratch was planned for.");
}

std::vector<std::string> implementations() {
  std::vector<std::string> names;
  for (const Implementation& one : known()) {
    if (one.runs_here) names.push_back(one.name);
  }
  return names;
}

std::unique_ptr<Ops> make_ops(const std::string& implementation, int threads) {
  std::string names;
  for (const Implementation& one : known()) {
    if (!one.runs_here) continue;
    if (implementation == one.name) return std::unique_ptr<Ops>(one.make(threads));
    names += (names.empty() ? "" : ", ") + std::string(one.name);
  }
  throw InvalidInput("no CPU kernels are called \"" + implementation + "\" here. Choose one of: " + names + ".");
}

}  // namespace mosaic::cpu
