// q, k, v and out where only kernels reach, as an engine on the device has them; nothing is waited for in between.
#pragma once

#include <optional>
#include <vector>

#include "support/played_stream.h"
#include "support/shim_backend.h"

namespace mosaic::testing {

class OnDevice {
 public:
  // queue: the stream that attend() is given; none: it waits for its out. said: with where the arrays lie, and out stays
  // there, so that nothing at all is waited for before commit().
  OnDevice(PlayedStream* stream, ShimControl* control, std::optional<void*> queue = nullptr, bool said = false)
      : control_(control), stream_(queue) {
    if (said) lie_.fill(Device::Access::kKernels);
    stream->hand_over = [this](PlayedStream* s, int layers) { attend(s, layers); };
  }
  ~OnDevice() { release(); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  float* there(const std::vector<float>& x) {
    const size_t bytes = x.size() * sizeof(float);
    auto* const memory = static_cast<float*>(control_->device->allocate_private(bytes));
    pieces_.push_back(memory);
    control_->device->copy_async(memory, x.data(), bytes);
    return memory;
  }
  void release() {
    for (float* piece : pieces_) control_->device->release(piece, 0);
    pieces_.clear();
  }
  void attend(PlayedStream* s, int layers) {
    DeviceCalls before = control_->calls;  // what is called here is the engine's, not the memory's
    control_->ops->wait();
    before.launches = control_->calls.launches;  // but for what the memory's calls still held back
    before.launches_of = control_->calls.launches_of;
    release();
    const auto n = static_cast<size_t>(s->block_tokens);
    float *const q = there(s->q), *const k = there(s->k), *const v = there(s->v), *const out = there(s->out);
    control_->ops->wait();
    control_->calls = before;
    for (int l = 0; l < layers; ++l) {
      const auto at = static_cast<size_t>(l) * n;
      s->memory->attend(l, q + at * s->q_row(), k + at * s->row(), v + at * s->row(), out + at * s->q_row(), stream_,
                        -1, {}, lie_);
    }
    if (lie_[3]) return;
    const DeviceCalls after = control_->calls;
    control_->device->copy_async(s->out.data(), out, s->out.size() * sizeof(float));
    control_->ops->wait();
    control_->calls = after;
  }

  ShimControl* control_;
  std::optional<void*> stream_;
  ArraysLie lie_;
  std::vector<float*> pieces_;
};

}  // namespace mosaic::testing
