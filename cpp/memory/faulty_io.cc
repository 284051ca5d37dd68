#include "memory/faulty_io.h"

#include <algorithm>
#include <cerrno>
#include <string>

#include "core/error.h"

namespace mosaic {
namespace {

size_t total_of(const iovec* parts, int n) {
  size_t total = 0;
  for (int i = 0; i < n; ++i) total += parts[i].iov_len;
  return total;
}

// The first `bytes` of parts; returns how many parts that makes.
int cut(const iovec* parts, int n, size_t bytes, iovec* out) {
  int count = 0;
  for (; count < n && bytes > 0; ++count) {
    out[count] = {parts[count].iov_base, std::min(parts[count].iov_len, bytes)};
    bytes -= out[count].iov_len;
  }
  return count;
}

ssize_t fail() {
  errno = EIO;
  return -1;
}

}  // namespace

FaultyIo::FaultyIo(int every, size_t page_bytes)
    : every_(static_cast<uint64_t>(std::max(every, 1))), page_bytes_(page_bytes) {
  if (every < 1 || page_bytes == 0) {
    throw InvalidInput("faults=" + std::to_string(every) + " of pages of " + std::to_string(page_bytes) +
                       " bytes: expected every nth from 1 on");
  }
}

// A page is counted where it begins: the rest of one that a call left half done is not a page of its own.
size_t FaultyIo::before_fault(off_t at, size_t total, uint64_t* count) const {
  const auto from = static_cast<size_t>(at);
  for (size_t page = (from + page_bytes_ - 1) / page_bytes_ * page_bytes_; page < from + total; page += page_bytes_) {
    if ((*count + 1) % every_ == 0) return page - from;
    ++*count;
  }
  return total;
}

ssize_t FaultyIo::preadv(int fd, const iovec* parts, int n, off_t at) {
  iovec some[kMaxParts];
  const size_t total = total_of(parts, n), good = before_fault(at, total, &pages_read_);
  if (good > 0) return SpillIo::preadv(fd, some, cut(parts, n, good, some), at);
  if (total == 0) return 0;
  if (++pages_read_ / every_ % 2 == 1) {
    ++reads_failed_;
    return fail();
  }
  const ssize_t moved = SpillIo::preadv(fd, some, cut(parts, n, std::min(total, page_bytes_), some), at);
  if (moved > 0) {
    static_cast<unsigned char*>(some[0].iov_base)[0] ^= 0x10;
    ++reads_flipped_;
  }
  return moved;
}

ssize_t FaultyIo::pwritev(int fd, const iovec* parts, int n, off_t at) {
  iovec some[kMaxParts];
  const size_t total = total_of(parts, n), good = before_fault(at, total, &pages_written_);
  if (good > 0) return SpillIo::pwritev(fd, some, cut(parts, n, good, some), at);
  if (total == 0) return 0;
  ++pages_written_;
  ++writes_failed_;
  return fail();
}

bool FaultyIo::may_acquire() {
  if (++acquisitions_ % every_ != 0) return true;
  ++acquisitions_failed_;
  return false;
}

}  // namespace mosaic
