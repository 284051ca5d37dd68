// FaultyIo: exactly every nth page fails, whatever calls it comes in; and the pause a failing disk gets.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "memory/faulty_io.h"
#include "support/allocation_counter.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/store_world.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

// Pages written and read `chunk` at a time, page i with seed i.
struct FaultyDisk {
  static constexpr int kSlots = 64;
  size_t bytes;
  FaultyIo io;
  TemporaryDirectory directory;
  std::vector<uint64_t> memory = std::vector<uint64_t>(SpillFile::bytes_for(kSlots) / 8 + 1);
  SpillFile file;
  std::vector<std::byte> page;

  FaultyDisk(int every, size_t slot_bytes)
      : bytes(slot_bytes),
        io(every, SpillFile::stride_of(slot_bytes)),
        file(directory.path, slot_bytes, kSlots, memory.data(), &io),
        page(slot_bytes * kSlots) {}

  // '.' ok, 'e' io error, 'c' bad checksum, of slots 0 to n - 1.
  std::string move(bool reading, int n, int chunk) {
    std::vector<SlotId> slots;
    std::vector<std::byte*> at;
    for (int i = 0; i < n; ++i) {
      slots.push_back(i);
      at.push_back(page.data() + static_cast<size_t>(i) * bytes);
      if (!reading) fill(at.back(), bytes, static_cast<uint64_t>(i));
    }
    const std::vector<const std::byte*> from(at.begin(), at.end());
    std::vector<Status> status(slots.size());
    for (int first = 0; first < n; first += chunk) {
      const auto f = static_cast<size_t>(first);
      const int length = std::min(chunk, n - first);
      reading ? file.read_run(length, &slots[f], &at[f], &status[f])
              : file.write_run(length, &slots[f], &from[f], &status[f]);
    }
    std::string text;
    for (size_t i = 0; i < slots.size(); ++i) {
      text += status[i] == Status::ok ? '.' : status[i] == Status::io_error ? 'e' : 'c';
      if (reading && status[i] == Status::ok) CHECK(holds(at[i], bytes, i));
    }
    return text;
  }
};

TEST_CASE("exactly every nth page fails, in whatever calls the pages come") {
  for (const size_t bytes : {size_t{1}, size_t{300}, size_t{512}, size_t{1000}})
    for (const int chunk : {1, 3, 7, 32, 64}) {
      CAPTURE(bytes);
      CAPTURE(chunk);
      FaultyDisk disk(5, bytes);
      SlotId slots[13];
      CHECK(disk.file.acquire_run(13, slots) == 13);  // one acquisition, whatever its length
      CHECK(disk.move(false, 13, chunk) == "....e....e...");
      // The failed pages hold nothing: the disk is not asked for them, so they are not counted as read.
      CHECK(disk.move(true, 13, chunk) == "....ce...c.c.");
      CHECK(disk.io.faults().writes == 2);
      CHECK(disk.io.faults().reads == 1);
      CHECK(disk.io.faults().flipped == 1);
      CHECK(disk.file.counters().io_errors == 3);
      CHECK(disk.file.counters().bad_checksums == 3);
    }
}

TEST_CASE("with every page failing nothing is written and nothing is ever read wrong; far apart, all is well") {
  FaultyDisk all(1, 700);
  CHECK(all.file.try_acquire() == kNone);
  CHECK(all.move(false, 9, 4) == "eeeeeeeee");
  CHECK(all.move(true, 9, 4) == "ccccccccc");
  FaultyDisk none(1 << 30, 700);
  SlotId slots[64];
  CHECK(none.file.acquire_run(64, slots) == 64);
  for (int round = 0; round < 3; ++round) {
    CHECK(none.move(false, 64, 9) == std::string(64, '.'));
    CHECK(none.move(true, 64, 9) == std::string(64, '.'));
  }
  const FaultCounts faults = none.io.faults();
  CHECK(faults.reads + faults.flipped + faults.writes + faults.acquisitions == 0);
}

TEST_CASE("every nth acquisition is refused, counted, and leaves the file as it was") {
  FaultyDisk disk(4, 100);
  std::string given;
  for (int i = 0; i < 12; ++i) given += disk.file.try_acquire() == kNone ? 'x' : '.';
  CHECK(given == "...x...x...x");
  CHECK(disk.file.used_slots() == 9);
  CHECK(disk.file.counters().no_space == 3);
  CHECK(disk.io.faults().acquisitions == 3);
  disk.file.check_invariants();
}

TEST_CASE("faults make no allocation, and an interval or page that makes no sense is refused") {
  FaultyDisk disk(3, 900);
  std::byte buffer[900] = {};
  const AllocationScope scope;
  for (int i = 0; i < 60; ++i) {
    const SlotId slot = disk.file.try_acquire();
    if (slot == kNone) continue;
    disk.file.write(slot, buffer);
    disk.file.read(slot, buffer);
  }
  CHECK(scope.count() == 0);
  CHECK(disk.io.faults().reads > 0);
  for (const int every : {0, -1})
    CHECK_THROWS_WITH_AS(FaultyIo(every, 512), doctest::Contains("faults="), InvalidInput);
  CHECK_THROWS_AS(FaultyIo(2, 0), InvalidInput);
}

