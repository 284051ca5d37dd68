#include "runtime/staging.h"

#include <cstring>

#include "core/finite.h"

namespace mosaic {

namespace {

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
      kv_row_(static_cast<size_t>(plan.config.model.kv_heads) * static_cast<size_t>(plan.config.model.head_dim)) {
  if (!region.has_private()) return;
  const Size tokens = plan.max_block;
  bad_ = region.take<int32_t>("staging", 1);
  q_ = region.take<float>("staging", tokens * q_row_);
  k_ = region.take<float>("staging", tokens * kv_row_);
  v_ = region.take<float>("staging", tokens * kv_row_);
  out_ = region.take<float>("staging", tokens * q_row_);
}

bool Staging::readable_is_finite(const LayerArrays& given, const Device& device, int tokens) const {
  const std::array<const float*, 3> from = {given.q, given.k, given.v};
  const auto n = sizes(tokens);
  for (size_t i = 0; i < from.size(); ++i)
    if (device.access(from[i]) != Device::Access::kKernels && !all_finite(from[i], n[i])) return false;
  return true;
}

LayerArrays Staging::enter(const LayerArrays& given, Backend& backend, int tokens, std::optional<void*> stream) {
  if (for_kernels(given, *backend.device, false)) backend.device->follow(stream.value_or(nullptr));
  const auto n = sizes(tokens);
  const auto place = [&](const float* from, float* staged, size_t count) -> const float* {
    const Device::Access access = backend.device->access(from);
    if (access == Device::Access::kKernels) backend.ops->check_finite(from, count, bad_);
    if (access != Device::Access::kHost) return from;
    std::memcpy(staged, from, count * sizeof(float));
    return staged;
  };
  return {place(given.q, q_, n[0]), place(given.k, k_, n[1]), place(given.v, v_, n[2]),
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
