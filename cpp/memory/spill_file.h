// SpillFile: the coldest tier, equal slots in one sparse file that has no name: it is unlinked when it is made (mode
// 0600), so nothing is left behind however the process ends. Every slot has a CRC32C, kept in DRAM; data that does not
// match it is a miss (bad_checksum, counted), never wrong data. A slot that was acquired and not yet written, or whose
// write failed, reads as bad_checksum too. Low adjacent slots are given out first, so that pages stored together are
// read together: *_run() moves adjacent slots with one system call.
// Nothing here allocates or throws after construction, except on a defect of the caller (InvariantError).
// Threads: acquire, release and check_invariants belong to one thread (KvMemory holds the lock). read and write may run
// on any thread at the same time, for different slots. Release a slot only after its copies have finished.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/ids.h"
#include "memory/snapshot.h"

namespace mosaic {

enum class Status : uint8_t {
  ok,
  bad_checksum,  // what came back is not what was written: treat as a miss
  io_error,
  no_space,  // the disk (or a quota) is full; the slot holds nothing
};
const char* status_name(Status status);

// The system calls, so that tests can fail them. The defaults are the real ones; -1 and errno on failure.
struct SpillIo {
  virtual ~SpillIo() = default;
  virtual int open_unnamed(
      const char* directory);  // O_TMPFILE; where that is missing a named file is made and unlinked
  virtual ssize_t preadv(int fd, const iovec* parts, int n, off_t at);
  virtual ssize_t pwritev(int fd, const iovec* parts, int n, off_t at);
  virtual void will_read(int fd, off_t at, off_t bytes);  // a hint: to have them in the system's cache by then
  // Asked on the owner's thread before slots are given out; false refuses them as a spent quota would.
  virtual bool may_acquire() { return true; }
};

struct SpillCounters {
  uint64_t bytes_written = 0;  // moved to the file, padding included: what wears the flash
  uint64_t bytes_read = 0;
  uint64_t write_calls = 0;
  uint64_t read_calls = 0;
  uint64_t bad_checksums = 0;
  uint64_t io_errors = 0;
  uint64_t no_space = 0;
};

class SpillFile {
 public:
  static constexpr size_t kSector = 512;  // slots start at multiples of it in the file
  static constexpr int kMaxRun = 32;      // slots moved by one system call
  static constexpr size_t stride_of(size_t slot_bytes) { return (slot_bytes + kSector - 1) / kSector * kSector; }
  // DRAM the file needs for its checksums and its free list.
  static constexpr size_t bytes_for(int slots) {
    return words(slots) * sizeof(uint64_t) + static_cast<size_t>(slots) * sizeof(uint32_t);
  }

  // memory: bytes_for(slots) of the host, 8-byte aligned. Throws SpillError (directory missing, not writable) or
  // InvalidInput. io: null for the real calls; otherwise it must outlive this.
  SpillFile(const std::string& directory, size_t slot_bytes, int slots, void* memory, SpillIo* io = nullptr);
  ~SpillFile();
  SpillFile(const SpillFile&) = delete;
  SpillFile& operator=(const SpillFile&) = delete;

  // The lowest free slot, or kNone: none is free, or the io refuses more (counted as no_space).
  SlotId try_acquire();
  // This slot; false as above, or it is in use.
  bool try_acquire(SlotId slot);
  // Up to n slots in ascending order: the lowest n adjacent ones, or else the lowest n. Returns how many it found.
  int acquire_run(int n, SlotId* out);
  // Throws InvariantError when the slot is not in use; nothing is changed then.
  void release(SlotId slot);

  // slot_bytes() at `from`, `to`.
  Status write(SlotId slot, const std::byte* from);
  Status read(SlotId slot, std::byte* to);
  // n slots in any order, all different; neighbours in the list that are neighbours in the file move together. One that
  // fails costs no other. status: [n]. Returns how many are ok.
  int write_run(int n, const SlotId* slots, const std::byte* const* from, Status* status);
  int read_run(int n, const SlotId* slots, std::byte* const* to, Status* status);
  // Those slots will be read: the system is asked to have them ready, and not waited for.
  void expect(int n, const SlotId* slots);

  bool is_used(SlotId slot) const {
    return slot >= 0 && slot < slots_ && (free_bits_[slot / 64] >> (slot % 64) & 1) == 0;
  }
  int slots() const { return slots_; }
  int used_slots() const { return used_; }
  int free_slots() const { return slots_ - used_; }
  int peak_used() const { return peak_used_; }
  size_t slot_bytes() const { return slot_bytes_; }
  size_t capacity_bytes() const { return static_cast<size_t>(slots_) * stride_of(slot_bytes_); }
  SpillCounters counters() const;  // any thread
  void set_counters(const SpillCounters& counters);
  // Counters and the peak; the slots' own bytes are their owner's to write. No copy is under way.
  void serialize(Snapshot& s);
  void check_invariants() const;

 private:
  static constexpr size_t words(int slots) { return (static_cast<size_t>(slots) + 63) / 64; }
  enum class Direction { in, out };
  SlotId find_run(int n) const;
  void mark_used(SlotId slot);
  // n <= kMaxRun adjacent slots from `first` on.
  void transfer(Direction direction, SlotId first, int n, std::byte* const* buffers, Status* status);
  // Moves until done or an error; returns the bytes that moved.
  size_t move_bytes(Direction direction, iovec* parts, int n, size_t total, off_t at, int* error);
  Status count_failure(int error);

  int fd_ = -1;
  int slots_;
  int used_ = 0;
  int peak_used_ = 0;
  int first_word_ = 0;  // no word before it has a free slot
  size_t slot_bytes_;
  SpillIo* io_;
  uint64_t* free_bits_;  // [words], bit set: free
  uint32_t* checksums_;  // [slots], 0: nothing valid is stored
  struct Atomics {
    std::atomic<uint64_t> bytes_written{0}, bytes_read{0}, write_calls{0}, read_calls{0}, bad_checksums{0},
        io_errors{0}, no_space{0};
  } counts_;
};

}  // namespace mosaic
