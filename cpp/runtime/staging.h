// Staging: an engine's q, k, v and out within the kernels' reach. Memory that kernels reach is used as it is; ordinary
// host memory, where a device does not reach it, is copied through fixed buffers of the plan. Not thread-safe.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "runtime/plan.h"

namespace mosaic {

// What an engine hands to attend(), as it was given: contiguous, [T, q_heads, D] and [T, kv_heads, D].
struct LayerArrays {
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  float* out = nullptr;
};

// Where q, k, v and out lie, as far as whoever hands them over knows.
using ArraysLie = std::array<std::optional<Device::Access>, 4>;

class Staging {
 public:
  Staging(Region& region, const Plan& plan);

  // Whose arrays the calls below are about. Asks the device where those lie of which that is not said.
  void look(const LayerArrays& given, Device& device, int tokens, const ArraysLie& lie);
  // Why these arrays cannot be taken, as far as the host can see, or nothing; what it cannot see, kernels look at
  // (found()). beyond: whether that is a number that half precision does not hold. Nothing is changed yet.
  std::string fault_of(const LayerArrays& given, int tokens, bool* beyond) const;
  // The same arrays where kernels reach them, saturated if so configured. stream: the engine's, where it made what only
  // kernels reach; none: its device's default.
  LayerArrays enter(const LayerArrays& given, Backend& backend, int layer, int tokens, std::optional<void*> stream);
  // What of them kernels still have to look at, before or beside anything else that they do with them.
  void ask_for_numbers(const LayerArrays& given, int layer, int tokens, StageArgs* stage) const;
  // n numbers of a query that was entered, where the host reads them.
  const float* readable(const float* q, size_t n, Backend& backend);
  // The kernels' out goes where the engine wants it. Waits, unless the engine reads it by kernels on its stream.
  void leave(const LayerArrays& given, Backend& backend, int tokens, std::optional<void*> stream);
  // The same of what kernels looked at since the last clear(); call after Ops::wait().
  std::string found(bool* beyond) const;
  // Numbers that were saturated since the last clear(); call after Ops::wait().
  int64_t saturated() const;
  void clear();

 private:
  std::array<size_t, 3> sizes(int tokens) const {  // of q (and out), k, v
    const auto n = static_cast<size_t>(tokens);
    return {n * q_row_, n * kv_row_, n * kv_row_};
  }
  // Whether some, or all, of the arrays lie where only kernels reach.
  bool any_for_kernels() const { return std::ranges::find(lie_, Device::Access::kKernels) != lie_.end(); }
  bool all_for_kernels() const { return std::ranges::count(lie_, Device::Access::kKernels) == 4; }
  bool is_fault(const NumberFaults& faults) const { return faults.not_finite != 0 || (!cuts_ && faults.beyond > 0); }

  size_t q_row_, kv_row_, head_dim_;
  bool cuts_;  // what half precision does not hold; else it is a fault
  int layers_;
  std::array<Device::Access, 4> lie_{};  // q, k, v, out
  int64_t cut_by_host_ = 0;
  float* q_ = nullptr;  // these null where kernels reach the host's memory and nothing is cut
  float* k_ = nullptr;
  float* v_ = nullptr;
  float* out_ = nullptr;            // these where kernels reach the host's memory
  NumberFaults* faults_ = nullptr;  // [layers] as kernels found them
};

}  // namespace mosaic
