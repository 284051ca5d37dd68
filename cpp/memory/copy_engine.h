// CopyEngine: one background thread that moves pages between DRAM and the spill file while the model computes. Requests
// wait in a ring whose size is fixed; when it is full the submitter waits (a stall, counted). They run in the order
// they were queued, so a read of a slot queued after its write sees the write; neighbours in the ring that are
// neighbours in the file move with one system call.
// The caller owns one Completion per request. Until it is done, keep it, the slot and the buffer as they are.
// Any thread may call anything. After construction nothing allocates and nothing throws, except on a defect
// (InvariantError). The destructor finishes what is queued. The SpillFile outlives the engine. In a fork, which has no
// such thread, drain() and the destructor do nothing; nothing else may be called there.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>

#include "core/ids.h"
#include "memory/snapshot.h"
#include "memory/spill_file.h"

namespace mosaic {

// What became of one request. Zeroed memory is an idle completion, so it may be part of a page's record. It may be used
// for the next request as soon as it is done.
class Completion {
 public:
  // True when nothing is under way: never submitted, or finished.
  bool done() const { return state_.load(std::memory_order_acquire) != kPending; }
  // The result of the last request; ok when there was none. Meaningful when done().
  Status status() const {
    const uint8_t state = state_.load(std::memory_order_acquire);
    return state >= kFinished ? static_cast<Status>(state - kFinished) : Status::ok;
  }

  // As if a request had ended so: one that had, in the session this one is restored from.
  void set_finished(Status status) {
    state_.store(static_cast<uint8_t>(kFinished + static_cast<int>(status)), std::memory_order_release);
  }

 private:
  friend class CopyEngine;
  static constexpr uint8_t kIdle = 0, kPending = 1, kFinished = 2;  // kFinished + Status
  std::atomic<uint8_t> state_{kIdle};
};

struct CopyRequest {
  enum class Kind : uint8_t { read, write, expect };
  Kind kind;
  int16_t lane = -1;  // whose page it is, for the trace
  SlotId slot;        // of what is expected, how many
  std::byte* memory;  // host memory of slot_bytes(), which a write does not change; or the slots that are expected
  Completion* completion;
};

struct CopyStats {
  uint64_t reads = 0;  // requests finished, failed ones included
  uint64_t writes = 0;
  uint64_t failed = 0;
  uint64_t runs = 0;    // groups they were moved in
  uint64_t bytes = 0;   // of requests that ended ok, without padding
  uint64_t stalls = 0;  // times a submitter waited for room
  double busy_seconds = 0;
  double stall_seconds = 0;
};

class CopyEngine {
 public:
  // The ring, in host memory.
  static constexpr size_t bytes_for(int capacity) { return static_cast<size_t>(capacity) * sizeof(CopyRequest); }

  // memory: bytes_for(capacity), 8-byte aligned. Throws InvalidInput, or NoThreadError when no thread can be started.
  CopyEngine(SpillFile& file, int capacity, void* memory);
  ~CopyEngine();
  CopyEngine(const CopyEngine&) = delete;
  CopyEngine& operator=(const CopyEngine&) = delete;

  void read(SlotId slot, std::byte* to, Completion* completion, int32_t lane = -1);
  void write(SlotId slot, const std::byte* from, Completion* completion, int32_t lane = -1);
  // Has the system read n slots ahead, in their turn. A hint: dropped where the ring is full, or the last one with this
  // completion is under way. Keep the list until that is done.
  void expect(const SlotId* slots, int n, Completion* completion, int32_t lane = -1);
  // Queues n requests together, in order, so that neighbours are seen as such.
  void submit(const CopyRequest* requests, int n);

  Status wait(const Completion& completion);
  // Waits until everything queued before the call is finished.
  void drain();

  int capacity() const { return capacity_; }
  CopyStats stats() const;
  void serialize(Snapshot& s);  // the stats; nothing is under way

 private:
  void run();
  void put(const CopyRequest& request);
  int take_run(CopyRequest* out);
  void expect_now(const CopyRequest& request);
  bool is_in_its_process() const { return getpid() == process_; }

  SpillFile& file_;
  const int capacity_;
  CopyRequest* const ring_;  // [capacity], `queued_` of them from head_ on
  mutable std::mutex mutex_;
  std::condition_variable work_;      // the thread waits: something was queued, or stop
  std::condition_variable room_;      // submitters wait: the ring has room
  std::condition_variable finished_;  // wait() and drain()
  int head_ = 0;
  int queued_ = 0;
  uint64_t submitted_ = 0;  // requests so far; the thread takes them in order, so a count is also an index in the queue
  uint64_t completed_ = 0;
  bool stop_ = false;
  CopyStats stats_;
  const pid_t process_ = getpid();
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace mosaic
