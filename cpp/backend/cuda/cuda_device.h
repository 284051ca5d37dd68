// CudaDevice: one GPU, one stream that copies and kernels share, so that they run in the order they were queued.
// allocate() gives pinned host memory that the GPU maps: store and policies read and write it, and so do kernels, at the
// same address. On a board with one DRAM that costs nothing; on a card every read crosses the link. allocate_private()
// is the card's own memory. Any thread may call it, whatever device is current there, and finds that one current after.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <memory>

#include "backend/cuda/known_memory.h"
#include "backend/device.h"

namespace mosaic::cuda {

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  const char* name() const override { return "cuda"; }
  bool is_integrated() const override { return integrated_; }
  size_t free_bytes() const override;  // of what allocate() gives: the host's
  void* allocate(size_t bytes) override;
  bool is_gpu() const override { return true; }
  bool has_private() const override { return true; }
  void* allocate_private(size_t bytes) override;
  Access access(const void* pointer) const override;
  void lend(std::span<const Lent> arrays) override { known_.lend(arrays); }
  void follow(void* stream) override;
  void precede(void* stream) override;
  void release(void* memory, size_t bytes) noexcept override;
  void copy_async(void* to, const void* from, size_t bytes) override;
  uint64_t record() override;
  void wait(uint64_t mark) override;
  cudaStream_t stream() const { return stream_.get(); }
  int processors() const { return processors_; }
  int ordinal() const { return ordinal_; }
  const KnownMemory& known() const { return known_; }
  bool* pending() { return &pending_; }

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const noexcept { cudaStreamDestroy(stream); }
    void operator()(cudaEvent_t event) const noexcept { cudaEventDestroy(event); }
  };
  using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy>;
  using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, Destroy>;
  static Event make_event();

  static constexpr int kEvents = 64;  // marks older than this many wait for a later one
  int ordinal_ = 0;
  bool integrated_ = false;
  int processors_ = 1;
  Stream stream_;
  std::array<Event, kEvents> events_;
  Event order_;  // between our stream and a caller's
  uint64_t mark_ = 0;
  KnownMemory known_;
  bool pending_ = false;  // something may be under way in the stream
};

}  // namespace mosaic::cuda
