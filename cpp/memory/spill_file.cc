#include "memory/spill_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "memory/crc32c.h"

namespace mosaic {
namespace {

// 0 is kept for "nothing valid is stored".
uint32_t checksum_of(const std::byte* data, size_t bytes) {
  const uint32_t crc = crc32c(data, bytes);
  return crc != 0 ? crc : 1;
}

// Where the file system or the kernel has no O_TMPFILE.
int open_and_unlink(const char* directory) {
  static std::atomic<unsigned> serial{0};
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::string path = std::string(directory) + "/.mosaic-spill-" + std::to_string(getpid()) + "-" +
                             std::to_string(serial.fetch_add(1));
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0 && unlink(path.c_str()) == 0) return fd;
    if (fd >= 0) {  // a file that keeps its name is worse than none
      const int cause = errno;
      close(fd);
      errno = cause;
      return -1;
    }
    if (errno != EEXIST) return -1;
  }
  return -1;
}

SpillIo& system_calls() {
  static SpillIo calls;
  return calls;
}

}  // namespace

const char* status_name(Status status) {
  switch (status) {
    case Status::ok:
      return "ok";
    case Status::bad_checksum:
      return "bad_checksum";
    case Status::io_error:
      return "io_error";
    case Status::no_space:
      return "no_space";
  }
  return "?";
}

int SpillIo::open_unnamed(const char* directory) {
  return open(directory, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);  // O_EXCL: it can never be given a name
}
ssize_t SpillIo::preadv(int fd, const iovec* parts, int n, off_t at) { return ::preadv(fd, parts, n, at); }
ssize_t SpillIo::pwritev(int fd, const iovec* parts, int n, off_t at) { return ::pwritev(fd, parts, n, at); }

void SpillIo::will_read(int fd, off_t at, off_t bytes) { posix_fadvise(fd, at, bytes, POSIX_FADV_WILLNEED); }

SpillFile::SpillFile(const std::string& directory, size_t slot_bytes, int slots, void* memory, SpillIo* io)
    : slots_(slots), slot_bytes_(slot_bytes), io_(io != nullptr ? io : &system_calls()) {
  if (slots <= 0 || slot_bytes == 0) {
    throw InvalidInput("a spill file needs at least one slot of one byte; got " + std::to_string(slots) + " of " +
                       std::to_string(slot_bytes) + " bytes");
  }
  if (directory.find('\0') != std::string::npos)  // the system would open what stands before it
    throw InvalidInput("spill_dir= holds a zero byte, as no path does");
  free_bits_ = static_cast<uint64_t*>(memory);
  checksums_ = reinterpret_cast<uint32_t*>(free_bits_ + words(slots));
  for (size_t w = 0; w < words(slots); ++w) {
    const size_t left = static_cast<size_t>(slots) - w * 64;
    free_bits_[w] = left >= 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
  }
  std::memset(checksums_, 0, static_cast<size_t>(slots) * sizeof(uint32_t));
  fd_ = io_->open_unnamed(directory.c_str());
  if (fd_ < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) fd_ = open_and_unlink(directory.c_str());
  if (fd_ < 0) {
    const int cause = errno;
    const bool no_descriptor = cause == EMFILE || cause == ENFILE;
    throw SpillError("spill file needs " + format_bytes(capacity_bytes()) + " in '" + directory +
                         "': " + std::strerror(cause) +
                         (no_descriptor ? ". Raise the limit of open files (ulimit -n, LimitNOFILE=), or close some."
                                        : ". Set spill_dir= to a directory that exists and can be written."),
                     cause);
  }
  fchmod(fd_, 0600);
}

SpillFile::~SpillFile() { close(fd_); }

void SpillFile::mark_used(SlotId slot) {
  free_bits_[slot / 64] &= ~(uint64_t{1} << (slot % 64));
  checksums_[slot] = 0;  // what its last owner wrote is no longer readable
  if (++used_ > peak_used_) peak_used_ = used_;
}

SlotId SpillFile::try_acquire() {
  SlotId slot = kNone;
  return acquire_run(1, &slot) == 1 ? slot : kNone;
}

bool SpillFile::try_acquire(SlotId slot) {
  if (is_used(slot)) return false;
  if (!io_->may_acquire()) {
    count_failure(ENOSPC);
    return false;
  }
  mark_used(slot);
  return true;
}

