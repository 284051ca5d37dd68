// What a device's profiler is shown: a range for each frame, question, token and copy, closed once whatever becomes of it.
#include <doctest/doctest.h>

#include <mutex>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/ranges.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"

using namespace mosaic;
using mosaic::testing::PlayedStream;

namespace {

// Of this thread alone: what is open, and all that were.
thread_local std::vector<std::string> opened;
thread_local int depth = 0;
thread_local bool closed_too_often = false;
std::mutex copies_mutex;
int copies = 0;

void note_open(const char* name) noexcept {
  ++depth;
  opened.emplace_back(name);
  const std::lock_guard lock(copies_mutex);
  copies += std::string(name).starts_with("spill_") ? 1 : 0;
}
void note_close() noexcept {
  closed_too_often = closed_too_often || depth == 0;
  --depth;
}
constexpr ranges::Profiler kProfiler{note_open, note_close};

struct Profiled {
  Profiled() {
    opened.clear();
    depth = copies = 0;
    closed_too_often = false;
    ranges::profiler = &kProfiler;
  }
  ~Profiled() { ranges::profiler = nullptr; }
};

}  // namespace

TEST_CASE("a profiler is shown each frame, question and token, and each copy of a disk, and nothing stays open") {
  mosaic::testing::TemporaryDirectory directory;
  MemoryConfig config = mosaic::testing::small_config(340 << 10);
  config.model.frame_tokens = 32;
  config.disk_bytes = 8 << 20, config.spill_dir = directory.path;
  const Profiled profiled;
  PlayedStream stream(config, "mosaic");
  stream.frame(32);
  stream.open_question();
  stream.pass(12);
  stream.pass(1);
  stream.pass(1);
  stream.close_question(false);
  CHECK(opened == std::vector<std::string>{"frame", "question", "token", "token"});
  CHECK(depth == 0);
  for (int i = 0; i < 40; ++i) stream.room = i / 6 % 6, stream.frame(32);
  stream.memory->drain();
  const std::lock_guard lock(copies_mutex);
  CHECK(copies > 0);
  CHECK(depth == 0);
  CHECK_FALSE(closed_too_often);
}

TEST_CASE("a block that is refused or given up closes its range once") {
  MemoryConfig config = mosaic::testing::small_config(340 << 10);
  config.model.frame_tokens = 32;
  const Profiled profiled;
  PlayedStream stream(config, "mosaic");
  stream.frame(32);
  const std::vector<float> embedding(static_cast<size_t>(config.model.embedding_dim), 1.0f);
  const auto begin = [&] {
    stream.memory->begin_frame({.time_ms = 9000, .embedding = embedding.data(), .tokens = 32});
  };
  begin();
  CHECK(depth == 1);
  stream.memory->abort();
  CHECK(depth == 0);
  stream.memory->abort();  // there is none
  CHECK(depth == 0);
  begin();
  CHECK_THROWS_AS(stream.memory->commit(), InvalidInput);  // no layer was attended
  CHECK(depth == 0);
  CHECK_THROWS_AS(stream.memory->commit(), InvalidInput);  // and no block is open
  CHECK(depth == 0);
  CHECK_FALSE(closed_too_often);
}

TEST_CASE("a memory that goes with a block open closes its range, and one without closes none") {
  MemoryConfig config = mosaic::testing::small_config(340 << 10);
  config.model.frame_tokens = 32;
  const Profiled profiled;
  {
    PlayedStream stream(config, "mosaic");
    stream.frame(32);
    stream.begin_frame(32);
    stream.attend_layers(1);
    CHECK(depth == 1);
  }
  CHECK(depth == 0);
  {
    const PlayedStream idle(config, "mosaic");
  }
  CHECK(depth == 0);
  CHECK_FALSE(closed_too_often);
}
