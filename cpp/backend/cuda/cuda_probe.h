// Why the CUDA backend cannot be used, in one line that names what is missing and what would change it. The facts come
// from the runtime (cuda_device.cu); the sentence is plain C++, so that tests see every case without a GPU.
#pragma once

#include <string>

namespace mosaic::cuda {

struct Probe {
  int driver = 0;        // CUDA version the driver speaks, as 1000 major + 10 minor; 0: no driver
  int runtime = 0;       // CUDA version of this build
  bool too_old = false;  // the runtime refused the driver
  int devices = 0;
  std::string device;         // name of the first one
  int major = 0, minor = 0;   // its compute capability
  bool has_code = false;      // this build has a kernel for it
  std::string architectures;  // this build's, for the message
  std::string error;          // anything else the runtime said
};

inline std::string version_of(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Empty: the backend can be used.
inline std::string why_absent(const Probe& p) {
  if (p.driver == 0) return "no NVIDIA driver; install one for CUDA " + version_of(p.runtime) + " or later";
  if (p.too_old)
    return "the driver is for CUDA " + version_of(p.driver) + ", this build needs " + version_of(p.runtime) +
           "; update the driver, or build with an older nvcc";
  if (!p.error.empty()) return p.error;
  if (p.devices == 0) return "a driver, but no GPU it shows; see nvidia-smi and CUDA_VISIBLE_DEVICES";
  if (!p.has_code)
    return p.device + " (sm_" + std::to_string(p.major) + std::to_string(p.minor) + ") has no code in this build (" +
           p.architectures + "); build with CMAKE_CUDA_ARCHITECTURES=" + std::to_string(p.major) +
           std::to_string(p.minor);
  return "";
}

}  // namespace mosaic::cuda
