#include "backend/backend.h"

#include "backend/cpu/cpu_device.h"
#include "backend/cpu/cpu_ops.h"
#include "backend/cpu/thread_pool.h"
#include "backend/cuda/cuda_backend.h"
#include "core/error.h"

namespace mosaic {

std::vector<BackendInfo> list_backends() {
  const std::string cpu =
      cpu::implementations().back() + " kernels, " + std::to_string(cpu::usable_cores()) + " cores usable";
  return {{"cpu", true, cpu}, cuda::info()};
}

Backend make_backend(const std::string& name, int threads) {
  if (name == "cpu") {
    if (threads < 0 || threads > 1024) {
      throw DeviceError("cpu: " + std::to_string(threads) +
                        " threads asked for. Set kernel_threads= from 0 (one per core) to 1024.");
    }
    return {std::make_unique<cpu::CpuDevice>(), cpu::make_ops(cpu::implementations().back(), threads)};
  }
  if (name == "cuda") return cuda::make();
  throw DeviceError("no backend is called \"" + name + "\". Set backend= to one of: cpu, cuda.");
}

}  // namespace mosaic
