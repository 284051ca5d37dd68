// Under pressure: what yields first, what never does, and what a failing disk costs.
#include <doctest/doctest.h>

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"

namespace {

using namespace mosaic;
using mosaic::testing::is_played;
using mosaic::testing::least_cap;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;
using mosaic::testing::TemporaryDirectory;

MemoryConfig pressed(const std::string& spill_dir) {
  MemoryConfig c = small_config(330 << 10);
  c.packed = CodecId::kInt4;
  c.window_codec = CodecId::kFp16;
  c.window_frames = 2;
  c.branch_tokens = 16;
  c.retrieve_tokens = 128;
  c.clusters = 24;
  c.scenes = 3;
  if (!spill_dir.empty()) {
    c.disk_bytes = 300 << 10;
    c.spill_dir = spill_dir;
  }
  return c;
}

TEST_CASE("a growing stream yields in a fixed order: denser codec, then disk, then summaries; never tokens") {
  for (const bool disk : {true, false}) {
    if (!is_played(disk ? 0 : 1, 2)) continue;
    TemporaryDirectory directory;
    PlayedStream stream(pressed(disk ? directory.path : ""), "mosaic", {{"radius", 0.2}}, 2);
    stream.noise = 0.1f;
    int quantised = -1, spilled = -1, collapsed = -1;
    for (int i = 0; i < 900; ++i) {
      stream.room = (i / 10) % 3;
      stream.frame(16);
      const TokenAccount now = stream.memory->stats().tokens;
      if (quantised < 0 && now.quantised > 0) quantised = i;
      if (spilled < 0 && now.spilled > 0) spilled = i;
      if (collapsed < 0 && now.collapsed > 0) collapsed = i;
      if (i % 50 == 0) stream.memory->check_invariants();
      CHECK(now.dropped == 0);
    }
    stream.memory->drain();
    stream.memory->check_invariants();
    INFO("disk " << disk << ": quantised at " << quantised << ", spilled at " << spilled << ", collapsed at "
                 << collapsed);
    CHECK(quantised > 0);
    if (disk) CHECK(spilled > quantised);
    CHECK(collapsed > (disk ? spilled : quantised));
    const TokenAccount end = stream.memory->stats().tokens;
    CHECK(end.seen == 900 * 16 * 3);
    CHECK(end.total() == end.seen);
    if (disk) CHECK(stream.memory->stats().tier[2].used_bytes > stream.memory->stats().tier[2].capacity_bytes / 2);
    // The window is still exact: asked for nothing older, the answer is full attention over it.
    CHECK(stream.ask(3, 1, false, true, stream.now_ms - 2 * 500) < 2e-5);
  }
}

TEST_CASE("a disk takes no cluster from the index, from little more than the least cap on, however large its quota") {
  TemporaryDirectory directory;
  MemoryConfig without = small_config();
  const auto policy = make_policy("mosaic", {});
  const Backend backend = make_backend("cpu", 1);
  const uint64_t least = least_cap(without, "mosaic");
  for (const uint64_t more : {100u << 10, 300u << 10, 1u << 20, 16u << 20}) {
    without.cap_bytes = least + more;
    MemoryConfig with = without;
    with.spill_dir = directory.path;
    const Plan alone = make_plan(without, *policy, backend);
    for (const uint64_t disk : {1u << 20, 1u << 30}) {
      with.disk_bytes = disk;
      const Plan plan = make_plan(with, *policy, backend);
      INFO("cap " << with.cap_bytes << ", disk " << disk);
      CHECK(plan.total_bytes <= with.cap_bytes);
      CHECK(plan.store.index.capacity >= alone.store.index.capacity * 19 / 20);
      CHECK(plan.store.tiers.size() == alone.store.tiers.size() + 1);
      CHECK(plan.store.tiers.back().slots > 0);
      CHECK(plan.store.fetch_slots > 0);
    }
    with.index_share = 0.2;  // named: it is what is taken
    CHECK(make_plan(with, *policy, backend).store.index.capacity < alone.store.index.capacity);
  }
}

TEST_CASE("no plan takes a byte more than its cap, whatever the policy, the disk and what was named") {
  TemporaryDirectory directory;
  const Backend backend = make_backend("cpu", 1);
  int plans = 0;
  for (const std::string& name : policy_names()) {
    const auto policy = make_policy(name, {});
    for (const uint64_t disk : {uint64_t{0}, uint64_t{8} << 20}) {
      for (const int retrieve : {0, 200}) {
        MemoryConfig config = small_config();
        config.disk_bytes = disk, config.spill_dir = directory.path, config.retrieve_tokens = retrieve;
        const uint64_t least = least_cap(config, name);
        for (uint64_t more = 0; more < 900 << 10; more += 11 << 10) {
          config.cap_bytes = least + more;
          INFO(name << ", cap " << config.cap_bytes << ", disk " << disk << ", retrieve " << retrieve);
          CHECK(make_plan(config, *policy, backend).total_bytes <= config.cap_bytes);
          ++plans;
        }
      }
    }
  }
  CHECK(plans > 2000);
}

TEST_CASE("mosaic drops nothing under any cap, and the first frame stays exact for ever") {
  MemoryConfig config = pressed("");
  config.model.rope.layout = RopeLayout::kNone;
  for (const int clusters : {2, 3, 7}) {
    config.clusters = clusters;
    config.cap_bytes = 128 << 10;
    PlayedStream stream(config, "mosaic");
    for (int i = 0; i < 300; ++i) {
      stream.noise = 0.5f;
      stream.room = i % 6;
      stream.frame(1 + stream.below(16));
    }
    stream.memory->check_invariants();
    CHECK(stream.memory->stats().tokens.dropped == 0);
    // A query that looks for one token of the first frame finds its value.
    const PlayedStream::Token& first = stream.video.front();
    stream.memory->open_question();
    stream.imagine(1);
    for (size_t l = 0; l < 3; ++l)
      for (size_t h = 0; h < 4; ++h)
        for (size_t i = 0; i < 16; ++i) stream.q[(l * 4 + h) * 16 + i] = 400 * first.k[l * 32 + (h / 2) * 16 + i];
    // The block's own key must not match.
    for (float& x : stream.k) x = 0;
    stream.memory->begin_text(1);
    stream.attend_layers(3);
    stream.memory->commit();
    stream.memory->close_question(false);
    // Prototypes repeat: what answers is the token whose key can_access farthest along the query. Only where that is the
    // first frame's own token must the value be its own.
    for (size_t l = 0; l < 3; ++l)
      for (size_t h = 0; h < 4; ++h) {
        double own = 0, best = -1e30;
        for (const auto& t : stream.video) {
          double dot = 0;
          for (size_t i = 0; i < 16; ++i)
            dot += static_cast<double>(t.k[l * 32 + (h / 2) * 16 + i]) * first.k[l * 32 + (h / 2) * 16 + i];
          if (&t == &first)
            own = dot;
          else
            best = std::max(best, dot);
        }
        if (own < best + 0.1) continue;
        for (size_t i = 0; i < 16; ++i)
          CHECK(stream.out[(l * 4 + h) * 16 + i] == doctest::Approx(first.v[l * 32 + (h / 2) * 16 + i]).epsilon(0.01));
      }
  }
}

// A disk that fails now and then, on a schedule. Called on the copy thread only.
struct UnreliableIo : SpillIo {
  int fail_write_every = 0, fail_read_every = 0, flip_every = 0;
  off_t disk_bytes = INT64_MAX;
  int write_errno = EIO;
  std::atomic<int> reads{0}, writes{0};
  int fd = -1;
  int open_unnamed(const char* directory) override { return fd = SpillIo::open_unnamed(directory); }
  ssize_t preadv(int file, const iovec* parts, int n, off_t at) override {
    const int call = ++reads;
    if (fail_read_every > 0 && call % fail_read_every == 0) {
      errno = EIO;
      return -1;
    }
    const ssize_t moved = SpillIo::preadv(file, parts, n, at);
    if (flip_every > 0 && call % flip_every == 0 && moved > 0)
      static_cast<unsigned char*>(parts[0].iov_base)[call % 200] ^= 1;
    return moved;
  }
  ssize_t pwritev(int file, const iovec* parts, int n, off_t at) override {
    const int call = ++writes;
    if (fail_write_every > 0 && call % fail_write_every == 0) {
      errno = write_errno;
      return -1;
    }
    if (at >= disk_bytes) {
      errno = ENOSPC;
      return -1;
    }
    return SpillIo::pwritev(file, parts, n, at);
  }
};

MemoryStats play_with(UnreliableIo* io, int frames) {
  TemporaryDirectory directory;
  MemoryStats stats;
  {
    PlayedStream stream(pressed(directory.path), "mosaic", {{"radius", 0.2}}, 6, io);
    stream.noise = 0.1f;
    for (int i = 0; i < frames; ++i) {
      stream.room = (i / 10) % 3;
      stream.frame(16);
      CHECK(stream.finite());
      stream.memory->check_invariants();
      if (i % 7 != 6) continue;
      stream.open_question(i % 2 == 0 ? INT32_MIN : stream.now_ms / 2);
      for (const int tokens : {3, 1, 1}) {
        stream.pass(tokens);
        CHECK(stream.finite());
        stream.memory->check_invariants();
      }
      stream.close_question(i % 3 == 0);
      stream.memory->check_invariants();
    }
    stream.memory->drain();
    stream.memory->check_invariants();
    stats = stream.memory->stats();
    CHECK(stats.tokens.seen == frames * 16 * 3);
    CHECK(stats.tokens.dropped == 0);  // what is lost on disk is still in a mean
    CHECK(stats.taken_bytes <= stats.cap_bytes);
  }
  CHECK(io->fd >= 0);
  CHECK(fcntl(io->fd, F_GETFD) == -1);  // closed
  return stats;
}

TEST_CASE("a reliable disk loses nothing") {
  UnreliableIo io;
  const MemoryStats s = play_with(&io, 300);
  CHECK(s.counters.lost_pages == 0);
  CHECK(s.counters.failed_spills == 0);
  CHECK(s.counters.fetched_pages > 20);
  CHECK(s.tokens.spilled > 1000);
}

TEST_CASE("every nth write fails: the page stays where it was, and the stream goes on") {
  for (const int n : {2, 3, 10}) {
    UnreliableIo io;
    io.fail_write_every = n;
    const MemoryStats s = play_with(&io, 250);
    INFO("every " << n);
    CHECK(s.counters.failed_spills > 0);
    CHECK(s.disk.io_errors > 0);
    CHECK(s.counters.lost_pages == 0);
    CHECK(s.tokens.spilled > 0);
  }
}

TEST_CASE("a disk that takes no write at all is left alone after a few, and summaries take over") {
  UnreliableIo io;
  io.fail_write_every = 1;
  const MemoryStats s = play_with(&io, 250);
  CHECK(s.tokens.spilled == 0);
  CHECK(s.tokens.collapsed > 0);
  CHECK(io.writes < 200);
}

TEST_CASE("a disk that fills up is left alone for a while, and what is on it stays readable") {
  UnreliableIo io;
  io.disk_bytes = 60 << 10;
  const MemoryStats s = play_with(&io, 300);
  CHECK(s.counters.failed_spills > 0);
  CHECK(s.disk.no_space > 0);
  CHECK(s.counters.lost_pages == 0);
  CHECK(s.tokens.collapsed > 0);
  CHECK(s.counters.fetched_pages > 0);
}

TEST_CASE("every nth read fails or comes back with a flipped bit: a miss, counted, answered by the mean") {
  int variant = 0;
  for (const int n : {1, 2, 5, 17}) {
    for (const bool flip : {false, true}) {
      if (!is_played(variant++, 3)) continue;
      UnreliableIo io;
      (flip ? io.flip_every : io.fail_read_every) = n;
      const MemoryStats s = play_with(&io, 250);
      INFO("every " << n << ", flip " << flip);
      CHECK(s.counters.lost_pages > 0);
      CHECK((flip ? s.disk.bad_checksums : s.disk.io_errors) > 0);
      CHECK(static_cast<uint64_t>(s.counters.lost_pages) <= s.disk.bad_checksums + s.disk.io_errors);
      CHECK(s.tokens.collapsed > 0);
    }
  }
}

}  // namespace
