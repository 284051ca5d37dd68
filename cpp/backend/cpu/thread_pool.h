// ThreadPool: fixed workers, made once; run() hands out numbered tasks and allocates nothing. Tasks are claimed as
// workers come free, so results must be stored by task, never by worker, to be the same on every run; scratch goes by
// worker. A worker that sleeps through a short job is not waited for. The caller works too and is worker 0; one thread
// means no workers at all. One caller at a time. A fork has no workers: there the
// destructor waits for none, and run() may not be called.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>

namespace mosaic::cpu {

// Cores this process may use: its affinity mask, cut by a cgroup quota.
int usable_cores();

class ThreadPool {
 public:
  static constexpr int kMostThreads = 1024;
  static constexpr int kMaxTasks = (1 << 20) - 1;

  // threads: 0: usable_cores(). Throws InvalidInput, or NoThreadError where one cannot start, and leaves none behind.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  int threads() const { return threads_; }

  // fn(int task, int worker) for every task in [0, tasks). Returns when all are done. fn must not throw.
  template <class Fn>
  void run(int tasks, Fn&& fn) {
    if (threads_ == 1 || tasks <= 1) {
      for (int i = 0; i < tasks; ++i) fn(i, 0);
      return;
    }
    using F = std::remove_reference_t<Fn>;
    start(
        tasks, [](void* context, int task, int worker) { (*static_cast<F*>(context))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Call = void (*)(void* context, int task, int worker);
  void start(int tasks, Call call, void* context);
  bool work_one(int worker);
  void worker_loop(int worker);
  void join();

  const int threads_;
  // One word holds the job's number, its tasks and the next task to claim, so a claim can never mix two jobs:
  // [epoch 24 | tasks 20 | next 20]. A claimed task keeps its job alive, so call_ and context_ are read after claiming.
  alignas(64) std::atomic<uint64_t> job_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<bool> stop_{false};
  const pid_t process_;
  std::unique_ptr<std::thread[]> workers_;
};

}  // namespace mosaic::cpu
