#include "core/trace.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>

#include "core/error.h"

namespace mosaic::trace {

std::atomic<bool> on{false};

namespace {

// Atomics, because a thread that began a span before stop() may end it while the rings are read. Who reads a field that
// was written over sees `begun` of that span too (release, acquire), and leaves the slot out.
struct Slot {
  std::atomic<const char*> name;
  std::atomic<uint64_t> begin;
  std::atomic<uint64_t> end;
  std::atomic<int64_t> lane;
};
struct Ring {
  std::atomic<uint64_t> begun{0};    // spans this thread has started to write
  std::atomic<uint64_t> written{0};  // spans that are there
  char thread[16] = {};
  Slot slots[kSpans];
};

std::unique_ptr<Ring[]> rings;          // [kThreads], never given back: a late thread may still write
std::atomic<int> taken{0};              // rings that have a thread; may pass kThreads
std::atomic<uint32_t> generation{0};    // of the trace; a thread takes a ring once a trace
std::atomic<uint64_t> without_ring{0};  // spans of threads beyond kThreads
uint64_t started = 0;
std::mutex control;  // start() and stop()

Ring* ring_of_this_thread() {
  thread_local uint32_t mine = 0;
  thread_local int index = 0;
  const uint32_t now_running = generation.load(std::memory_order_acquire);
  if (mine != now_running) {
    mine = now_running;
    index = taken.fetch_add(1, std::memory_order_relaxed);
    if (index < kThreads) pthread_getname_np(pthread_self(), rings[index].thread, sizeof(Ring::thread));
  }
  return index < kThreads ? &rings[index] : nullptr;
}

void print(std::string* out, const char* format, auto... values) {
  char line[256];
  const int n = std::snprintf(line, sizeof(line), format, values...);
  out->append(line, static_cast<size_t>(std::clamp(n, 0, static_cast<int>(sizeof(line)) - 1)));
}

// A thread's name without what JSON would stumble over.
std::string plain(const char* name) {
  std::string text = name;
  for (char& c : text) {
    if (c < ' ' || c == '"' || c == '\\' || c > '~') c = '?';
  }
  return text;
}

}  // namespace

uint64_t now() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

size_t ring_bytes() { return kThreads * sizeof(Ring); }

void add(const char* name, uint64_t begin_ns, uint64_t end_ns, int32_t lane) {
  if (!on.load(std::memory_order_acquire)) return;  // it began before stop()
  Ring* const ring = ring_of_this_thread();
  if (ring == nullptr) {
    without_ring.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const uint64_t at = ring->written.load(std::memory_order_relaxed);
  ring->begun.store(at + 1, std::memory_order_relaxed);
  Slot& slot = ring->slots[at % kSpans];
  slot.name.store(name, std::memory_order_release);
  slot.begin.store(begin_ns, std::memory_order_release);
  slot.end.store(end_ns, std::memory_order_release);
  slot.lane.store(lane, std::memory_order_release);
  ring->written.store(at + 1, std::memory_order_release);
}

void start() {
  const std::lock_guard lock(control);
  if (on.load(std::memory_order_relaxed))
    throw InvalidInput(
        "trace: one is being recorded already; a process records one at a time. Close that session first.");
  if (!rings) rings = std::make_unique<Ring[]>(kThreads);
  for (int i = 0; i < kThreads; ++i) rings[i].begun = rings[i].written = 0;
  taken = 0;
  without_ring = 0;
  generation.fetch_add(1, std::memory_order_release);
  started = now();
  on.store(true, std::memory_order_release);
}

std::string stop() {
  const std::lock_guard lock(control);
  if (!on.exchange(false)) return {};
  std::string out = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
  uint64_t overwritten = 0;
  const char* between = "";
  for (int thread = 0; thread < std::min(taken.load(), kThreads); ++thread) {
    const Ring& ring = rings[thread];
    const uint64_t written = ring.written.load(std::memory_order_acquire);
    if (written == 0) continue;
    print(&out, "%s{\"name\": \"thread_name\", \"ph\": \"M\", \"pid\": 1, \"tid\": %d, \"args\": {\"name\": \"%s\"}}",
          between, thread, plain(ring.thread).c_str());
    between = ",\n";
    const uint64_t oldest = written > kSpans ? written - kSpans : 0;
    overwritten += oldest;
    for (uint64_t i = oldest; i < written; ++i) {
      const Slot& slot = ring.slots[i % kSpans];
      const char* const name = slot.name.load(std::memory_order_acquire);
      const uint64_t begin_ns = slot.begin.load(std::memory_order_acquire);
      const uint64_t end_ns = slot.end.load(std::memory_order_acquire);
      const auto lane = static_cast<int>(slot.lane.load(std::memory_order_acquire));
      if (ring.begun.load(std::memory_order_relaxed) > i + kSpans) {  // written over while it was read
        ++overwritten;
        continue;
      }
      if (name == nullptr || begin_ns < started) continue;  // of the trace before
      const double at = (static_cast<double>(begin_ns) - static_cast<double>(started)) / 1e3;
      print(&out, ",\n{\"name\": \"%s\", \"ph\": \"X\", \"pid\": 1, \"tid\": %d, \"ts\": %.3f, \"dur\": %.3f", name,
            thread, at, static_cast<double>(end_ns - begin_ns) / 1e3);
      lane == kNoLane ? out.append("}") : (print(&out, ", \"args\": {\"lane\": %d}}", lane), out);
    }
  }
  out += "\n], \"otherData\": {";
  print(&out, "\"overwritten_spans\": %llu, \"spans_without_ring\": %llu, \"ring_bytes\": %llu}}\n",
        static_cast<unsigned long long>(overwritten), static_cast<unsigned long long>(without_ring.load()),
        static_cast<unsigned long long>(ring_bytes()));
  return out;
}

}  // namespace mosaic::trace
