// The CUDA backend's kernels on the CPU, as a backend: a device whose memory is allocated to the byte, so that ASan sees
// one too far, with a stream that does nothing until somebody waits, and memory of the kernels' own that the host cannot
// touch; and CudaOps over the fibres of simt_cpu.cc.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "backend/backend.h"

namespace mosaic::testing {

// What a GPU would be asked: each launch, wait, look at a pointer and copy is a call of its driver.
struct DeviceCalls {
  int64_t launches = 0;
  int64_t waits = 0;  // for all that is queued
  int64_t queries = 0;
  int64_t copies = 0;
  int64_t link_bytes = 0;  // of copies between the kernels' own memory and the host's
  std::map<std::string, int64_t> launches_of;
};

// The device as a test sees it, while the Backend lives.
struct ShimControl {
  Device* device = nullptr;
  Ops* ops = nullptr;
  // Faults: the nth allocation (from 1) is refused; the nth thing in the stream fails, and with `lost` all after it.
  int fail_allocation = 0;
  int fail_work = 0;
  bool lost = false;
  bool at_once = false;  // what is queued runs there and then, as on a stream that is never late
  int allocations = 0;   // so far
  int work = 0;
  DeviceCalls calls;
};

// processors: how many the kernels think there are; few, so that work is cut in odd places.
Backend make_shim(int processors = 6, ShimControl* control = nullptr);

}  // namespace mosaic::testing
