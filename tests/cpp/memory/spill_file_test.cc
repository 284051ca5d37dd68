// SpillFile: what is read is what was written, or the status says that it is not.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "memory/spill_file.h"
#include "support/allocation_counter.h"
#include "support/memory_fakes.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

// A spill file with all its memory, and a page buffer per slot.
struct Disk {
  Disk(size_t slot_bytes, int slots, ScriptedIo* io = nullptr)
      : memory((SpillFile::bytes_for(slots) + 7) / 8 + 1, 0xabababababababab),
        file(directory.path, slot_bytes, slots, memory.data(), io),
        bytes(slot_bytes),
        pages(slot_bytes * static_cast<size_t>(slots)) {}
  std::byte* page(int i) { return pages.data() + static_cast<size_t>(i) * bytes; }
  // Slots 0..n-1, page i with seed 100 + i.
  void acquire_and_fill(int n) {
    slots.resize(static_cast<size_t>(n));
    REQUIRE(file.acquire_run(n, slots.data()) == n);
    to.clear();
    for (int i = 0; i < n; ++i) {
      fill(page(i), bytes, 100 + static_cast<uint64_t>(i));
      to.push_back(page(i));
    }
    from.assign(to.begin(), to.end());
    status.assign(static_cast<size_t>(n), Status::io_error);
  }
  int write_all() { return file.write_run(static_cast<int>(slots.size()), slots.data(), from.data(), status.data()); }
  int read_all() {
    std::fill(pages.begin(), pages.end(), std::byte{0xee});
    return file.read_run(static_cast<int>(slots.size()), slots.data(), to.data(), status.data());
  }
  bool holds_page(int i) { return holds(page(i), bytes, 100 + static_cast<uint64_t>(i)); }

  TemporaryDirectory directory;
  std::vector<uint64_t> memory;
  SpillFile file;
  size_t bytes;
  std::vector<std::byte> pages;
  std::vector<SlotId> slots;
  std::vector<std::byte*> to;
  std::vector<const std::byte*> from;
  std::vector<Status> status;
};

TEST_CASE("the spill file has no name, mode 0600, is closed on exec, and goes when its owner goes") {
  for (const bool refused : {false, true}) {
    ScriptedIo io;
    io.unnamed_refused = refused;
    int fd = -1;
    {
      Disk disk(100, 4, &io);
      disk.acquire_and_fill(4);
      CHECK(disk.write_all() == 4);
      fd = io.fd;
      struct stat info = {};
      REQUIRE(fstat(fd, &info) == 0);
      CHECK(info.st_nlink == 0);
      CHECK((info.st_mode & 07777) == 0600);
      CHECK(S_ISREG(info.st_mode));
      CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
      CHECK(std::filesystem::is_empty(disk.directory.path));
      const std::string link = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).string();
      CHECK(link.starts_with(disk.directory.path));
      CHECK(link.find("(deleted)") != std::string::npos);
      CHECK(disk.read_all() == 4);
    }
    CHECK(fcntl(fd, F_GETFD) == -1);
  }
}

TEST_CASE("a directory that is missing, is a file or cannot be written is an error that names the knob") {
  uint64_t memory[16];
  TemporaryDirectory directory;
  const std::string file = directory.path + "/file";
  close(open(file.c_str(), O_CREAT | O_WRONLY, 0600));
  for (const std::string& path : {directory.path + "/missing", file, std::string()}) {
    CAPTURE(path);
    std::string message;
    try {
      SpillFile(path, 4096, 8, memory);
    } catch (const SpillError& error) {
      message = error.what();
    }
    CHECK(message.find("spill file needs 32.0 KiB in '" + path + "'") != std::string::npos);
    CHECK(message.find("spill_dir=") != std::string::npos);
  }
  unlink(file.c_str());
  if (geteuid() != 0) {  // root writes everywhere
    chmod(directory.path.c_str(), 0500);
    CHECK_THROWS_AS(SpillFile(directory.path, 4096, 8, memory), SpillError);
    chmod(directory.path.c_str(), 0700);
  }
  CHECK_THROWS_AS(SpillFile(directory.path + std::string("\0x", 2), 4096, 8, memory), InvalidInput);
  CHECK_THROWS_AS(SpillFile(directory.path, 0, 8, memory), InvalidInput);
  CHECK_THROWS_AS(SpillFile(directory.path, 4096, 0, memory), InvalidInput);
}

