// A file without a name to save into and restore from, whose bytes a test may look at and change.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

#include "memory/snapshot.h"
#include "runtime/kv_memory.h"

namespace mosaic::testing {

class SnapshotFile {
 public:
  SnapshotFile() : fd_(memfd_create("snapshot", 0)) {
    if (fd_ < 0) std::abort();
  }
  ~SnapshotFile() { close(fd_); }
  SnapshotFile(const SnapshotFile&) = delete;
  SnapshotFile& operator=(const SnapshotFile&) = delete;

  int from_start() const {
    lseek(fd_, 0, SEEK_SET);
    return fd_;
  }
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> all(static_cast<size_t>(lseek(fd_, 0, SEEK_END)));
    if (pread(fd_, all.data(), all.size(), 0) != static_cast<ssize_t>(all.size())) std::abort();
    return all;
  }
  void set_bytes(const std::vector<std::byte>& all) {
    if (ftruncate(fd_, 0) != 0 || pwrite(fd_, all.data(), all.size(), 0) != static_cast<ssize_t>(all.size()))
      std::abort();
  }
  void save(KvMemory* memory) {
    if (ftruncate(from_start(), 0) != 0) std::abort();
    SnapshotWriter writer(fd_);
    memory->save(writer);
    writer.finish();
  }
  std::unique_ptr<KvMemory> restore(const MemoryConfig& config, std::unique_ptr<Policy> policy, Backend backend,
                                    SpillIo* io = nullptr) const {
    SnapshotReader reader(from_start());
    auto memory = std::make_unique<KvMemory>(config, std::move(policy), std::move(backend), io, &reader);
    reader.finish();
    return memory;
  }

 private:
  int fd_;
};

}  // namespace mosaic::testing
