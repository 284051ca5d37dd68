// Every call of the CUDA runtime goes through check(): a failure becomes a DeviceError that names the call and its line.
// Destructors use passed(), which never throws. OnDevice stands at every entry. nvcc's files only.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "core/error.h"

namespace mosaic::cuda {

// Errors after which a process can do nothing more on its GPU.
inline bool is_lost(cudaError_t code) {
  switch (code) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorECCUncorrectable:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorAssert:
      return true;
    default:
      return false;
  }
}

[[noreturn]] inline void fail(cudaError_t code, const char* what, const char* file, int line) {
  cudaGetLastError();  // said once: it must not strike the next session of this thread
  throw DeviceError("cuda: " + std::string(what) + " failed: " + cudaGetErrorString(code) + " (" +
                    cudaGetErrorName(code) + ", " + file + ":" + std::to_string(line) + "). " +
                    (code == cudaErrorMemoryAllocation ? "Lower memory=."
                     : is_lost(code)                   ? "The GPU is lost to this process: restart it."
                                                       : "Close the session and open another."));
}

inline void check(cudaError_t code, const char* what, const char* file, int line) {
  if (code != cudaSuccess) fail(code, what, file, line);
}

inline bool passed(cudaError_t code) noexcept { return code == cudaSuccess; }

// Makes a device the calling thread's for one scope, and what it was before at the end: a stream takes no kernel while
// another device is current, and the caller's choice is not ours to change.
class OnDevice {
 public:
  explicit OnDevice(int ordinal) : ordinal_(ordinal) {
    check(cudaGetDevice(&before_), "cudaGetDevice", __FILE__, __LINE__);
    if (before_ != ordinal_) check(cudaSetDevice(ordinal_), "cudaSetDevice", __FILE__, __LINE__);
  }
  ~OnDevice() {
    if (before_ != ordinal_) passed(cudaSetDevice(before_));
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int ordinal_, before_ = 0;
};

}  // namespace mosaic::cuda

#define MOSAIC_CUDA_TRY(call) ::mosaic::cuda::check((call), #call, __FILE__, __LINE__)