// A disk that refuses everything while `broken`, as if it were full.
struct BrokenIo : SpillIo {
  bool broken = true;
  int error = ENOSPC;
  int writes = 0;
  ssize_t pwritev(int fd, const iovec* parts, int n, off_t at) override {
    ++writes;
    if (!broken) return SpillIo::pwritev(fd, parts, n, at);
    errno = error;
    return -1;
  }
};

const std::vector<TierSpec> kDiskTiers = {{Medium::device, CodecId::kFp16, 64}, {Medium::disk, CodecId::kFp16, 64}};

// What a runtime does after a frame, `n` times; the disk is asked for a page whenever it may be.
int frames_until_asked(StoreWorld& world, ClusterId c, int most) {
  for (int frame = 0; frame < most; ++frame) {
    if (world.store->can_spill()) return frame;
    CHECK_FALSE(world.store->demote(0, c, 0));
    world.store->poll_spills(false);
    world.store->check_invariants();
  }
  return most;
}

TEST_CASE("a full disk is left alone for longer and longer, never for good, and a good write ends that") {
  BrokenIo io;
  StoreWorld world(kDiskTiers, 16, 40, 1, 4, &io);
  const ClusterId c = world.open_with(0, 1, 12);
  int expected = 4;
  for (int pause = 1; pause <= 9; ++pause) {
    REQUIRE(world.store->can_spill());
    CHECK(world.store->demote(0, c, 0));  // queued
    world.store->drain();
    CHECK_FALSE(world.store->can_spill());
    CHECK(world.store->counters().spill_pauses == pause);
    CHECK(frames_until_asked(world, c, 5000) == expected);
    expected = std::min(2 * expected, 1024);
  }
  CHECK(io.writes == 9);
  CHECK(world.store->counters().failed_spills == 9);
  CHECK(world.store->counters().paused_frames == 4 + 8 + 16 + 32 + 64 + 128 + 256 + 512 + 1024);
  CHECK(world.store->account().spilled == 0);

  io.broken = false;
  CHECK(world.store->demote(0, c, 0));
  world.store->drain();
  CHECK(world.store->account().spilled == 12);
  CHECK(world.store->can_spill());
  CHECK(world.members(0, c).size() == 12);

  io.broken = true;  // it starts again at the shortest pause
  const ClusterId d = world.open_with(0, 2, 12);
  CHECK(world.store->demote(0, d, 0));
  world.store->drain();
  CHECK(frames_until_asked(world, d, 5000) == 4);
  world.store->check_invariants();
}

TEST_CASE("a disk that errs is paused after eight failures in a row, and after one when a pause did not help") {
  BrokenIo io;
  io.error = EIO;
  StoreWorld world(kDiskTiers, 16, 40, 1, 4, &io);
  const ClusterId c = world.open_with(0, 1, 12);
  for (int failure = 1; failure <= 8; ++failure) {
    CHECK(world.store->can_spill());
    CHECK(world.store->demote(0, c, 0));
    world.store->drain();
    CHECK(world.store->counters().spill_pauses == (failure == 8 ? 1 : 0));
  }
  CHECK(frames_until_asked(world, c, 5000) == 4);
  CHECK(world.store->demote(0, c, 0));
  world.store->drain();
  CHECK(world.store->counters().spill_pauses == 2);
  CHECK(frames_until_asked(world, c, 5000) == 8);
}

TEST_CASE("failures of writes queued before a pause do not lengthen it") {
  BrokenIo io;
  StoreWorld world(kDiskTiers, 16, 40, 1, 4, &io);
  std::vector<ClusterId> clusters;
  for (int i = 0; i < 6; ++i) {
    clusters.push_back(world.open_with(0, i, 12));
    CHECK(world.store->demote(0, clusters.back(), 0));
  }
  world.store->drain();
  CHECK(world.store->counters().failed_spills == 6);
  CHECK(world.store->counters().spill_pauses == 1);
  CHECK(frames_until_asked(world, clusters[0], 5000) == 4);
}

// Whose reads fail once `broken` is set.
struct UnreadableIo : SpillIo {
  bool broken = false;
  int reads = 0;
  ssize_t preadv(int fd, const iovec* parts, int n, off_t at) override {
    ++reads;
    if (!broken) return SpillIo::preadv(fd, parts, n, at);
    errno = EIO;
    return -1;
  }
};

