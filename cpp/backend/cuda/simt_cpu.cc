// The CPU's definition of simt.h: one fibre per thread of a block, switched by hand (a kernel meets thousands of times).
// Only tests link it.
#include "backend/cuda/simt.h"

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// Saves the callee's registers on the stack, stores the stack pointer to *from, goes on at `to`.
extern "C" void mosaic_fibre_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.globl mosaic_fibre_switch
.hidden mosaic_fibre_switch
.type mosaic_fibre_switch, @function
mosaic_fibre_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mosaic_fibre_switch, . - mosaic_fibre_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl mosaic_fibre_switch
.hidden mosaic_fibre_switch
.type mosaic_fibre_switch, %function
mosaic_fibre_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size mosaic_fibre_switch, . - mosaic_fibre_switch
)");
#else
#error "simt_cpu.cc switches fibres on x86-64 and aarch64 only"
#endif

namespace mosaic::shim::simt {

constinit thread_local Indices indices{};
constinit thread_local unsigned order = 0;

namespace {

constexpr size_t kStack = size_t{128} << 10;

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Fibre {
  std::unique_ptr<std::byte[]> stack;
  void* at = nullptr;  // its stack pointer while it waits
  void* tsan = nullptr;
  State state = State::kDone;
  int line = 0;      // where it waits
  int shuffles = 0;  // how many it has been through: its warp's two arrays of words take turns
};

// A word of every lane.
using Words = uint32_t[kWarp];
constexpr int kWords = 6;  // that a lane shows the others at once, at most: its part of two matrices

struct Warp {
  Words words[2][kWords];
};

struct Runner {
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::vector<int> turn;  // threads in the order they run
  const std::function<void()>* body = nullptr;
  Fibre* now = nullptr;
  void* home = nullptr;  // stack pointer of run() while a fibre runs
  void* home_tsan = nullptr;
  const void* home_stack = nullptr;
  size_t home_size = 0;
  std::string what, failure;
};
thread_local Runner runner;

[[maybe_unused]] void arrive(void* fake, const void** stack, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, size);
#else
  static_cast<void>(fake), static_cast<void>(stack), static_cast<void>(size);
#endif
}

void enter() {
  arrive(nullptr, &runner.home_stack, &runner.home_size);
  (*runner.body)();
  runner.now->state = State::kDone;
  void* gone;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, runner.home_stack, runner.home_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(runner.home_tsan, 0);
#endif
  mosaic_fibre_switch(&gone, runner.home);
  __builtin_unreachable();
}

// From a fibre back to run().
void yield() {
  void* fake = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake, runner.home_stack, runner.home_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(runner.home_tsan, 0);
#endif
  mosaic_fibre_switch(&runner.now->at, runner.home);
  arrive(fake, &runner.home_stack, &runner.home_size);
}

void resume(Fibre& fibre) {
  runner.now = &fibre;
  void* fake = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake, fibre.stack.get(), kStack);
#endif
#if defined(__SANITIZE_THREAD__)
  runner.home_tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fibre.tsan, 0);
#endif
  mosaic_fibre_switch(&runner.home, fibre.at);
  arrive(fake, nullptr, nullptr);
}

void prepare(Fibre& fibre) {
  if (fibre.stack == nullptr) fibre.stack.reset(new std::byte[kStack]);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fibre.stack.get(), kStack);  // the last thread's frames never returned
#endif
  auto top = reinterpret_cast<uintptr_t>(fibre.stack.get()) + kStack;
  top -= top % 16;
#if defined(__x86_64__)
  auto* const at = reinterpret_cast<uintptr_t*>(top) - 8;  // six registers, entry, no caller
  std::memset(at, 0, 8 * sizeof *at);
  at[6] = reinterpret_cast<uintptr_t>(&enter);
#else
  auto* const at = reinterpret_cast<uintptr_t*>(top) - 20;
  std::memset(at, 0, 20 * sizeof *at);
  at[11] = reinterpret_cast<uintptr_t>(&enter);  // x30
#endif
  fibre.at = at;
#if defined(__SANITIZE_THREAD__)
  if (fibre.tsan == nullptr) fibre.tsan = __tsan_create_fiber(0);
#endif
  fibre.state = State::kReady;
  fibre.shuffles = 0;
}

// Threads [begin, end) wait in the same state at the same line: let them go on. Some elsewhere or gone: not yet, or never.
bool release(int begin, int end, State state) {
  for (int t = begin; t < end; ++t) {
    if (runner.fibres[static_cast<size_t>(t)].state != state) return false;
  }
  for (int t = begin; t < end; ++t) {
    if (runner.fibres[static_cast<size_t>(t)].line != runner.fibres[static_cast<size_t>(begin)].line) {
      runner.failure = "threads meet at different lines";
      return false;
    }
  }
  for (int t = begin; t < end; ++t) runner.fibres[static_cast<size_t>(t)].state = State::kReady;
  return true;
}

