// CpuDevice: the host's memory. Copies run at once, so every mark has passed when record() returns it.
#pragma once

#include "backend/device.h"

namespace mosaic::cpu {

class CpuDevice final : public Device {
 public:
  const char* name() const override { return "cpu"; }
  bool is_integrated() const override { return true; }
  size_t free_bytes() const override;
  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;
  void copy_async(void* to, const void* from, size_t bytes) override;
  uint64_t record() override { return ++mark_; }
  void wait(uint64_t) override {}

 private:
  uint64_t mark_ = 0;
};

}  // namespace mosaic::cpu