SlotId SpillFile::find_run(int n) const {
  const int word_count = static_cast<int>(words(slots_));
  int length = 0;  // free slots that end where the walk is
  for (int w = first_word_; w < word_count; ++w) {
    uint64_t bits = free_bits_[w];
    int at = 0;  // bits of this word walked; they are shifted out of `bits`
    while (at < 64) {
      if (bits == 0) {
        length = 0;
        break;
      }
      const int gap = std::countr_zero(bits);
      if (gap > 0) length = 0;
      at += gap;
      bits >>= gap;
      const int free = std::countr_one(bits);
      length += free;
      at += free;
      if (length >= n) return w * 64 + at - length;
      bits = free < 64 ? bits >> free : 0;
    }
  }
  return kNone;
}

int SpillFile::acquire_run(int n, SlotId* out) {
  if (n > free_slots()) n = free_slots();
  if (n <= 0) return 0;
  if (!io_->may_acquire()) {
    count_failure(ENOSPC);
    return 0;
  }
  while (free_bits_[first_word_] == 0) ++first_word_;  // there is a free slot, so this ends
  const SlotId first = find_run(n);
  if (first != kNone) {
    for (int i = 0; i < n; ++i) {
      out[i] = first + i;
      mark_used(out[i]);
    }
    return n;
  }
  int found = 0;
  for (int w = first_word_; found < n; ++w) {
    while (free_bits_[w] != 0 && found < n) {
      out[found] = w * 64 + std::countr_zero(free_bits_[w]);
      mark_used(out[found++]);
    }
  }
  return n;
}

void SpillFile::release(SlotId slot) {
  if (!is_used(slot)) {
    throw InvariantError("spill file: slot " + std::to_string(slot) + " of " + std::to_string(slots_) +
                         " was released and is not in use");
  }
  free_bits_[slot / 64] |= uint64_t{1} << (slot % 64);
  --used_;
  if (slot / 64 < first_word_) first_word_ = slot / 64;
}

size_t SpillFile::move_bytes(Direction direction, iovec* parts, int n, size_t total, off_t at, int* error) {
  size_t moved = 0;
  *error = 0;
  while (moved < total) {
    const off_t from = at + static_cast<off_t>(moved);
    const ssize_t step =
        direction == Direction::in ? io_->preadv(fd_, parts, n, from) : io_->pwritev(fd_, parts, n, from);
    auto& calls = direction == Direction::in ? counts_.read_calls : counts_.write_calls;
    calls.fetch_add(1, std::memory_order_relaxed);
    if (step < 0 && errno == EINTR) continue;
    if (step <= 0) {  // 0: the file ends here, or the disk takes nothing and does not say why
      *error = step < 0 ? errno : EIO;
      break;
    }
    moved += static_cast<size_t>(step);
    size_t skip = static_cast<size_t>(step);
    while (n > 0 && skip >= parts->iov_len) {
      skip -= parts->iov_len;
      ++parts;
      --n;
    }
    if (n > 0) {
      parts->iov_base = static_cast<std::byte*>(parts->iov_base) + skip;
      parts->iov_len -= skip;
    }
  }
  auto& bytes = direction == Direction::in ? counts_.bytes_read : counts_.bytes_written;
  bytes.fetch_add(moved, std::memory_order_relaxed);
  return moved;
}

Status SpillFile::count_failure(int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  (full ? counts_.no_space : counts_.io_errors).fetch_add(1, std::memory_order_relaxed);
  return full ? Status::no_space : Status::io_error;
}

void SpillFile::transfer(Direction direction, SlotId first, int n, std::byte* const* buffers, Status* status) {
  const size_t stride = stride_of(slot_bytes_);
  std::byte padding[kSector] =
      {};  // written after each slot that does not fill its sectors; what is read there is dropped
  uint32_t fresh[kMaxRun];
  if (direction == Direction::out) {
    for (int i = 0; i < n; ++i) {
      fresh[i] = checksum_of(buffers[i], slot_bytes_);
      checksums_[first + i] = 0;  // from here until it is whole again the slot holds nothing
    }
  }
  // A failure costs the slot it happens in; the rest goes on behind it.
  for (int begin = 0; begin < n;) {
    iovec parts[2 * kMaxRun];
    int count = 0;
    for (int i = begin; i < n; ++i) {
      parts[count++] = {buffers[i], slot_bytes_};
      if (stride > slot_bytes_) parts[count++] = {padding, stride - slot_bytes_};
    }
    int error = 0;
    const size_t moved = move_bytes(direction, parts, count, static_cast<size_t>(n - begin) * stride,
                                    static_cast<off_t>(first + begin) * static_cast<off_t>(stride), &error);
    const int whole = begin + static_cast<int>(moved / stride);
    for (; begin < whole; ++begin) status[begin] = Status::ok;
    if (begin < n) status[begin++] = count_failure(error);
  }
  for (int i = 0; i < n; ++i) {
    if (status[i] != Status::ok) continue;
    if (direction == Direction::out) {
      checksums_[first + i] = fresh[i];
    } else if (checksum_of(buffers[i], slot_bytes_) != checksums_[first + i]) {
      status[i] = Status::bad_checksum;
      counts_.bad_checksums.fetch_add(1, std::memory_order_relaxed);
    }
  }
}