TEST_CASE("pages come back as they were written, for odd sizes, in one call per 32 adjacent slots") {
  for (const size_t bytes : {size_t{1}, size_t{511}, size_t{512}, size_t{513}, size_t{4096}, size_t{5000}}) {
    for (const int slots : {1, 5, 31, 32, 33, 64, 65, 130}) {
      CAPTURE(bytes);
      CAPTURE(slots);
      ScriptedIo io;
      Disk disk(bytes, slots, &io);
      disk.acquire_and_fill(slots);
      CHECK(disk.file.free_slots() == 0);
      REQUIRE(disk.write_all() == slots);
      REQUIRE(disk.read_all() == slots);
      for (int i = 0; i < slots; ++i) CHECK(disk.holds_page(i));
      CHECK(io.writes == (slots + 31) / 32);
      CHECK(io.reads == (slots + 31) / 32);
      const SpillCounters counters = disk.file.counters();
      CHECK(counters.bytes_written == disk.file.capacity_bytes());
      CHECK(counters.bytes_read == disk.file.capacity_bytes());
      CHECK(counters.write_calls == static_cast<uint64_t>(io.writes));
      CHECK(counters.bad_checksums + counters.io_errors + counters.no_space == 0);
      CHECK(disk.file.capacity_bytes() % SpillFile::kSector == 0);
    }
  }
}

TEST_CASE("slots in any order are read right, and only neighbours share a call") {
  ScriptedIo io;
  Disk disk(700, 20, &io);
  disk.acquire_and_fill(20);
  disk.write_all();
  disk.slots = {3, 4, 5, 9, 8, 7, 0, 1, 19, 10, 11};
  disk.to.resize(disk.slots.size());
  disk.status.resize(disk.slots.size());
  io.reads = 0;
  CHECK(disk.read_all() == 11);
  CHECK(io.reads == 7);  // 345 9 8 7 01 19 10-11
  for (size_t i = 0; i < disk.slots.size(); ++i) {
    CHECK(holds(disk.page(static_cast<int>(i)), 700, 100 + static_cast<uint64_t>(disk.slots[i])));
  }
}

TEST_CASE("single reads and writes, rewriting a slot, and the file's memory is exactly bytes_for") {
  Disk disk(300, 65);
  const size_t words = SpillFile::bytes_for(65) / 8;  // 2 words of bits, 65 checksums
  CHECK(SpillFile::bytes_for(65) == 2 * 8 + 65 * 4);
  disk.acquire_and_fill(65);
  for (int round = 0; round < 3; ++round) {
    fill(disk.page(64), 300, static_cast<uint64_t>(round));
    CHECK(disk.file.write(64, disk.page(64)) == Status::ok);
    std::vector<std::byte> back(300);
    CHECK(disk.file.read(64, back.data()) == Status::ok);
    CHECK(holds(back.data(), 300, static_cast<uint64_t>(round)));
  }
  CHECK(disk.memory[words + 1] == 0xabababababababab);
  CHECK(static_cast<uint32_t>(disk.memory[words] >> 32) == 0xabababab);
}

TEST_CASE("one flipped bit in the file, anywhere in a page, is a bad checksum of that page alone, counted") {
  ScriptedIo io;
  Disk disk(1000, 8, &io);
  disk.acquire_and_fill(8);
  disk.write_all();
  uint64_t bad = 0;
  for (const int slot : {0, 3, 7}) {
    for (const off_t at : {0, 1, 500, 999}) {
      const off_t place = slot * 1024 + at;
      unsigned char byte = 0;
      REQUIRE(pread(io.fd, &byte, 1, place) == 1);
      byte ^= 0x04;
      REQUIRE(pwrite(io.fd, &byte, 1, place) == 1);
      CHECK(disk.read_all() == 7);
      for (int i = 0; i < 8; ++i) {
        CHECK(disk.status[i] == (i == slot ? Status::bad_checksum : Status::ok));
        CHECK(disk.holds_page(i) == (i != slot));
      }
      CHECK(disk.file.counters().bad_checksums == ++bad);
      byte ^= 0x04;
      REQUIRE(pwrite(io.fd, &byte, 1, place) == 1);
      CHECK(disk.read_all() == 8);
    }
  }
  // A bit that flips on the way back is seen too, and is right the next time.
  io.flip_call = io.calls;
  CHECK(disk.read_all() == 7);
  CHECK(disk.status[0] == Status::bad_checksum);
  CHECK(disk.read_all() == 8);
  // Padding belongs to no page.
  const unsigned char noise = 0xff;
  REQUIRE(pwrite(io.fd, &noise, 1, 2 * 1024 + 1010) == 1);
  CHECK(disk.read_all() == 8);
}

