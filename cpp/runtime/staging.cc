#include "runtime/staging.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/finite.h"

namespace mosaic {

namespace {

constexpr const char* kTooLarge =
    ", beyond 65504, the most that half precision holds (overflow=\"saturate\" takes that instead)";

// Whether some, or all, of the arrays lie where only kernels reach.
bool for_kernels(const LayerArrays& given, const Device& device, bool all) {
  int n = 0;
  for (const float* array : {given.q, given.k, given.v, static_cast<const float*>(given.out)})
    n += device.access(array) == Device::Access::kKernels ? 1 : 0;
  return all ? n == 4 : n > 0;
}

}  // namespace

Staging::Staging(Region& region, const Plan& plan)
    : q_row_(static_cast<size_t>(plan.config.model.q_heads) * static_cast<size_t>(plan.config.model.head_dim)),
      kv_row_(static_cast<size_t>(plan.config.model.kv_heads) * static_cast<size_t>(plan.config.model.head_dim)),
      head_dim_(static_cast<size_t>(plan.config.model.head_dim)),
      cuts_(plan.config.overflow == Overflow::kSaturate),
      layers_(plan.config.model.layers) {
  const Size tokens = plan.max_block;
  if (region.has_private()) {
    faults_ = region.take<NumberFaults>("staging", layers_);
    out_ = region.take<float>("staging", tokens * q_row_);
  }
  if (!region.has_private() && !cuts_) return;
  q_ = region.take<float>("staging", tokens * q_row_);
  k_ = region.take<float>("staging", tokens * kv_row_);
  v_ = region.take<float>("staging", tokens * kv_row_);
}

std::string Staging::fault_of(const LayerArrays& given, const Device& device, int tokens, bool* beyond) const {
  const std::array<const float*, 3> from = {given.q, given.k, given.v};
  const auto n = sizes(tokens);
  for (size_t i = 0; i < from.size(); ++i) {
    if (device.access(from[i]) == Device::Access::kKernels) continue;
    if (cuts_ ? all_finite(from[i], n[i]) : all_fit_half(from[i], n[i])) continue;
    size_t at = 0;
    while (cuts_ ? all_finite(from[i] + at, 1) : fits_half(from[i][at])) ++at;
    *beyond = all_finite(from[i] + at, 1);
    const size_t head = at / head_dim_ % ((i == 0 ? q_row_ : kv_row_) / head_dim_);
    char number[32];
    std::snprintf(number, sizeof number, "%g", static_cast<double>(from[i][at]));
    return std::string(i == 0 ? "query head " : "KV head ") + std::to_string(head) + ": " + "qkv"[i] + " holds " +
           (*beyond ? std::string(number) + kTooLarge : "NaN or infinity");
  }
  return "";
}

std::string Staging::found(bool* beyond) const {
  for (int layer = 0; layer < layers_ && faults_ != nullptr; ++layer) {
    if (!is_fault(faults_[layer])) continue;
    *beyond = faults_[layer].not_finite == 0;
    return "layer " + std::to_string(layer) + ": q, k or v holds " +
           (*beyond ? std::string("numbers") + kTooLarge : "NaN or infinity");
  }
  return "";
}

int64_t Staging::saturated() const {
  int64_t n = cut_by_host_;
  for (int layer = 0; layer < layers_ && cuts_ && faults_ != nullptr; ++layer) n += faults_[layer].beyond;
  return n;
}

void Staging::clear() {
  cut_by_host_ = 0;
  if (faults_ != nullptr) std::fill_n(faults_, layers_, NumberFaults());
}

LayerArrays Staging::enter(const LayerArrays& given, Backend& backend, int layer, int tokens,
                           std::optional<void*> stream) {
  if (for_kernels(given, *backend.device, false)) backend.device->follow(stream.value_or(nullptr));
  const auto n = sizes(tokens);
  const auto stage = [&](const float* from, float* staged, size_t count) -> const float* {
    const Device::Access access = backend.device->access(from);
    if (access == Device::Access::kKernels) {
      backend.ops->check_numbers(from, count, faults_ + layer, cuts_ ? staged : nullptr);
      return cuts_ ? staged : from;
    }
    if (cuts_ && !all_fit_half(from, count)) {
      for (size_t i = 0; i < count; ++i) {
        cut_by_host_ += fits_half(from[i]) ? 0 : 1;
        staged[i] = cut_to_half(from[i]);
      }
      return staged;
    }
    if (access != Device::Access::kHost) return from;
    std::memcpy(staged, from, count * sizeof(float));
    return staged;
  };
  return {stage(given.q, q_, n[0]), stage(given.k, k_, n[1]), stage(given.v, v_, n[2]),
          backend.device->access(given.out) == Device::Access::kHost ? out_ : given.out};
}

const float* Staging::readable(const float* q, size_t n, Backend& backend) {
  if (backend.device->access(q) != Device::Access::kKernels) return q;
  backend.ops->copy(q_, q, n * sizeof(float));
  backend.ops->wait();
  return q_;
}

void Staging::leave(const LayerArrays& given, Backend& backend, int tokens, std::optional<void*> stream) {
  if (stream && for_kernels(given, *backend.device, true)) {  // nobody on the host reads or reuses anything of it
    backend.device->precede(*stream);
    return;
  }
  backend.ops->wait();
  if (backend.device->access(given.out) == Device::Access::kHost)
    std::memcpy(given.out, out_, sizes(tokens)[0] * sizeof(float));
}

}  // namespace mosaic
