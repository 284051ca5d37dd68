// Staging: an engine's q, k, v and out within the kernels' reach. Memory that kernels reach is used as it is; ordinary
// host memory, where a device does not reach it, is copied through fixed places of the plan. Not thread-safe.
#pragma once

#include <array>
#include <optional>

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

class Staging {
 public:
  Staging(Region& region, const Plan& plan);

  // True where all of it is finite as far as the host can see; what it cannot see, kernels look at (bad()).
  // Nothing is changed yet.
  bool readable_is_finite(const LayerArrays& given, const Device& device, int tokens) const;
  // The same arrays where kernels reach them. stream: the engine's, where it made what only kernels reach; none: its
  // device's default.
  LayerArrays enter(const LayerArrays& given, Backend& backend, int tokens, std::optional<void*> stream);
  // n numbers of a query that was entered, where the host reads them.
  const float* readable(const float* q, size_t n, Backend& backend);
  // The kernels' out goes where the engine wants it. Waits, unless the engine reads it by kernels on its stream.
  void leave(const LayerArrays& given, Backend& backend, int tokens, std::optional<void*> stream);
  // Kernels found a number that is not finite since the last clear(); call after Ops::wait().
  bool bad() const { return bad_ != nullptr && *bad_ != 0; }
  void clear() {
    if (bad_ != nullptr) *bad_ = 0;
  }

 private:
  std::array<size_t, 3> sizes(int tokens) const {  // of q (and out), k, v
    const auto n = static_cast<size_t>(tokens);
    return {n * q_row_, n * kv_row_, n * kv_row_};
  }
  size_t q_row_, kv_row_;
  float* q_ = nullptr;  // all null where kernels reach the host's memory
  float* k_ = nullptr;
  float* v_ = nullptr;
  float* out_ = nullptr;
  int32_t* bad_ = nullptr;
};

}  // namespace mosaic
