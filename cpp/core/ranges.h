// Ranges: what a device's profiler shows around its kernels - frame, question, token, copy. A backend that has such a profiler
// says once where they go (NVTX); where none has, a range costs one branch. Those of one thread lie in each other, and none is
// closed twice: a KvMemory's block opens one when it begins, and closes it when it is filed or refused, or goes with its memory.
// What --trace shows is core/trace.h's.
#pragma once

#include <atomic>

namespace mosaic::ranges {

struct Profiler {
  void (*open)(const char* name) noexcept;
  void (*close)() noexcept;
};

inline std::atomic<const Profiler*> profiler{nullptr};  // what it points at lives as long as the process

inline void open(const char* name) {
  if (const Profiler* const p = profiler.load(std::memory_order_acquire)) [[unlikely]]
    p->open(name);
}
inline void close() {
  if (const Profiler* const p = profiler.load(std::memory_order_acquire)) [[unlikely]]
    p->close();
}

// From here to the end of the scope; without a name it was opened before.
class Range {
 public:
  Range() = default;
  explicit Range(const char* name) { open(name); }
  ~Range() { close(); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace mosaic::ranges
