// The GPU itself: its memory, its stream, and whether there is one that this build can use. Not part of the CPU's
// compilation of this folder.
#include "backend/cuda/cuda_device.h"

#include <cstring>
#include <memory>

#include "backend/cpu/cpu_device.h"
#include "backend/cpu/cpu_ops.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/cuda_ops.h"
#include "backend/cuda/cuda_probe.h"
#include "core/ranges.h"
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define MOSAIC_NVTX 1
#endif

#ifndef MOSAIC_CUDA_ARCHITECTURES  // of the build (cuda.cmake)
#define MOSAIC_CUDA_ARCHITECTURES "native"
#endif

namespace mosaic::cuda {
namespace {

__global__ void probe_kernel() {}

constexpr int kOrdinal = 0;  // CUDA_VISIBLE_DEVICES chooses which GPU that is

// Without a context, which takes hundreds of MB of the card and which a list of backends does not need: attributes only.
Probe probe() {
  Probe p;
  p.architectures = MOSAIC_CUDA_ARCHITECTURES;
  p.runtime = CUDART_VERSION;
  if (!passed(cudaDriverGetVersion(&p.driver)) || p.driver == 0) {
    p.driver = 0;
    return p;
  }
  const cudaError_t counted = cudaGetDeviceCount(&p.devices);
  if (counted == cudaErrorInsufficientDriver) p.too_old = true;
  if (counted == cudaErrorNoDevice) p.devices = 0;
  if (counted != cudaSuccess) {
    if (!p.too_old && counted != cudaErrorNoDevice) p.error = cudaGetErrorString(counted);
    cudaGetLastError();
    return p;
  }
  cudaDeviceProp properties;
  if (p.devices == 0 || !passed(cudaGetDeviceProperties(&properties, kOrdinal))) return p;
  p.device = properties.name, p.major = properties.major, p.minor = properties.minor;
  p.has_code = has_code_for(p.architectures, p.major, p.minor);
  return p;
}

// Whether kernels of this build run there. Takes the device's context.
void try_kernel() {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();  // said here: it must not be the next call's error
    throw DeviceError("cuda: this build (" MOSAIC_CUDA_ARCHITECTURES
                      ") has no code for the GPU; build with its CMAKE_CUDA_ARCHITECTURES. Or set backend=\"cpu\".");
  }
  check(code, "cudaFuncGetAttributes", __FILE__, __LINE__);
}

void finish(const simt::Queue& queue) {
  MOSAIC_CUDA_TRY(cudaStreamSynchronize(static_cast<cudaStream_t>(queue.stream)));
}

// Memory that the driver does not know belongs to the host alone, also where the GPU could follow the host's page tables:
// every access would fault first. Managed memory is for kernels alone: where the two may not use it at once (Jetson), a
// host that reads it while kernels run ends the process.
Device::Access access_of(const void* pointer) {
  cudaPointerAttributes attributes;
  MOSAIC_CUDA_TRY(cudaPointerGetAttributes(&attributes, pointer));  // a lost device is not host memory
  if (attributes.type == cudaMemoryTypeUnregistered) return Device::Access::kHost;
  if (attributes.type == cudaMemoryTypeManaged) return Device::Access::kKernels;
  if (attributes.type != cudaMemoryTypeDevice) return Device::Access::kBoth;
  if (attributes.device != kOrdinal)
    throw InvalidInput("cuda: an array on GPU " + std::to_string(attributes.device) + ", the memory is on GPU " +
                       std::to_string(kOrdinal) + "; choose one GPU for the process by CUDA_VISIBLE_DEVICES.");
  return Device::Access::kKernels;
}
bool can_access(const simt::Queue&, const void* pointer) { return access_of(pointer) != Device::Access::kHost; }

// NVTX is headers alone: where no profiler listens a range is a call that returns.
#if defined(MOSAIC_NVTX)
void open_range(const char* name) noexcept { nvtxRangePushA(name); }
void close_range() noexcept { nvtxRangePop(); }
constexpr ranges::Profiler kNvtx{open_range, close_range};
#endif

void copy(const simt::Queue& queue, void* to, const void* from, size_t bytes) {
  const ranges::Range range("copy");
  MOSAIC_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(queue.stream)));
}

[[noreturn]] void refuse(const char* what, size_t bytes, size_t free) {
  throw DeviceError("cuda: " + format_bytes(bytes) + " of " + what + " needed, " + format_bytes(free) +
                    " free. Lower memory= or device_memory=.");
}

}  // namespace

CudaDevice::Event CudaDevice::make_event() {
  cudaEvent_t event = nullptr;
  MOSAIC_CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

CudaDevice::CudaDevice(int ordinal) : ordinal_(ordinal) {
  const OnDevice there(ordinal_);
  int integrated = 0;
  MOSAIC_CUDA_TRY(cudaDeviceGetAttribute(&integrated, cudaDevAttrIntegrated, ordinal));
  MOSAIC_CUDA_TRY(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, ordinal));
  integrated_ = integrated != 0;
  cudaStream_t stream = nullptr;
  MOSAIC_CUDA_TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  for (Event& event : events_) event = make_event();
  order_ = make_event();
}

