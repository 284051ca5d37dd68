// Where bytes live and copies run. allocate() is called while a session is built, never after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mosaic {

class Device {
 public:
  virtual ~Device() = default;
  virtual const char* name() const = 0;
  // CPU and GPU share one DRAM (Jetson), or there is only a CPU: a host tier would free nothing.
  virtual bool is_integrated() const = 0;
  // Bytes that can be allocated now: MemAvailable and cgroup headroom on a host, the driver's answer on a card.
  virtual size_t free_bytes() const = 0;
  // 64-byte aligned, zeroed. Throws DeviceError naming the need and what is free.
  virtual void* allocate(size_t bytes) = 0;
  // Kernels run on a GPU: arrays that lie on one may be handed over.
  virtual bool is_gpu() const { return false; }
  // Kernels have memory of their own, which they reach faster and the host does not reach at all.
  virtual bool has_private() const { return false; }
  // Some of it. Released in the same way.
  virtual void* allocate_private(size_t bytes) { return allocate(bytes); }
  // Who may use what lies there: the host alone, kernels alone, or both.
  enum class Access : uint8_t { kHost, kKernels, kBoth };
  virtual Access access(const void*) const { return Access::kBoth; }
  // Arrays of a caller's, four at most, that kernels are given until the next ones are lent: the device takes it from here
  // where they lie, and looks no more.
  struct Lent {
    const void* data = nullptr;
    size_t bytes = 0;
    Access access{};
  };
  virtual void lend(std::span<const Lent>) {}
  // Kernels queued from here on run after what was queued so far on a stream of the caller's (of this device's kind; null
  // is its default one), and the other way round.
  virtual void follow(void* /*stream*/) {}
  virtual void precede(void* /*stream*/) {}
  virtual void release(void* memory, size_t bytes) noexcept = 0;
  // Queue a copy; `record` marks the point after everything queued so far, `wait` blocks until a mark has passed.
  virtual void copy_async(void* to, const void* from, size_t bytes) = 0;
  virtual uint64_t record() = 0;
  virtual void wait(uint64_t mark) = 0;
};

}  // namespace mosaic
