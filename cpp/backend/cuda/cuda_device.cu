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

namespace mosaic::cuda {
namespace {

__global__ void probe_kernel() {}

#define MOSAIC_TEXT_OF(...) #__VA_ARGS__
#define MOSAIC_TEXT(...) MOSAIC_TEXT_OF(__VA_ARGS__)

Probe probe() {
  Probe p;
  p.architectures = "compute " MOSAIC_TEXT(__CUDA_ARCH_LIST__);
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
  if (p.devices == 0 || !passed(cudaGetDeviceProperties(&properties, 0))) return p;
  p.device = properties.name, p.major = properties.major, p.minor = properties.minor;
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, probe_kernel);
  p.has_code = code == cudaSuccess;
  if (!p.has_code && code != cudaErrorNoKernelImageForDevice && code != cudaErrorInvalidDeviceFunction)
    p.error = std::string(p.device) + ": " + cudaGetErrorString(code);
  cudaGetLastError();  // a probe that failed is not the next call's error
  return p;
}

void finish(const simt::Queue& queue) {
  MOSAIC_CUDA_TRY(cudaStreamSynchronize(static_cast<cudaStream_t>(queue.stream)));
}

// Memory the driver knows, or any memory where the GPU follows the host's page tables.
// Memory that the driver does not know belongs to the host alone, also where the GPU could follow the host's page tables:
// every access would fault first.
Device::Access access_of(const void* pointer) {
  cudaPointerAttributes attributes;
  MOSAIC_CUDA_TRY(cudaPointerGetAttributes(&attributes, pointer));  // a lost device is not host memory
  if (attributes.type == cudaMemoryTypeDevice) return Device::Access::kKernels;
  return attributes.type == cudaMemoryTypeUnregistered ? Device::Access::kHost : Device::Access::kBoth;
}
bool can_access(const void* pointer) { return access_of(pointer) != Device::Access::kHost; }

void copy(const simt::Queue& queue, void* to, const void* from, size_t bytes) {
  MOSAIC_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, static_cast<cudaStream_t>(queue.stream)));
}

[[noreturn]] void refuse(const char* what, size_t bytes, size_t free) {
  throw DeviceError("cuda: " + format_bytes(bytes) + " of " + what + " needed, " + format_bytes(free) +
                    " free. Lower memory= or device_memory=.");
}

}  // namespace

CudaDevice::CudaDevice(int ordinal) {
  MOSAIC_CUDA_TRY(cudaSetDevice(ordinal));
  int integrated = 0;
  MOSAIC_CUDA_TRY(cudaDeviceGetAttribute(&integrated, cudaDevAttrIntegrated, ordinal));
  MOSAIC_CUDA_TRY(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, ordinal));
  integrated_ = integrated != 0;
  MOSAIC_CUDA_TRY(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  for (cudaEvent_t& event : events_) MOSAIC_CUDA_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  MOSAIC_CUDA_TRY(cudaEventCreateWithFlags(&order_, cudaEventDisableTiming));
}

CudaDevice::~CudaDevice() {
  passed(cudaStreamSynchronize(stream_));
  for (const cudaEvent_t event : events_) {
    if (event != nullptr) passed(cudaEventDestroy(event));
  }
  if (order_ != nullptr) passed(cudaEventDestroy(order_));
  passed(cudaStreamDestroy(stream_));
}

Device::Access CudaDevice::access(const void* pointer) const { return access_of(pointer); }

void CudaDevice::follow(void* stream) {
  MOSAIC_CUDA_TRY(cudaEventRecord(order_, static_cast<cudaStream_t>(stream)));
  MOSAIC_CUDA_TRY(cudaStreamWaitEvent(stream_, order_));
}

void CudaDevice::precede(void* stream) {
  MOSAIC_CUDA_TRY(cudaEventRecord(order_, stream_));
  MOSAIC_CUDA_TRY(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), order_));
}

size_t CudaDevice::free_bytes() const { return cpu::CpuDevice().free_bytes(); }

void* CudaDevice::allocate(size_t bytes) {
  const size_t free = free_bytes();
  void* memory = nullptr;
  if (bytes == 0 || bytes > free) refuse("pinned memory", bytes, free);
  const cudaError_t code = cudaHostAlloc(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    refuse("pinned memory", bytes, free);
  }
  check(code, "cudaHostAlloc", __FILE__, __LINE__);
  std::memset(memory, 0, bytes);
  return memory;
}

void* CudaDevice::allocate_private(size_t bytes) {
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
  MOSAIC_CUDA_TRY(cudaMemsetAsync(memory, 0, bytes, stream_));
  MOSAIC_CUDA_TRY(cudaStreamSynchronize(stream_));
  return memory;
}

void CudaDevice::release(void* memory, size_t) noexcept {
  if (memory == nullptr) return;
  cudaPointerAttributes attributes;
  passed(cudaStreamSynchronize(stream_));  // kernels may still read it
  if (!passed(cudaPointerGetAttributes(&attributes, memory))) return;
  passed(attributes.type == cudaMemoryTypeHost ? cudaFreeHost(memory) : cudaFree(memory));
}

void CudaDevice::copy_async(void* to, const void* from, size_t bytes) {
  MOSAIC_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
}

uint64_t CudaDevice::record() {
  ++mark_;
  MOSAIC_CUDA_TRY(cudaEventRecord(events_[mark_ % kEvents], stream_));
  return mark_;
}

void CudaDevice::wait(uint64_t mark) {
  if (mark != 0) MOSAIC_CUDA_TRY(cudaEventSynchronize(events_[mark % kEvents]));
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
  auto device = std::make_unique<CudaDevice>(0);
  Target target;
  target.name = "cuda";
  target.queue.stream = device->stream();
  target.queue.processors = device->processors();
  target.finish = finish;
  target.can_access = can_access;
  target.copy = copy;
  auto ops = std::make_unique<CudaOps>(target, cpu::make_ops(cpu::implementations().back(), 1));
  return {std::move(device), std::move(ops)};
}

}  // namespace mosaic::cuda
