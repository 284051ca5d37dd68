// FaultyIo: the real system calls, of which every nth fails, for `stress` and tests. It counts pages (slots of the spill
// file) in the order they are asked for, not calls, whose number depends on how requests met in the queue: two runs with
// one history fail at the same pages. Reads, writes and acquired slots have counters of their own.
//   every nth page read     by turns: EIO, or it comes back with a flipped bit, which the checksum must catch
//   every nth page written  EIO
//   every nth acquisition   refused, as a spent quota refuses
// Threads as for SpillFile: one thread reads and writes, one acquires; the numbers of faults may be read by any.
#pragma once

#include <atomic>
#include <cstdint>

#include "memory/spill_file.h"

namespace mosaic {

struct FaultCounts {
  uint64_t reads = 0;    // that failed
  uint64_t flipped = 0;  // that came back wrong
  uint64_t writes = 0;
  uint64_t acquisitions = 0;
};

class FaultyIo : public SpillIo {
 public:
  // every: from 1 (all of them) on. page_bytes: what a page takes in the file, SpillFile::stride_of(slot bytes).
  // Throws InvalidInput on anything else.
  FaultyIo(int every, size_t page_bytes);

  ssize_t preadv(int fd, const iovec* parts, int n, off_t at) override;
  ssize_t pwritev(int fd, const iovec* parts, int n, off_t at) override;
  bool may_acquire() override;

  FaultCounts faults() const { return {reads_failed_, reads_flipped_, writes_failed_, acquisitions_failed_}; }

 private:
  static constexpr int kMaxParts = 2 * SpillFile::kMaxRun;
  // Bytes of [at, at + total) before the next page that a fault hits; those pages are counted. 0: the first is hit.
  size_t before_fault(off_t at, size_t total, uint64_t* count) const;

  const uint64_t every_;
  const size_t page_bytes_;
  uint64_t pages_read_ = 0, pages_written_ = 0, acquisitions_ = 0;
  std::atomic<uint64_t> reads_failed_{0}, reads_flipped_{0}, writes_failed_{0}, acquisitions_failed_{0};
};

}  // namespace mosaic
