#include "support/allocation_counter.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define MOSAIC_COUNT_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define MOSAIC_COUNT_ALLOCATIONS 0
#endif
#endif
#ifndef MOSAIC_COUNT_ALLOCATIONS
#define MOSAIC_COUNT_ALLOCATIONS 1
#endif

namespace {

constinit std::atomic<uint64_t> allocations{0};
constinit std::atomic<bool> trap{false};

[[maybe_unused]] void count() {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (trap.load(std::memory_order_relaxed)) std::abort();
}

}  // namespace

#if MOSAIC_COUNT_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) noexcept {
  count();
  return __libc_malloc(bytes);
}
void* calloc(size_t n, size_t bytes) noexcept {
  count();
  return __libc_calloc(n, bytes);
}
void* realloc(void* memory, size_t bytes) noexcept {
  count();
  return __libc_realloc(memory, bytes);
}
void* memalign(size_t alignment, size_t bytes) noexcept {
  count();
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  count();
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, size_t alignment, size_t bytes) noexcept {
  count();
  if (alignment < sizeof(void*) || (alignment & (alignment - 1)) != 0) return EINVAL;
  void* const memory = __libc_memalign(alignment, bytes);
  if (memory == nullptr) return ENOMEM;
  *out = memory;
  return 0;
}
}
#endif

namespace mosaic::testing {

bool allocation_counting_available() { return MOSAIC_COUNT_ALLOCATIONS != 0; }
uint64_t allocations_so_far() { return allocations.load(std::memory_order_relaxed); }
void trap_allocations(bool on) { trap.store(on, std::memory_order_relaxed); }

}  // namespace mosaic::testing

namespace {

using mosaic::testing::AllocationScope;

// Keeps the compiler from proving that an allocation is not needed.
void* volatile sink;
void* keep(void* memory) {
  sink = memory;
  return memory;
}
template <class F>
uint64_t allocations_of(F make) {
  const AllocationScope scope;
  make();
  return scope.count();
}

struct alignas(128) Wide {
  char bytes[128];
};

TEST_CASE("the allocation counter sees every way to allocate, on every thread") {
  if (!mosaic::testing::allocation_counting_available()) return;
  CHECK(allocations_of([] {}) == 0);
  CHECK(allocations_of([] { std::free(keep(std::malloc(10))); }) == 1);
  CHECK(allocations_of([] { std::free(keep(std::calloc(3, 10))); }) == 1);
  CHECK(allocations_of([] { std::free(keep(std::realloc(nullptr, 10))); }) == 1);
  CHECK(allocations_of([] { std::free(keep(std::aligned_alloc(64, 128))); }) == 1);
  CHECK(allocations_of([] {
          void* memory = nullptr;
          if (posix_memalign(&memory, 64, 128) == 0) std::free(keep(memory));
        }) == 1);
  CHECK(allocations_of([] {
          int* const one = new int(3);
          sink = one;
          delete one;
        }) == 1);
  CHECK(allocations_of([] {
          Wide* const wide = new Wide;
          sink = wide;
          delete wide;
        }) == 1);
  CHECK(allocations_of([] {
          const std::vector<int> numbers(100, 7);
          sink = const_cast<int*>(numbers.data());
        }) == 1);
  CHECK(allocations_of([] { std::free(keep(strdup("a string of the C library"))); }) == 1);
  // The thread itself takes some; what it makes inside must add to that.
  const uint64_t idle = allocations_of([] { std::thread([] {}).join(); });
  const uint64_t busy = allocations_of([] {
    std::thread([] {
      for (int i = 0; i < 100; ++i) std::free(keep(std::malloc(10)));
    }).join();
  });
  CHECK(busy >= idle + 100 - 8);
}

}  // namespace
