#include "runtime/staging.h"

#include <cstring>

#include "core/finite.h"

namespace mosaic {

namespace {

size_t elements(const Plan& plan, int heads) {
  return static_cast<size_t>(plan.max_block) * static_cast<size_t>(heads) *
         static_cast<size_t>(plan.config.model.head_dim);
}

// Whether some, or all, of the arrays lie where only kernels reach.
bool for_kernels(const LayerArrays& given, const Device& device, bool all) {
  int n = 0;
  for (const float* array : {given.q, given.k, given.v, static_cast<const float*>(given.out)})
    n += device.reach(array) == Device::Reach::kKernels ? 1 : 0;
  return all ? n == 4 : n > 0;
}

}  // namespace

size_t Staging::bytes_for(const Plan& plan) {
  if (!plan.private_data) return 0;
  const ModelShape& m = plan.config.model;
  return 2 * Region::rounded(elements(plan, m.q_heads) * sizeof(float)) +
         2 * Region::rounded(elements(plan, m.kv_heads) * sizeof(float)) + Region::rounded(sizeof(int32_t));
}

Staging::Staging(Region& region, const Plan& plan)
    : q_row_(static_cast<size_t>(plan.config.model.q_heads) * static_cast<size_t>(plan.config.model.head_dim)),
      kv_row_(static_cast<size_t>(plan.config.model.kv_heads) * static_cast<size_t>(plan.config.model.head_dim)) {
  if (!plan.private_data) return;
  bad_ = region.take<int32_t>("staging", 1);
  const ModelShape& m = plan.config.model;
  q_ = region.take<float>("staging", elements(plan, m.q_heads));
  k_ = region.take<float>("staging", elements(plan, m.kv_heads));
  v_ = region.take<float>("staging", elements(plan, m.kv_heads));
  out_ = region.take<float>("staging", elements(plan, m.q_heads));
}

bool Staging::readable_is_finite(const LayerArrays& given, const Device& device, int tokens) const {
  const std::array<const float*, 3> from = {given.q, given.k, given.v};
  const auto n = sizes(tokens);
  for (size_t i = 0; i < from.size(); ++i)
    if (device.reach(from[i]) != Device::Reach::kKernels && !all_finite(from[i], n[i])) return false;
  return true;
}

LayerArrays Staging::enter(const LayerArrays& given, Backend& backend, int tokens, std::optional<void*> stream) {
  if (for_kernels(given, *backend.device, false)) backend.device->follow(stream.value_or(nullptr));
  const auto n = sizes(tokens);
  const auto place = [&](const float* from, float* staged, size_t count) -> const float* {
    const Device::Reach reach = backend.device->reach(from);
    if (reach == Device::Reach::kKernels) backend.ops->check_finite(from, count, bad_);
    if (reach != Device::Reach::kHost) return from;
    std::memcpy(staged, from, count * sizeof(float));
    return staged;
  };
  return {place(given.q, q_, n[0]), place(given.k, k_, n[1]), place(given.v, v_, n[2]),
          backend.device->reach(given.out) == Device::Reach::kHost ? out_ : given.out};
}

const float* Staging::readable(const float* q, size_t n, Backend& backend) {
  if (backend.device->reach(q) != Device::Reach::kKernels) return q;
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
  if (backend.device->reach(given.out) == Device::Reach::kHost)
    std::memcpy(given.out, out_, sizes(tokens)[0] * sizeof(float));
}

}  // namespace mosaic
