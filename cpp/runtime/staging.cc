#include "runtime/staging.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/finite.h"

namespace mosaic {

namespace {

constexpr const char* kTooLarge =
    ", beyond 65504, the most that half precision holds (overflow=\"saturate\" takes that instead)";

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

void Staging::look(const LayerArrays& given, Device& device, int tokens, const ArraysLie& lie) {
  const std::array<const float*, 4> arrays = {given.q, given.k, given.v, given.out};
  const auto n = sizes(tokens);
  std::array<Device::Lent, 4> lent;
  for (size_t i = 0; i < arrays.size(); ++i) {
    lie_[i] = lie[i] ? *lie[i] : device.access(arrays[i]);
    lent[i] = {arrays[i], n[i % n.size()] * sizeof(float), lie_[i]};  // out is as large as q
  }
  device.lend(lent);
}

std::string Staging::fault_of(const LayerArrays& given, int tokens, bool* beyond) const {
  const std::array<const float*, 3> from = {given.q, given.k, given.v};
  const auto n = sizes(tokens);
  for (size_t i = 0; i < from.size(); ++i) {
    if (lie_[i] == Device::Access::kKernels) continue;
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
  if (any_for_kernels()) backend.device->follow(stream.value_or(nullptr));
  const std::array<const float*, 3> from = {given.q, given.k, given.v};
  const std::array<float*, 3> staged = {q_, k_, v_};
  std::array<const float*, 3> at = from;
  const auto n = sizes(tokens);
  StageArgs look;
  for (size_t i = 0; i < from.size(); ++i) {
    if (lie_[i] == Device::Access::kKernels) {
      if (!cuts_) continue;
      look.numbers[i] = {from[i], n[i], staged[i]};
      at[i] = staged[i];
    } else if (cuts_ && !all_fit_half(from[i], n[i])) {
      for (size_t j = 0; j < n[i]; ++j) {
        cut_by_host_ += fits_half(from[i][j]) ? 0 : 1;
        staged[i][j] = cut_to_half(from[i][j]);
      }
      at[i] = staged[i];
    } else if (lie_[i] == Device::Access::kHost) {
      std::memcpy(staged[i], from[i], n[i] * sizeof(float));
      at[i] = staged[i];
    }
  }
  if (cuts_ && any_for_kernels()) {  // what is cut has to be there before anybody reads it
    look.faults = faults_ + layer;
    backend.ops->stage(look);
  }
  return {at[0], at[1], at[2], lie_[3] == Device::Access::kHost ? out_ : given.out};
}

void Staging::ask_for_numbers(const LayerArrays& given, int layer, int tokens, StageArgs* stage) const {
  if (cuts_) return;
  const std::array<const float*, 3> from = {given.q, given.k, given.v};
  const auto n = sizes(tokens);
  for (size_t i = 0; i < from.size(); ++i)
    if (lie_[i] == Device::Access::kKernels) stage->numbers[i] = {from[i], n[i], nullptr};
  if (faults_ != nullptr) stage->faults = faults_ + layer;
}

const float* Staging::readable(const float* q, size_t n, Backend& backend) {
  if (backend.device->access(q) != Device::Access::kKernels) return q;
  backend.ops->copy(q_, q, n * sizeof(float));
  backend.ops->wait();
  return q_;
}

void Staging::leave(const LayerArrays& given, Backend& backend, int tokens, std::optional<void*> stream) {
  if (stream && all_for_kernels()) {  // nobody on the host reads or reuses anything of it
    backend.device->precede(*stream);
    return;
  }
  backend.ops->wait();
  if (lie_[3] == Device::Access::kHost) std::memcpy(given.out, out_, sizes(tokens)[0] * sizeof(float));
}

}  // namespace mosaic