TEST_CASE("a slot that was never written, or was given to a new owner, is a miss without asking the disk") {
  ScriptedIo io;
  Disk disk(600, 6, &io);
  disk.acquire_and_fill(6);
  for (const SlotId slot : {3, 1}) CHECK(disk.file.write(slot, disk.page(slot)) == Status::ok);
  std::vector<std::byte> page(600);
  for (const SlotId slot : {0, 2, 5}) CHECK(disk.file.read(slot, page.data()) == Status::bad_checksum);
  CHECK(io.reads == 0);
  CHECK(disk.file.counters().bad_checksums == 3);
  CHECK(disk.file.read(1, page.data()) == Status::ok);
  disk.file.release(1);
  CHECK(disk.file.try_acquire() == 1);
  CHECK(disk.file.read(1, page.data()) == Status::bad_checksum);  // the old owner's bytes are still in the file
  for (const SlotId slot : {1, 4}) CHECK(disk.file.write(slot, disk.page(slot)) == Status::ok);
  io.reads = 0;
  CHECK(disk.read_all() == 3);  // of 0 to 5, only 1, 3 and 4 hold something
  CHECK(io.reads == 2);
  for (int i = 0; i < 6; ++i) CHECK(disk.holds_page(i) == (i == 1 || i == 3 || i == 4));
}

TEST_CASE("a file cut short from outside is an io error of what is gone, and whole before it") {
  ScriptedIo io;
  Disk disk(512, 10, &io);
  disk.acquire_and_fill(10);
  disk.write_all();
  REQUIRE(ftruncate(io.fd, 512 * 6 + 100) == 0);
  CHECK(disk.read_all() == 6);
  for (int i = 0; i < 10; ++i) CHECK(disk.status[i] == (i < 6 ? Status::ok : Status::io_error));
  CHECK(disk.file.counters().io_errors == 4);
}

TEST_CASE("short and interrupted calls change nothing but their number") {
  for (const size_t at_most : {size_t{1}, size_t{7}, size_t{500}, size_t{512}, size_t{513}, size_t{1000}, SIZE_MAX}) {
    for (const int every : {0, 2, 3}) {
      CAPTURE(at_most);
      CAPTURE(every);
      ScriptedIo io;
      io.at_most = at_most;
      io.interrupt_every = every;
      Disk disk(700, 5, &io);
      disk.acquire_and_fill(5);
      REQUIRE(disk.write_all() == 5);
      REQUIRE(disk.read_all() == 5);
      for (int i = 0; i < 5; ++i) CHECK(disk.holds_page(i));
      CHECK(disk.file.counters().bytes_written == 5 * 1024);
      CHECK(disk.file.counters().io_errors == 0);
    }
  }
}

// 45 pages in 32 + 8 adjacent slots and 5 apart: 7 runs.
struct ScatteredDisk : Disk {
  explicit ScatteredDisk(ScriptedIo* io) : Disk(900, 60, io) {
    acquire_and_fill(45);
    std::vector<SlotId> apart(15);
    file.acquire_run(15, apart.data());
    for (size_t i = 0; i < 5; ++i) slots[40 + i] = apart[2 * i + 1];
  }
};

TEST_CASE("whichever write fails, exactly one page is lost, it reads as a miss, and the others are right") {
  // Cut into pieces, calls also fail in the middle of a page.
  for (const size_t at_most : {size_t{300}, size_t{1500}, SIZE_MAX}) {
    int calls = 1;
    for (int fail = 0; fail < calls; ++fail) {
      CAPTURE(at_most);
      CAPTURE(fail);
      ScriptedIo io;
      io.at_most = at_most;
      ScatteredDisk disk(&io);
      REQUIRE(disk.write_all() == 45);  // a first version, so that a failed write has something old to expose
      calls = io.calls;
      for (int i = 0; i < 45; ++i) fill(disk.page(i), 900, 1000 + static_cast<uint64_t>(i));
      io.fail_call = calls + fail;
      REQUIRE(disk.write_all() == 44);
      int lost = -1;
      for (int i = 0; i < 45; ++i) {
        if (disk.status[static_cast<size_t>(i)] != Status::ok) lost = i;
      }
      CHECK(disk.status[static_cast<size_t>(lost)] == Status::io_error);
      CHECK(disk.file.counters().io_errors == 1);
      CHECK(disk.read_all() == 44);
      CHECK(disk.status[static_cast<size_t>(lost)] == Status::bad_checksum);
      bool right = true;
      for (int i = 0; i < 45; ++i) {
        right = right && (i == lost || holds(disk.page(i), 900, 1000 + static_cast<uint64_t>(i)));
      }
      CHECK(right);
    }
    CHECK(calls >= 7);
  }
}