CudaDevice::~CudaDevice() { passed(cudaStreamSynchronize(stream())); }

Device::Access CudaDevice::access(const void* pointer) const {
  const auto known = known_.find(pointer);
  return known ? *known : access_of(pointer);
}

// The default stream, null, is that of the current device.
void CudaDevice::follow(void* stream) {
  const OnDevice there(ordinal_);
  MOSAIC_CUDA_TRY(cudaEventRecord(order_.get(), static_cast<cudaStream_t>(stream)));
  MOSAIC_CUDA_TRY(cudaStreamWaitEvent(stream_.get(), order_.get()));
  pending_ = true;
}

void CudaDevice::precede(void* stream) {
  const OnDevice there(ordinal_);
  MOSAIC_CUDA_TRY(cudaEventRecord(order_.get(), stream_.get()));
  MOSAIC_CUDA_TRY(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), order_.get()));
}

size_t CudaDevice::free_bytes() const { return cpu::CpuDevice().free_bytes(); }

void* CudaDevice::allocate(size_t bytes) {
  const size_t free = free_bytes();
  void* memory = nullptr;
  if (bytes == 0 || bytes > free) refuse("pinned memory", bytes, free);
  const OnDevice there(ordinal_);
  const cudaError_t code = cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    refuse("pinned memory", bytes, free);
  }
  check(code, "cudaHostAlloc", __FILE__, __LINE__);
  std::memset(memory, 0, bytes);
  known_.add(memory, bytes, Access::kBoth);
  return memory;
}

void* CudaDevice::allocate_private(size_t bytes) {
  const OnDevice there(ordinal_);
  size_t free = 0, total = 0;
  MOSAIC_CUDA_TRY(cudaMemGetInfo(&free, &total));
  if (integrated_) free = free_bytes();  // one DRAM: what the host's page cache holds counts as free
  void* memory = nullptr;
  const cudaError_t code = bytes == 0 || bytes > free ? cudaErrorMemoryAllocation : cudaMalloc(&memory, bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    refuse("device memory", bytes, free);
  }
  check(code, "cudaMalloc", __FILE__, __LINE__);
  const auto give_back = [](void* taken) { passed(cudaFree(taken)); };
  std::unique_ptr<void, decltype(give_back)> held(memory, give_back);
  MOSAIC_CUDA_TRY(cudaMemsetAsync(memory, 0, bytes, stream_.get()));
  MOSAIC_CUDA_TRY(cudaStreamSynchronize(stream_.get()));
  known_.add(memory, bytes, Access::kKernels);
  return held.release();
}

void CudaDevice::release(void* memory, size_t) noexcept {
  if (memory == nullptr) return;
  known_.remove(memory);
  cudaPointerAttributes attributes;
  passed(cudaStreamSynchronize(stream()));  // kernels may still read it
  if (!passed(cudaPointerGetAttributes(&attributes, memory))) return;
  passed(attributes.type == cudaMemoryTypeHost ? cudaFreeHost(memory) : cudaFree(memory));
}

void CudaDevice::copy_async(void* to, const void* from, size_t bytes) {
  const ranges::Range range("copy");
  pending_ = true;
  MOSAIC_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream()));
}

uint64_t CudaDevice::record() {
  ++mark_;
  MOSAIC_CUDA_TRY(cudaEventRecord(events_[mark_ % kEvents].get(), stream()));
  return mark_;
}

void CudaDevice::wait(uint64_t mark) {
  if (mark != 0) MOSAIC_CUDA_TRY(cudaEventSynchronize(events_[mark % kEvents].get()));
}

BackendInfo info() {
  const Probe p = probe();
  const std::string absent = why_absent(p);
  if (!absent.empty()) return {"cuda", false, absent};
  return {"cuda", true, p.device + " (sm_" + std::to_string(p.major) + std::to_string(p.minor) + ")"};
}

Backend make() {
  const BackendInfo found = info();
  if (!found.available) throw DeviceError("cuda: " + found.detail + ". Or set backend=\"cpu\".");
#if defined(MOSAIC_NVTX)
  ranges::profiler = &kNvtx;
#endif
  auto device = std::make_unique<CudaDevice>(kOrdinal);
  {
    const OnDevice there(kOrdinal);
    try_kernel();
  }
  Target target;
  target.name = "cuda";
  target.queue.stream = device->stream();
  target.queue.processors = device->processors();
  target.queue.device = device->ordinal();
  target.queue.pending = device->pending();
  target.known = &device->known();
  target.finish = finish;
  target.can_access = can_access;
  target.copy = copy;
  auto ops = std::make_unique<CudaOps>(target, cpu::make_ops(cpu::implementations().back(), 1));
  return {std::move(device), std::move(ops)};
}

}  // namespace mosaic::cuda
