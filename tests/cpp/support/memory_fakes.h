// Stand-ins for the memory layer's tests: a device that counts and a disk that fails on demand.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backend/device.h"
#include "core/error.h"
#include "memory/spill_file.h"

namespace mosaic::testing {

struct CountingDevice : Device {
  size_t limit = SIZE_MAX, live = 0, peak = 0;
  int allocations = 0;
  const char* name() const override { return "fake"; }
  bool is_integrated() const override { return true; }
  size_t free_bytes() const override { return limit - live; }
  void* allocate(size_t bytes) override {
    if (bytes > limit - live) throw DeviceError("fake: needs " + format_bytes(bytes));
    void* const memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    std::memset(memory, 0, bytes);
    live += bytes;
    peak = live > peak ? live : peak;
    ++allocations;
    return memory;
  }
  void release(void* memory, size_t bytes) noexcept override {
    std::free(memory);
    live -= bytes;
  }
  void copy_async(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  uint64_t record() override { return 0; }
  void wait(uint64_t) override {}
};

// A directory of its own, removed at the end: which fails, and is checked, when a file was left in it.
struct TemporaryDirectory {
  std::string path;
  TemporaryDirectory() {
    const char* const base = getenv("TMPDIR");
    path = std::string(base != nullptr ? base : "/tmp") + "/mosaic-test-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) std::abort();
  }
  ~TemporaryDirectory() { rmdir(path.c_str()); }
};

// The real calls, with faults. Set it up while no call is running; the gate may be used at any time.
struct ScriptedIo : SpillIo {
  int fd = -1;                   // of the file last read or written
  bool unnamed_refused = false;  // the file system has no O_TMPFILE
  int fail_call = -1;            // the call (0, 1, ...) that fails, -1 for none
  int fail_until = -1;           // with fail_call: every call before this one fails too
  int fail_errno = EIO;
  size_t at_most = SIZE_MAX;     // bytes a call moves at most
  int interrupt_every = 0;       // every nth call is interrupted by a signal
  off_t disk_bytes = LLONG_MAX;  // the disk is full there; a write that starts before it is cut short
  bool zero_writes = false;      // writes take nothing and report no error
  int flip_call = -1;            // the read call whose first byte gets a flipped bit
  int calls = 0, reads = 0, writes = 0;
  std::vector<std::pair<off_t, off_t>> ahead;  // bytes that are to be read ahead: where they begin and how many

  void will_read(int file, off_t at, off_t bytes) override {
    ahead.emplace_back(at, bytes);
    SpillIo::will_read(file, at, bytes);
  }
  ssize_t preadv(int file, const iovec* parts, int n, off_t at) override {
    ++reads;
    fd = file;
    const int call = enter();
    if (call < 0) return -1;
    iovec cut[2 * SpillFile::kMaxRun];
    n = shorten(parts, n, at_most, cut);
    const ssize_t moved = SpillIo::preadv(file, cut, n, at);
    if (call == flip_call && moved > 0) static_cast<unsigned char*>(cut[0].iov_base)[0] ^= 0x10;
    return moved;
  }
  ssize_t pwritev(int file, const iovec* parts, int n, off_t at) override {
    ++writes;
    fd = file;
    if (enter() < 0) return -1;
    if (zero_writes) return 0;
    if (at >= disk_bytes) {
      errno = ENOSPC;
      return -1;
    }
    const size_t left = static_cast<size_t>(disk_bytes - at);
    iovec cut[2 * SpillFile::kMaxRun];
    n = shorten(parts, n, left < at_most ? left : at_most, cut);
    return SpillIo::pwritev(file, cut, n, at);
  }
  int open_unnamed(const char* directory) override {
    if (!unnamed_refused) return SpillIo::open_unnamed(directory);
    errno = EOPNOTSUPP;
    return -1;
  }

  // While the gate is closed a call waits before it does anything. entered() waits until one does; false: none came in time.
  void close_gate() {
    std::lock_guard lock(gate_);
    closed_ = true;
    waiting_ = 0;
  }
  void open_gate() {
    std::lock_guard lock(gate_);
    closed_ = false;
    change_.notify_all();
  }
  bool entered() {
    std::unique_lock lock(gate_);
    return change_.wait_for(lock, std::chrono::seconds(60), [this] { return waiting_ > 0; });
  }
  bool gate_is_closed() {
    std::lock_guard lock(gate_);
    return closed_;
  }

 private:
  // The number of this call; -1 and errno when it must fail.
  int enter() {
    {
      std::unique_lock lock(gate_);
      ++waiting_;
      change_.notify_all();
      change_.wait(lock, [this] { return !closed_; });
    }
    const int call = calls++;
    if (interrupt_every > 0 && call % interrupt_every == 0) {
      errno = EINTR;
      return -1;
    }
    if (fail_call >= 0 && (call == fail_call || (call > fail_call && call < fail_until))) {
      errno = fail_errno;
      return -1;
    }
    return call;
  }
  static int shorten(const iovec* parts, int n, size_t bytes, iovec* out) {
    int count = 0;
    for (; count < n && bytes > 0; ++count) {
      out[count] = parts[count];
      if (out[count].iov_len > bytes) out[count].iov_len = bytes;
      bytes -= out[count].iov_len;
    }
    return count;
  }

  std::mutex gate_;
  std::condition_variable change_;
  bool closed_ = false;
  int waiting_ = 0;
};

// Bytes that depend on a seed and on where they are.
inline void fill(std::byte* to, size_t bytes, uint64_t seed) {
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < bytes; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    to[i] = static_cast<std::byte>(state >> 56);
  }
}
inline bool holds(const std::byte* data, size_t bytes, uint64_t seed) {
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < bytes; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    if (data[i] != static_cast<std::byte>(state >> 56)) return false;
  }
  return true;
}

}  // namespace mosaic::testing