TEST_CASE("whichever read fails, exactly one page is missed, once, and the others are right") {
  for (const size_t at_most : {size_t{300}, size_t{1500}, SIZE_MAX}) {
    int calls = 1;
    for (int fail = 0; fail < calls; ++fail) {
      CAPTURE(at_most);
      CAPTURE(fail);
      ScriptedIo io;
      io.at_most = at_most;
      ScatteredDisk disk(&io);
      REQUIRE(disk.write_all() == 45);
      calls = io.calls;
      io.fail_call = calls + fail;
      REQUIRE(disk.read_all() == 44);
      bool right = true;
      for (int i = 0; i < 45; ++i) {
        right = right && (disk.status[static_cast<size_t>(i)] == Status::io_error || disk.holds_page(i));
      }
      CHECK(right);
      CHECK(disk.file.counters().io_errors == 1);
      CHECK(disk.read_all() == 45);
    }
    CHECK(calls >= 7);
  }
}

TEST_CASE("a full disk is no_space for what does not fit, and room made later is used") {
  for (const int error : {ENOSPC, EDQUOT, EFBIG}) {
    ScriptedIo io;
    io.fail_errno = error;
    Disk disk(512, 4, &io);
    disk.acquire_and_fill(4);
    io.fail_call = 0;
    io.fail_until = 100;
    CHECK(disk.write_all() == 0);
    for (const Status status : disk.status) CHECK(status == Status::no_space);
    CHECK(disk.file.counters().no_space == 4);
    CHECK(disk.file.counters().io_errors == 0);
  }
  ScriptedIo io;
  io.disk_bytes = 512 * 6 + 200;  // the seventh page is cut
  Disk disk(512, 10, &io);
  disk.acquire_and_fill(10);
  CHECK(disk.write_all() == 6);
  for (int i = 0; i < 10; ++i) CHECK(disk.status[i] == (i < 6 ? Status::ok : Status::no_space));
  CHECK(disk.file.counters().no_space == 4);
  CHECK(disk.read_all() == 6);
  for (int i = 0; i < 6; ++i) CHECK(disk.holds_page(i));
  for (int i = 6; i < 10; ++i) CHECK(disk.status[i] == Status::bad_checksum);
  io.disk_bytes = LLONG_MAX;
  for (int i = 0; i < 10; ++i) fill(disk.page(i), 512, 100 + static_cast<uint64_t>(i));
  CHECK(disk.write_all() == 10);
  CHECK(disk.read_all() == 10);
}

TEST_CASE("the kernel's own refusal to grow a file is no_space, and a write that moves nothing is an io error") {
  Disk disk(4096, 8);
  disk.acquire_and_fill(8);
  rlimit before = {};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 5 * 4096 + 17;
  REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  const int written = disk.write_all();
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, old_handler);
  CHECK(written == 5);
  for (int i = 0; i < 8; ++i) CHECK(disk.status[i] == (i < 5 ? Status::ok : Status::no_space));
  ScriptedIo io;
  io.zero_writes = true;
  Disk stuck(512, 2, &io);
  stuck.acquire_and_fill(2);
  CHECK(stuck.write_all() == 0);
  CHECK(stuck.status[0] == Status::io_error);
}

