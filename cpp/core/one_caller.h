// OneCaller: the door of an object that takes one caller at a time, in the process that made it. Whoever comes while
// somebody is inside is refused, never made to wait, and so is a call from inside (by what the object itself has called),
// and every call in a fork, whose threads, device and half-done work stayed behind.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "core/error.h"

namespace mosaic {

class OneCaller {
 public:
  // name: as errors call the object.
  explicit OneCaller(const char* name) : name_(name) {}
  OneCaller(const OneCaller&) = delete;
  OneCaller& operator=(const OneCaller&) = delete;

  bool is_in_its_process() const { return getpid() == process_; }
  // Throws InvalidInput in a fork.
  void need_its_process() const {
    if (is_in_its_process()) return;
    throw InvalidInput(std::string(name_) + ": it belongs to process " + std::to_string(process_) +
                       ", of which this one is a fork. Open one in each process, or start processes by spawn or " +
                       "forkserver.");
  }
  // The caller's thread is inside.
  bool is_mine() const { return inside_.load(std::memory_order_relaxed) == pthread_self(); }

  // Inside for as long as this lives. Throws InvalidInput where that is refused.
  class Turn {
   public:
    explicit Turn(const OneCaller& of) : of_(of) {
      of.need_its_process();
      if (!of.enter())
        throw InvalidInput(std::string(of.name_) +
                           (of.is_mine()
                                ? ": called by a policy while it asks that policy; what a policy does is return."
                                : ": another thread is in a call of it; one caller at a time."));
    }
    ~Turn() { of_.inside_.store(kNobody, std::memory_order_release); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    const OneCaller& of_;
  };
  // Runs `call` inside, for looking only: where the caller's thread is inside already it may look as well.
  template <class Call>
  auto look(const Call& call) const {
    need_its_process();
    if (is_mine()) return call();
    const Turn turn(*this);
    return call();
  }
  // Runs one of two: `inside` if nobody else is, else `otherwise`.
  template <class Call, class Otherwise>
  auto look_or(const Call& inside, const Otherwise& otherwise) const {
    need_its_process();
    if (!enter()) return otherwise();
    const Leave leave{*this};
    return inside();
  }

 private:
  static constexpr pthread_t kNobody = 0;
  struct Leave {
    const OneCaller& of;
    ~Leave() { of.inside_.store(kNobody, std::memory_order_release); }
  };
  bool enter() const {
    pthread_t nobody = kNobody;
    return inside_.compare_exchange_strong(nobody, pthread_self(), std::memory_order_acquire);
  }

  const char* name_;
  const pid_t process_ = getpid();
  mutable std::atomic<pthread_t> inside_{kNobody};
};

}  // namespace mosaic
