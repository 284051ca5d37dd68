// Trace: spans of time in this process, for --trace. Off, a span costs one branch, always the same way, at each end. On,
// every thread writes to a ring of its own, without a lock; all rings are taken by start(), outside the cap of any
// session: kThreads x kSpans x 32 bytes (ring_bytes()). Nothing is allocated after that: the newest spans stay, what
// they overwrite is counted, and so is what a thread beyond kThreads wrote. One trace at a time: spans of every session
// go to it. Any thread may open spans at any time; start() and stop() are for one caller.
//   spans   encode_frame  forward  select  prefetch  copy_wait  recall  attend  listen  settle  admit  pack
//           cluster  spill_read  spill_ahead  spill_write   (stable names)
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mosaic::trace {

inline constexpr int kThreads = 16;
inline constexpr uint64_t kSpans = 16384;  // of one thread
inline constexpr int32_t kNoLane = -1;

extern std::atomic<bool> on;

// Nanoseconds of the monotonic clock (Python's time.monotonic_ns()).
uint64_t now();
// A span that is over. name: a literal, it is not copied.
void add(const char* name, uint64_t begin_ns, uint64_t end_ns, int32_t lane = kNoLane);

// From begin() to end(), where a scope is not what is timed. begin() is 0 while off.
inline uint64_t begin() { return on.load(std::memory_order_relaxed) ? now() : 0; }
inline void end(const char* name, uint64_t begun, int32_t lane = kNoLane) {
  if (begun != 0) [[unlikely]]
    add(name, begun, now(), lane);
}

// From here to the end of the scope.
class Span {
 public:
  explicit Span(const char* name, int32_t lane = kNoLane) : name_(name), lane_(lane), begun_(begin()) {}
  ~Span() { end(name_, begun_, lane_); }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  const char* const name_;
  const int32_t lane_;
  const uint64_t begun_;
};

size_t ring_bytes();
// Takes the rings (kept for the next trace) and begins. InvalidInput when a trace is running.
void start();
// Ends it. The trace as Chrome's JSON, one event a line; times in microseconds since start(). Empty when none runs.
std::string stop();

}  // namespace mosaic::trace