TEST_CASE("free slots are given out low and adjacent first, scattered only when they must be") {
  Disk disk(64, 200);
  SpillFile& file = disk.file;
  SlotId out[200];
  CHECK(file.acquire_run(0, out) == 0);
  CHECK(file.acquire_run(-3, out) == 0);
  CHECK(file.acquire_run(100, out) == 100);
  for (int i = 0; i < 100; ++i) CHECK(out[i] == i);
  for (const SlotId slot : {3, 10, 11, 12, 62, 63, 64, 65, 66}) file.release(slot);
  file.check_invariants();
  CHECK(file.acquire_run(3, out) == 3);
  CHECK(out[0] == 10);
  CHECK(file.acquire_run(5, out) == 5);  // across a word of the bitmap
  CHECK(out[0] == 62);
  CHECK(out[4] == 66);
  CHECK(file.acquire_run(2, out) == 2);
  CHECK(out[0] == 100);
  CHECK(file.try_acquire() == 3);
  CHECK(file.acquire_run(98, out) == 98);  // 102 to 199: up to the last slot
  CHECK(out[97] == 199);
  CHECK(file.try_acquire() == kNone);
  CHECK(file.acquire_run(1, out) == 0);
  CHECK(file.peak_used() == 200);
  for (const SlotId slot : {199, 1, 70, 100}) file.release(slot);
  CHECK(file.acquire_run(3, out) == 3);  // no three are adjacent
  CHECK(out[0] == 1);
  CHECK(out[1] == 70);
  CHECK(out[2] == 100);
  CHECK(file.acquire_run(7, out) == 1);  // fewer are left
  CHECK(out[0] == 199);
  for (const SlotId wrong : {200, -1, 1 << 30}) CHECK_THROWS_AS(file.release(wrong), InvariantError);
  file.release(5);
  CHECK_THROWS_AS(file.release(5), InvariantError);
  CHECK(file.used_slots() == 199);
  file.check_invariants();
}

TEST_CASE("random runs against a plain model: lowest run first, and every slot has one owner") {
  for (const int slots : {1, 63, 64, 65, 300}) {
    Disk disk(8, slots);
    std::vector<bool> free(static_cast<size_t>(slots), true);
    std::mt19937 random(static_cast<unsigned>(slots));
    std::vector<SlotId> out(static_cast<size_t>(slots) + 8);
    for (int step = 0; step < 4000; ++step) {
      if (random() % 2 == 0) {
        const int want = 1 + static_cast<int>(random() % (random() % 8 == 0 ? 100 : 6));
        std::vector<SlotId> expected;
        int length = 0;
        for (int s = 0; s < slots && expected.empty(); ++s) {
          length = free[static_cast<size_t>(s)] ? length + 1 : 0;
          if (length == want) {
            for (int i = s - want + 1; i <= s; ++i) expected.push_back(i);
          }
        }
        // Asked for more than there is: all there are, from the lowest run of that length if there is one.
        for (int s = 0; expected.empty() && s < slots; ++s) {
          for (int t = s; t < slots && static_cast<int>(expected.size()) < want; ++t) {
            if (free[static_cast<size_t>(t)]) expected.push_back(t);
          }
          break;
        }
        const int got = disk.file.acquire_run(want, out.data());
        REQUIRE(std::vector<SlotId>(out.begin(), out.begin() + got) == expected);
        for (const SlotId slot : expected) free[static_cast<size_t>(slot)] = false;
      } else {
        for (int i = 0; i < 4; ++i) {
          const auto slot = static_cast<SlotId>(random() % static_cast<unsigned>(slots));
          REQUIRE(disk.file.is_used(slot) == !free[static_cast<size_t>(slot)]);
          if (!free[static_cast<size_t>(slot)]) disk.file.release(slot);
          free[static_cast<size_t>(slot)] = true;
        }
      }
      disk.file.check_invariants();
    }
  }
}

TEST_CASE("nothing in the spill file allocates after it is built, errors included") {
  ScriptedIo io;
  Disk disk(900, 100, &io);
  disk.acquire_and_fill(100);
  const AllocationScope scope;
  for (int round = 0; round < 20; ++round) {
    io.fail_call = io.calls + round % 5;
    io.fail_errno = round % 2 == 0 ? EIO : ENOSPC;
    io.interrupt_every = round % 3 == 0 ? 2 : 0;
    disk.write_all();
    io.flip_call = io.calls + 1;
    disk.read_all();
    for (int i = round % 7; i < 100; i += 7) disk.file.release(disk.slots[static_cast<size_t>(i)]);
    for (int i = round % 7; i < 100; i += 7) disk.file.acquire_run(1, &disk.slots[static_cast<size_t>(i)]);
    disk.file.check_invariants();
    disk.file.counters();
  }
  const uint64_t made = scope.count();
  CHECK(made == 0);
  CHECK(disk.file.counters().io_errors > 0);
  CHECK(disk.file.counters().no_space > 0);
  CHECK(disk.file.counters().bad_checksums > 0);
}

}  // namespace