TEST_CASE(
    "a disk that cannot be read is left alone after eight pages, then loses one between longer and longer rests") {
  UnreadableIo io;
  StoreWorld world(kDiskTiers, 40, 40, 1, 40, &io);
  std::vector<ClusterId> clusters;
  for (int i = 0; i < 30; ++i) {
    clusters.push_back(world.open_with(0, i, 12));
    REQUIRE(world.store->demote(0, clusters.back(), 0));
  }
  world.store->drain();
  REQUIRE(world.store->account().spilled == 30 * 12);
  const auto read = [&](size_t i) {
    CodecId codec{};
    const PageId page = world.store->index(0)[clusters[i]].head;
    const bool there = world.store->resident(page, &codec).data != nullptr;
    world.store->unpin_all();
    world.store->check_invariants();
    return there;
  };
  CHECK(read(0));
  io.broken = true;
  for (size_t i = 1; i <= 8; ++i) {
    CHECK(world.store->counters().read_pauses == 0);
    CHECK_FALSE(read(i));
  }
  CHECK(world.store->counters().read_pauses == 1);
  CHECK(world.store->counters().lost_pages == 8);
  size_t next = 9;
  for (int rest = 4; rest <= 64; rest *= 2, ++next) {
    for (int frame = 0; frame < rest; ++frame) {
      CHECK_FALSE(world.store->can_spill());  // what cannot be read is not written to either
      CHECK_FALSE(read(next));
      world.store->poll_spills(false);
    }
    CHECK(world.store->counters().lost_pages == static_cast<int64_t>(next) - 1);  // a rest loses nothing
    CHECK(world.store->can_spill());
    CHECK_FALSE(read(next));
  }
  CHECK(io.reads == 1 + 8 + 5);
  CHECK(world.store->counters().read_pauses == 6);
  CHECK(world.store->counters().paused_frames == 4 + 8 + 16 + 32 + 64);
  CHECK(read(0));  // a copy that was made before is read from DRAM
  io.broken = false;
  for (int frame = 0; frame < 128; ++frame) world.store->poll_spills(false);
  CHECK(read(next));
  CHECK(read(next + 1));
  io.broken = true;  // eight again
  for (size_t i = next + 2; i < next + 9; ++i) CHECK_FALSE(read(i));
  CHECK(world.store->can_spill());
}

TEST_CASE("a refused slot is a failed spill: the page stays, the disk rests, and is used again") {
  FaultyIo io(3, SpillFile::stride_of(page_bytes(CodecId::kFp16, {2, 8})));
  StoreWorld world(kDiskTiers, 16, 40, 1, 4, &io);
  std::vector<ClusterId> clusters;
  for (int i = 0; i < 3; ++i) clusters.push_back(world.open_with(0, i, 12));
  CHECK(world.store->demote(0, clusters[0], 0));
  CHECK(world.store->demote(0, clusters[1], 0));
  CHECK_FALSE(world.store->demote(0, clusters[2], 0));
  CHECK(world.store->counters().failed_spills == 1);
  CHECK(world.store->counters().spill_pauses == 1);
  world.store->drain();
  world.store->check_invariants();
  CHECK(world.store->account().spilled == 24);
  CHECK(frames_until_asked(world, clusters[2], 100) == 4);
  CHECK(world.store->demote(0, clusters[2], 0));
}

constexpr int kFrames = 200;

MemoryStats stream_with_faults(int every, std::vector<float>* said) {
  TemporaryDirectory directory;
  MemoryConfig config = small_config(360 << 10);
  config.packed = CodecId::kInt4;
  config.window_frames = 2;
  config.branch_tokens = 16;
  config.retrieve_tokens = 128;
  config.clusters = 24;
  config.scenes = 3;
  config.disk_bytes = 300 << 10;
  config.spill_dir = directory.path;
  FaultyIo io(every, SpillFile::stride_of(page_bytes(config.packed.value_or(CodecId::kInt4), {2, 16})));
  PlayedStream stream(config, "mosaic", {{"radius", 0.2}}, 6, &io);
  stream.noise = 0.1f;
  for (int i = 0; i < kFrames; ++i) {
    stream.room = (i / 10) % 3;
    stream.frame(16);
    stream.memory->check_invariants();
    if (i % 7 != 6) continue;
    stream.ask(3, 2, false);
    CHECK(stream.finite());
    stream.memory->check_invariants();
    said->insert(said->end(), stream.out.begin(), stream.out.end());
  }
  stream.memory->drain();
  stream.memory->check_invariants();
  return stream.memory->stats();
}

TEST_CASE("a stream with faults goes on, counts what is lost, never stops using the disk, and repeats bit by bit") {
  for (const int every : {3, 23}) {
    CAPTURE(every);
    std::vector<float> first, second;
    const MemoryStats s = stream_with_faults(every, &first), again = stream_with_faults(every, &second);
    CHECK(first == second);
    CHECK(s.counters.lost_pages == again.counters.lost_pages);
    CHECK(s.tokens.seen == kFrames * 16 * 3);
    CHECK(s.tokens.dropped == 0);
    CHECK(s.tokens.spilled > 0);
    CHECK(s.counters.failed_spills > 0);
    CHECK(s.counters.lost_pages > 0);
    CHECK(s.counters.spill_pauses > 1);
    CHECK(s.counters.paused_frames < kFrames);
    CHECK(s.disk.bad_checksums > 0);
  }
}

TEST_CASE("with every access failing a stream still answers, from summaries") {
  std::vector<float> said;
  const MemoryStats s = stream_with_faults(1, &said);
  CHECK(s.tokens.spilled == 0);
  CHECK(s.tokens.collapsed > 0);
  CHECK(s.counters.spill_pauses > 2);
  CHECK(s.disk.bytes_written == 0);
}

}  // namespace
