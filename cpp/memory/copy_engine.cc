#include "memory/copy_engine.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <memory>
#include <string>
#include <system_error>

#include "core/error.h"
#include "core/ranges.h"
#include "core/trace.h"

namespace mosaic {
namespace {

using Steady = std::chrono::steady_clock;

double seconds_since(Steady::time_point start) { return std::chrono::duration<double>(Steady::now() - start).count(); }

}  // namespace

CopyEngine::CopyEngine(SpillFile& file, int capacity, void* memory)
    : file_(file), capacity_(capacity), ring_(static_cast<CopyRequest*>(memory)) {
  if (capacity <= 0)
    throw InvalidInput("a copy engine needs room for at least one request; got " + std::to_string(capacity));
  // Signals belong to the application's threads, except those a thread raises itself. A thread starts with the mask of
  // the one that makes it.
  sigset_t all, before;
  sigfillset(&all);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&all, own);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::string failure;
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    failure = error.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!failure.empty())
    throw NoThreadError("the thread that copies to the disk could not start (" + failure +
                        "). Lower kernel_threads=, leave disk= out, or raise the limit of threads or memory that " +
                        "this process has.");
  pthread_setname_np(thread_.native_handle(), "mosaic-copy");
}

CopyEngine::~CopyEngine() {
  if (!is_in_its_process()) {
    // In a fork there is no thread to join, and where the other process waited, destroying waits for ever. These never
    // were.
    std::construct_at(&work_);
    std::construct_at(&room_);
    std::construct_at(&finished_);
    std::construct_at(&thread_);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_one();
  thread_.join();
}

void CopyEngine::read(SlotId slot, std::byte* to, Completion* completion, int32_t lane) {
  const CopyRequest request{CopyRequest::Kind::read, static_cast<int16_t>(lane), slot, to, completion};
  submit(&request, 1);
}

void CopyEngine::write(SlotId slot, const std::byte* from, Completion* completion, int32_t lane) {
  const CopyRequest request{CopyRequest::Kind::write, static_cast<int16_t>(lane), slot, const_cast<std::byte*>(from),
                            completion};
  submit(&request, 1);
}

void CopyEngine::submit(const CopyRequest* requests, int n) {
  std::unique_lock lock(mutex_);
  for (int i = 0; i < n; ++i) {
    if (queued_ == capacity_) {
      work_.notify_one();  // this call may have queued what fills the ring
      ++stats_.stalls;
      const auto start = Steady::now();
      room_.wait(lock, [this] { return queued_ < capacity_; });
      stats_.stall_seconds += seconds_since(start);
    }
    const CopyRequest& request = requests[i];
    if (!request.completion->done()) {
      if (i > 0) work_.notify_one();
      throw InvariantError("copy engine: slot " + std::to_string(request.slot) +
                           " was queued with the completion of a copy that is still under way");
    }
    put(request);
  }
  work_.notify_one();
}

void CopyEngine::put(const CopyRequest& request) {
  request.completion->state_.store(Completion::kPending, std::memory_order_relaxed);
  ring_[(head_ + queued_) % capacity_] = request;
  ++queued_;
  ++submitted_;
}

void CopyEngine::expect(const SlotId* slots, int n, Completion* completion, int32_t lane) {
  std::unique_lock lock(mutex_);
  if (queued_ == capacity_ || !completion->done()) return;
  auto* const list = reinterpret_cast<std::byte*>(const_cast<SlotId*>(slots));
  put({CopyRequest::Kind::expect, static_cast<int16_t>(lane), n, list, completion});
  work_.notify_one();
}

Status CopyEngine::wait(const Completion& completion) {
  if (!completion.done()) {
    const trace::Span span("copy_wait");
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [&] { return completion.done(); });
  }
  return completion.status();
}

void CopyEngine::drain() {
  if (!is_in_its_process()) return;
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this, all = submitted_] { return completed_ >= all; });
}

CopyStats CopyEngine::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

void CopyEngine::serialize(Snapshot& s) {
  std::lock_guard lock(mutex_);
  for (uint64_t* count : {&stats_.reads, &stats_.writes, &stats_.failed, &stats_.runs, &stats_.bytes, &stats_.stalls})
    s.item(*count);
  for (double* seconds : {&stats_.busy_seconds, &stats_.stall_seconds})
    s.finite(seconds, 1, "seconds of the copy thread are a number");
}

// The head of the ring and what follows it, as long as each is the file's next slot in the same direction.
int CopyEngine::take_run(CopyRequest* out) {
  int n = 0;
  while (queued_ > 0 && n < SpillFile::kMaxRun) {
    const CopyRequest& next = ring_[head_];
    if (n > 0 && (next.kind != out[0].kind || next.slot != out[n - 1].slot + 1)) break;
    out[n++] = next;
    head_ = (head_ + 1) % capacity_;
    --queued_;
    if (next.kind == CopyRequest::Kind::expect) break;
  }
  return n;
}

// Without the lock.
void CopyEngine::expect_now(const CopyRequest& request) {
  const trace::Span span("spill_ahead", request.lane);
  file_.expect(request.slot, reinterpret_cast<const SlotId*>(request.memory));
  std::lock_guard lock(mutex_);
  ++completed_;
  request.completion->state_.store(Completion::kFinished, std::memory_order_release);
  finished_.notify_all();
}

void CopyEngine::run() {
  CopyRequest requests[SpillFile::kMaxRun];
  SlotId slots[SpillFile::kMaxRun];
  std::byte* buffers[SpillFile::kMaxRun];
  Status status[SpillFile::kMaxRun];
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return queued_ > 0 || stop_; });
    const int n = take_run(requests);
    if (n == 0) return;  // told to stop, and nothing is left
    lock.unlock();
    room_.notify_all();
    if (requests[0].kind == CopyRequest::Kind::expect) {
      expect_now(requests[0]);
      lock.lock();
      continue;
    }
    const auto start = Steady::now();
    for (int i = 0; i < n; ++i) {
      slots[i] = requests[i].slot;
      buffers[i] = requests[i].memory;
    }
    const uint64_t traced = trace::begin();
    const bool reading = requests[0].kind == CopyRequest::Kind::read;
    const char* const name = reading ? "spill_read" : "spill_write";
    ranges::open(name);
    const int ok = reading ? file_.read_run(n, slots, buffers, status) : file_.write_run(n, slots, buffers, status);
    const double busy = seconds_since(start);
    ranges::close();
    trace::end(name, traced, requests[0].lane);
    lock.lock();
    (reading ? stats_.reads : stats_.writes) += static_cast<uint64_t>(n);
    stats_.failed += static_cast<uint64_t>(n - ok);
    stats_.bytes += static_cast<uint64_t>(ok) * file_.slot_bytes();
    stats_.busy_seconds += busy;
    ++stats_.runs;
    completed_ += static_cast<uint64_t>(n);
    // The last touch of each completion: its owner may use it again from here on.
    for (int i = 0; i < n; ++i) {
      requests[i].completion->state_.store(static_cast<uint8_t>(Completion::kFinished + static_cast<int>(status[i])),
                                           std::memory_order_release);
    }
    finished_.notify_all();
  }
}

}  // namespace mosaic
