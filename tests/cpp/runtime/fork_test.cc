// A fork of a process whose memory has a page on its way to the disk, while another thread is in a call: the copy thread
// and the caller are not in the child, their locks are taken there for ever.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>
#include <vector>

#include "core/error.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

MemoryConfig spilling(const std::string& spill_dir) {
  MemoryConfig c = small_config();
  c.window_frames = 2, c.branch_tokens = 24, c.retrieve_tokens = 64;
  c.packed = CodecId::kInt4;
  c.disk_bytes = 96 << 10, c.spill_dir = spill_dir;
  c.cap_bytes = least_cap(c, "mosaic") + (30 << 10);
  return c;
}

// In the child: how many calls were not refused, then the end of the memory.
int calls_taken(PlayedStream* stream) {
  KvMemory& memory = *stream->memory;
  const std::vector<float> x(1024);
  std::vector<float> out(1024);
  const std::vector<std::function<void()>> calls = {
      [&] { memory.begin_frame({1 << 20, x.data(), 1}); },
      [&] { memory.begin_text(1); },
      [&] { memory.attend(0, x.data(), x.data(), x.data(), out.data()); },
      [&] { memory.commit(); },
      [&] { memory.abort(); },
      [&] { memory.open_question(); },
      [&] { memory.close_question(false); },
      [&] { memory.drain(); },
      [&] { memory.check_invariants(); },
      [&] { (void)memory.stats(); },
  };
  int taken = 0;
  for (const auto& call : calls) {
    try {
      call();
      ++taken;
    } catch (const InvalidInput&) {
    }
  }
  stream->memory.reset();
  return taken;
}

TEST_CASE("a fork made while a page is on its way to the disk is refused and ends, and the parent's pages arrive") {
  TemporaryDirectory directory;
  const MemoryConfig config = spilling(directory.path);
  constexpr int kFrames = 60;
  ScriptedIo io, undisturbed;
  PlayedStream stream(config, "mosaic", {}, 4, &io, 2), twin(config, "mosaic", {}, 4, &undisturbed, 2);
  io.close_gate();
  std::thread caller([&] {
    for (int i = 0; i < kFrames; ++i) stream.frame(16);
  });
  const bool is_writing = io.entered();  // the copy thread stands in a write
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // one that hangs is killed
    _exit(calls_taken(&stream));
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  io.open_gate();
  caller.join();
  CHECK(is_writing);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);

  for (int i = 0; i < kFrames; ++i) twin.frame(16);
  for (int i = 0; i < 5; ++i)
    for (PlayedStream* one : {&stream, &twin}) {
      one->ask(3, 2, i % 2 == 0);
      one->frame(16);
    }
  CHECK(stream.out == twin.out);
  for (const PlayedStream* one : {&stream, &twin}) {
    one->memory->drain();
    one->memory->check_invariants();
  }
  const MemoryStats a = stream.memory->stats(), b = twin.memory->stats();
  CHECK(a.disk.bytes_written == b.disk.bytes_written);
  CHECK(a.disk.bytes_written > 0);
  CHECK(a.tokens.spilled == b.tokens.spilled);
  CHECK(a.counters.lost_pages + static_cast<int64_t>(a.disk.bad_checksums + a.disk.io_errors) == 0);
}

}  // namespace
