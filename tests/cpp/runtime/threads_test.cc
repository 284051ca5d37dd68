// The core's threads at work together: callers that share a memory under a lock as a session does, another memory beside
// it, the kernels' workers, the copies of a disk that fails now and then, and a trace of it all. What it checks under TSan
// is that nothing races; everywhere, that the memory is whole afterwards.
#include <doctest/doctest.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/trace.h"
#include "memory/faulty_io.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

// Frames by one thread, questions by another, stats by a third, until the frames are over.
void play_by_three(PlayedStream& stream, int frames) {
  std::mutex session;
  std::atomic<bool> going{true};
  std::atomic<int> wrong{0};
  std::thread appends([&] {
    for (int i = 0; i < frames; ++i) {
      const std::lock_guard lock(session);
      stream.frame(16);
    }
    going = false;
  });
  std::thread asks([&] {
    for (int turn = 0; going; ++turn) {
      const std::lock_guard lock(session);
      stream.ask(3, 1, turn % 2 == 0);
      wrong += stream.finite() ? 0 : 1;
    }
  });
  std::thread looks([&] {
    while (going) {
      const std::lock_guard lock(session);
      const MemoryStats stats = stream.memory->stats();
      wrong += stats.tokens.total() == stats.tokens.seen && stats.taken_bytes <= stats.cap_bytes ? 0 : 1;
    }
  });
  for (std::thread* thread : {&appends, &asks, &looks}) thread->join();
  CHECK(wrong == 0);
  stream.memory->drain();
  stream.memory->check_invariants();
}

TEST_CASE(
    "two memories in one process, each shared by three threads, stay whole while their disks fail and a trace runs") {
  TemporaryDirectory directory;
  const int frames = emulated_rounds(120);
  trace::start();
  std::vector<std::thread> robots;
  for (const std::string policy : {"mosaic", "rekv"})
    robots.emplace_back([&directory, policy, frames] {
      MemoryConfig config = small_config();
      config.disk_bytes = 1 << 20;
      config.spill_dir = directory.path;
      config.retrieve_tokens = 64;
      const int workers = 3;
      const Backend backend = make_backend("cpu", workers);
      const auto chooses = make_policy(policy, {});
      for (config.cap_bytes = least_cap(config, policy);; config.cap_bytes += 16 << 10) {  // little more than it needs
        try {
          make_plan(config, *chooses, backend);
          break;
        } catch (const MemoryCapError&) {
        }
      }
      config.cap_bytes += 64 << 10;
      FaultyIo io(29, SpillFile::stride_of(page_bytes(config.packed.value_or(CodecId::kInt4),
                                                      {config.model.kv_heads, config.model.head_dim})));
      PlayedStream stream(config, policy, {}, 3, &io, workers);
      play_by_three(stream, frames);
      CHECK(stream.memory->stats().frames == frames);
      CHECK(stream.memory->stats().disk.bytes_written > 0);
    });
  for (std::thread& robot : robots) robot.join();
  CHECK(!trace::stop().empty());
}

TEST_CASE("threads that share a memory without a lock are refused one by one, read whole counts, and leave it whole") {
  PlayedStream stream(small_config(), "edge", {}, 3, nullptr, 2);
  for (int i = 0; i < 5; ++i) stream.frame(16);
  KvMemory& memory = *stream.memory;
  std::atomic<int> refused{0}, wrong{0};
  const int rounds = emulated_rounds(300);
  const auto call = [&](int turn) {
    switch (turn % 6) {
      case 0:
        return memory.open_question();
      case 1:
        return memory.begin_text(1);
      case 2:
        return memory.abort();
      case 3:
        return memory.close_question(turn % 4 == 0);
      case 4:
        return memory.drain();
      default:
        return memory.check_invariants();
    }
  };
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < rounds; ++i) {
        try {
          call(i + caller);
        } catch (const InvalidInput&) {
          ++refused;
        }
        const MemoryStats stats = memory.stats();
        wrong += stats.tokens.total() == stats.tokens.seen && stats.frames == 5 ? 0 : 1;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(refused > 0);
  CHECK(wrong == 0);
  memory.abort();
  if (memory.asking()) memory.close_question(false);
  memory.check_invariants();
  stream.frame(16);
  CHECK(stream.finite());
}

}  // namespace
