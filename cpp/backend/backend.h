// A backend is a device and the kernels that run on it, found by name. One that was not compiled in, or has no driver,
// is still listed and says why it is absent.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/device.h"
#include "backend/ops.h"

namespace mosaic {

struct Backend {
  std::unique_ptr<Device> device;
  std::unique_ptr<Ops> ops;
};

struct BackendInfo {
  std::string name;  // "cpu", "cuda"
  bool available;
  std::string detail;  // instruction set or device; or why it is absent and what would change that
};

std::vector<BackendInfo> list_backends();
// name: "cpu" or "cuda". threads: worker threads of the CPU kernels, 0 for one per core. Throws DeviceError.
Backend make_backend(const std::string& name, int threads);

}  // namespace mosaic
