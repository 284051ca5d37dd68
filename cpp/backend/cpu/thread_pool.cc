#include "backend/cpu/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <system_error>

#include "core/error.h"

namespace mosaic::cpu {
namespace {

constexpr int kSpins = 1000;  // about 20 us: longer would take the core from whoever computes between two calls

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                          : static_cast<int>(std::thread::hardware_concurrency());
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    long quota = 0, period = 0;
    if (std::fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0) {
      cores = std::min(cores, static_cast<int>((quota + period - 1) / period));
    }
    std::fclose(file);
  }
  return std::max(1, cores);
}

ThreadPool::ThreadPool(int threads) : threads_(threads > 0 ? threads : usable_cores()), process_(getpid()) {
  if (threads_ > kMostThreads)
    throw InvalidInput("kernel_threads=" + std::to_string(threads_) + ": at most " + std::to_string(kMostThreads) +
                       ".");
  if (threads_ == 1) return;
  workers_ = std::make_unique<std::thread[]>(static_cast<size_t>(threads_ - 1));
  for (int i = 1; i < threads_; ++i) {
    try {
      workers_[static_cast<size_t>(i - 1)] = std::thread([this, i] { worker_loop(i); });
    } catch (const std::system_error& error) {
      join();
      throw NoThreadError("kernel_threads=" + std::to_string(threads_) + ": only " + std::to_string(i) +
                          " could start (" + error.what() + "). Lower kernel_threads=, or raise the limit of threads " +
                          "or memory that this process has.");
    }
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() == process_) {
    join();
  } else {
    static_cast<void>(workers_.release());  // a fork has none of them to join, and may not destroy them unjoined
  }
}

// Those that were started.
void ThreadPool::join() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (int i = 1; i < threads_; ++i)
    if (std::thread& worker = workers_[static_cast<size_t>(i - 1)]; worker.joinable()) worker.join();
}

void ThreadPool::start(int tasks, Call call, void* context) {
  done_.store(0, std::memory_order_relaxed);
  call_.store(call, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  const uint64_t epoch = (job_.load(std::memory_order_relaxed) >> 40) + 1;
  job_.store(epoch << 40 | static_cast<uint64_t>(tasks) << 20, std::memory_order_release);
  wake_.fetch_add(1);
  wake_.notify_all();
  while (work_one(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) != tasks; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();  // its core may be what the last worker waits for
    }
  }
}

bool ThreadPool::work_one(int worker) {
  uint64_t job = job_.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t next = job & 0xfffff, tasks = job >> 20 & 0xfffff;
    if (next >= tasks) return false;
    if (job_.compare_exchange_weak(job, job + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      call_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), static_cast<int>(next), worker);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
}

void ThreadPool::worker_loop(int worker) {
  for (int idle = 0; !stop_.load(std::memory_order_relaxed);) {
    const uint32_t seen = wake_.load();
    if (work_one(worker)) {
      idle = 0;
    } else if (++idle < kSpins) {
      pause();
    } else {
      wake_.wait(seen);
      idle = 0;
    }
  }
}

}  // namespace mosaic::cpu