int SpillFile::write_run(int n, const SlotId* slots, const std::byte* const* from, Status* status) {
  int ok = 0;
  for (int begin = 0; begin < n;) {
    int length = 1;
    while (begin + length < n && length < kMaxRun && slots[begin + length] == slots[begin] + length) ++length;
    // pwritev takes its parts as non-const; it does not change them.
    transfer(Direction::out, slots[begin], length, const_cast<std::byte* const*>(from + begin), status + begin);
    for (int i = 0; i < length; ++i) ok += status[begin + i] == Status::ok ? 1 : 0;
    begin += length;
  }
  return ok;
}

int SpillFile::read_run(int n, const SlotId* slots, std::byte* const* to, Status* status) {
  int ok = 0;
  for (int begin = 0; begin < n;) {
    if (checksums_[slots[begin]] == 0) {  // nothing to read, so the disk is not asked
      status[begin++] = Status::bad_checksum;
      counts_.bad_checksums.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    int length = 1;
    while (begin + length < n && length < kMaxRun && slots[begin + length] == slots[begin] + length &&
           checksums_[slots[begin + length]] != 0) {
      ++length;
    }
    transfer(Direction::in, slots[begin], length, to + begin, status + begin);
    for (int i = 0; i < length; ++i) ok += status[begin + i] == Status::ok ? 1 : 0;
    begin += length;
  }
  return ok;
}

void SpillFile::expect(int n, const SlotId* slots) {
  const auto stride = static_cast<off_t>(stride_of(slot_bytes_));
  for (int begin = 0, end = 0; begin < n; begin = end) {
    for (end = begin + 1; end < n && slots[end] == slots[end - 1] + 1;) ++end;
    io_->will_read(fd_, slots[begin] * stride, (end - begin) * stride);
  }
}

Status SpillFile::write(SlotId slot, const std::byte* from) {
  Status status = Status::io_error;
  write_run(1, &slot, &from, &status);
  return status;
}

Status SpillFile::read(SlotId slot, std::byte* to) {
  Status status = Status::io_error;
  read_run(1, &slot, &to, &status);
  return status;
}

SpillCounters SpillFile::counters() const {
  return {counts_.bytes_written, counts_.bytes_read, counts_.write_calls, counts_.read_calls,
          counts_.bad_checksums, counts_.io_errors,  counts_.no_space};
}

void SpillFile::set_counters(const SpillCounters& c) {
  counts_.bytes_written = c.bytes_written;
  counts_.bytes_read = c.bytes_read;
  counts_.write_calls = c.write_calls;
  counts_.read_calls = c.read_calls;
  counts_.bad_checksums = c.bad_checksums;
  counts_.io_errors = c.io_errors;
  counts_.no_space = c.no_space;
}

void SpillFile::serialize(Snapshot& s) {
  SpillCounters c = counters();
  s.item(c);
  if (s.is_reading()) set_counters(c);
  s.in_range(peak_used_, used_, slots_, "most slots of the disk that were used");
}

void SpillFile::check_invariants() const {
  int free = 0;
  for (size_t w = 0; w < words(slots_); ++w) {
    free += std::popcount(free_bits_[w]);
    if (free_bits_[w] != 0 && static_cast<int>(w) < first_word_) {
      throw InvariantError("spill file: a free slot lies before the first word with free slots");
    }
  }
  if (free != free_slots() || peak_used_ < used_ || peak_used_ > slots_) {
    throw InvariantError("spill file: " + std::to_string(free) + " slots are marked free, " +
                         std::to_string(free_slots()) + " are counted; peak " + std::to_string(peak_used_));
  }
}

}  // namespace mosaic