// Lets a warp run as far as it can without the others: to the block's next barrier, or its end. One warp far ahead of
// the rest is what shows that a barrier is missing.
bool run_warp(const int* lanes) {
  const int warp = lanes[0] / kWarp * kWarp;
  bool ran = false;
  do {
    for (int i = 0; i < kWarp && runner.failure.empty(); ++i) {
      Fibre& fibre = runner.fibres[static_cast<size_t>(lanes[i])];
      if (fibre.state != State::kReady) continue;
      indices.thread = lanes[i];
      resume(fibre);
      ran = true;
    }
  } while (runner.failure.empty() && release(warp, warp + kWarp, State::kAtShuffle));
  return ran;
}

void run_block(int threads) {
  for (int t = 0; t < threads; ++t) prepare(runner.fibres[static_cast<size_t>(t)]);
  while (runner.failure.empty()) {
    bool ran = false, done = true;
    for (int i = 0; i < threads; i += kWarp) ran = run_warp(&runner.turn[static_cast<size_t>(i)]) || ran;
    for (int t = 0; t < threads; ++t) done = done && runner.fibres[static_cast<size_t>(t)].state == State::kDone;
    if (done) return;
    ran = release(0, threads, State::kAtBarrier) || ran;
    if (!ran && runner.failure.empty()) runner.failure = "some threads wait where the others never come";
  }
}

// The lanes of each warp together, warps and lanes in the wanted order.
void take_turns(int threads, std::mt19937& random) {
  for (int t = 0; t < threads; ++t) runner.turn[static_cast<size_t>(t)] = order == 1 ? threads - 1 - t : t;
  if (order < 2) return;
  const auto at = [](int i) { return runner.turn.begin() + i; };
  for (int warp = 0; warp < threads; warp += kWarp) {
    std::shuffle(at(warp), at(warp + kWarp), random);
    const int other = static_cast<int>(random() % static_cast<unsigned>(threads / kWarp)) * kWarp;
    if (other != warp) std::swap_ranges(at(warp), at(warp + kWarp), at(other));
  }
}

}  // namespace

void meet_block(int line) {
  runner.now->state = State::kAtBarrier;
  runner.now->line = line;
  yield();
}

const Words* meet(const uint32_t* mine, int n, int line) {
  Words* const words = runner.warps[static_cast<size_t>(indices.thread / kWarp)].words[runner.now->shuffles++ % 2];
  for (int i = 0; i < n; ++i) words[i][indices.thread % kWarp] = mine[i];
  runner.now->state = State::kAtShuffle;
  runner.now->line = line;
  yield();
  return words;
}

const uint32_t* meet_warp(uint32_t mine, int line) { return *meet(&mine, 1, line); }

// The definition: the lanes' words are the matrices' halves, of which a lane multiplies two rows by two columns.
void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4], int line) {
  const uint32_t mine[kWords] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const Words* const all = meet(mine, kWords, line);
  const int lane = indices.thread % kWarp;
  float rows[2][16], columns[2][16];  // rows lane / 4 and 8 below it; columns 2 (lane % 4) and the next
  const auto halves = [](uint32_t word, float* to) {
    to[0] = half_to_float(static_cast<half_t>(word));
    to[1] = half_to_float(static_cast<half_t>(word >> 16));
  };
  for (int t = 0; t < 4; ++t) {
    for (int i = 0; i < 4; ++i) halves(all[i][lane / 4 * 4 + t], &rows[i % 2][2 * t + i / 2 * 8]);
    for (int i = 0; i < 2; ++i) {
      for (int column = 0; column < 2; ++column)
        halves(all[4 + i][(2 * (lane % 4) + column) * 4 + t], &columns[column][2 * t + i * 8]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 16; ++k) c[i] += rows[i / 2][k] * columns[i % 2][k];
  }
}

void fault(const char* what) {
  runner.failure = what;
  for (;;) yield();  // run() throws; a kernel's thread is never unwound
}

void run(const char* what, Grid grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  const auto refuse = [&](const std::string& why) {
    throw InvariantError(std::string(what) + ": " + why + " (block of " + std::to_string(threads) + " threads).");
  };
  if (threads <= 0 || threads % kWarp != 0 || threads > 1024)
    refuse("a block is a multiple of 32 threads, 1,024 at most");
  if (shared_bytes > kSharedMost) refuse("more than 99 KiB of shared memory");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) refuse("no such grid");
  runner.fibres.resize(1024);
  runner.warps.resize(1024 / kWarp);
  runner.body = &body;
  runner.failure.clear();
  runner.turn.resize(static_cast<size_t>(threads));
  std::mt19937 random(order);
  // The end of what was asked for is the end of the allocation, so that ASan sees a byte too far. new[] aligns to 16.
  const std::unique_ptr<std::byte[]> shared(new std::byte[shared_bytes]);
  indices.threads = threads;
  indices.blocks_x = static_cast<int>(grid.x);
  indices.shared = shared.get();
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        indices.block[0] = static_cast<int>(x), indices.block[1] = static_cast<int>(y),
        indices.block[2] = static_cast<int>(z);
        std::memset(indices.shared, 0xff, shared_bytes);
        take_turns(threads, random);
        run_block(threads);
        if (!runner.failure.empty()) refuse(runner.failure);
      }
    }
  }
}

}  // namespace mosaic::shim::simt
