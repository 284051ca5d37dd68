// Why the CUDA backend cannot be used, in one line that names what is missing and what would change it. The facts come
// from the runtime (cuda_device.cu); the sentence is plain C++, so that tests see every case without a GPU.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

namespace mosaic::cuda {

// Whether a build for `architectures`, as CMake names them ("80 86-real 90"), runs on a GPU of compute capability
// major.minor. Code runs on its own and later minors; PTX, which an entry without "-real" has, on all that came later;
// "90a" and its like on that one alone. What is no number ("native", "all") was made for what is there.
inline bool has_code_for(std::string_view architectures, int major, int minor) {
  const int there = 10 * major + minor;
  while (!architectures.empty()) {
    const size_t end = std::min(architectures.find_first_of(" ;,"), architectures.size());
    const std::string one(architectures.substr(0, end));
    architectures.remove_prefix(std::min(end + 1, architectures.size()));
    if (one.empty()) continue;
    const size_t digits = std::min(one.find_first_not_of("0123456789"), one.size());
    if (digits == 0) return true;
    const int built = std::atoi(one.c_str());
    const std::string kind = one.substr(digits);
    const bool code = kind.empty() || kind == "-real", ptx = kind.empty() || kind == "-virtual";
    if (code && built / 10 == major && built <= there) return true;
    if (ptx && built <= there) return true;
    if (!code && !ptx && built == there) return true;
  }
  return false;
}

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
