// A disk that is full at write number n, for every write of a stream and of a snapshot: once, or from then on. The stream
// goes on within its cap, what a write did not take is where it was or is counted, and a snapshot that was not written
// changes nothing.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/resource.h>

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"
#include "support/snapshot_file.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

// A page is a write, however many come in one call; the writes `first` to `last` find no space.
struct FullIo : SpillIo {
  int first = INT_MAX, last = INT_MAX;
  int writes = 0, refused = 0;  // of the copy thread; read after drain()
  ssize_t pwritev(int fd, const iovec* parts, int n, off_t at) override {
    const int write = writes++;
    const bool has_padding = n > 1 && parts[1].iov_len < parts[0].iov_len;
    if (write < first || write > last) return SpillIo::pwritev(fd, parts, has_padding ? 2 : 1, at);
    ++refused;
    errno = ENOSPC;
    return -1;
  }
};

struct OnDisk {
  const char* policy;
  uint64_t spare;  // of the cap: enough for a disk to be worth having, and little enough that it is used
  int frames;
};

MemoryConfig config_for(const OnDisk& kind, const std::string& spill_dir) {
  MemoryConfig c = small_config();
  c.model.layers = 1;
  c.model.frame_tokens = 13;
  c.window_frames = 2, c.branch_tokens = 24;
  c.max_cluster_tokens = 20, c.retrieve_tokens = 64, c.scenes = 4;
  c.disk_bytes = 96 << 10, c.spill_dir = spill_dir;
  if (!make_policy(kind.policy, {})->needs().group.records) c.packed = CodecId::kInt4;
  c.cap_bytes = least_cap(c, kind.policy) + kind.spare;
  return c;
}

constexpr int kLastFrames = 4;  // in which the session hears what came of the writes before them

// `before_last`: how many writes there were before the last frames.
MemoryStats play(const MemoryConfig& config, const OnDisk& kind, FullIo* io, int* before_last = nullptr) {
  PlayedStream stream(config, kind.policy, {}, 6, io);
  for (int i = 0; i < kind.frames; ++i) {
    stream.room = i / 10 % 3;
    stream.noise = i % 4 == 0 ? 0.6f : 0.03f;
    stream.frame(13);
    if (i % 7 == 6) stream.ask(3, 2, i % 2 == 0);
    REQUIRE(stream.finite());
    const MemoryStats now = stream.memory->stats();
    REQUIRE(now.tokens.total() == now.tokens.seen);
    REQUIRE(now.taken_bytes <= config.cap_bytes);
    if (i != kind.frames - kLastFrames) continue;
    stream.memory->drain();
    if (before_last != nullptr) *before_last = io->writes;
  }
  stream.memory->drain();
  stream.memory->check_invariants();
  return stream.memory->stats();
}

constexpr int kEach = mosaic::testing::rounds(8) < 8 ? 3 : 1;  // in slow builds a third of the writes

TEST_CASE("whichever write of a stream finds the disk full, it goes on in its cap and counts what was not written") {
  TemporaryDirectory directory;
  for (const OnDisk& kind : std::vector<OnDisk>{
           {"edge", 10 << 10, 24}, {"mosaic", 10 << 10, 28}, {"rekv", 10 << 10, 40}, {"mukv", 50 << 10, 70}}) {
    CAPTURE(std::string(kind.policy));
    const MemoryConfig config = config_for(kind, directory.path);
    FullIo whole;
    int writes = 0;
    const MemoryStats good = play(config, kind, &whole, &writes);
    REQUIRE(writes > 10);
    REQUIRE(good.tokens.spilled > 0);
    for (int write = 0; write < writes; write += kEach) {
      FullIo once, for_good;
      once.first = once.last = for_good.first = write;
      for (FullIo* io : {&once, &for_good}) {
        if (io == &for_good && write % 4 != 0) continue;  // more is the same
        CAPTURE(write);
        CAPTURE(io == &for_good);
        const MemoryStats stats = play(config, kind, io);
        CHECK(stats.tokens.seen == good.tokens.seen);
        CHECK(io->refused > 0);
        CHECK(stats.disk.no_space >= static_cast<uint64_t>(io->refused));
        CHECK(stats.counters.failed_spills > 0);
        CHECK(stats.counters.spill_pauses > 0);
        CHECK(stats.disk.io_errors == 0);
        CHECK(stats.counters.lost_pages <= (std::string(kind.policy) == "edge" ? io->refused : 0));
        CHECK((stats.disk.bytes_written > 0) == (write > 0 || io == &once));
      }
    }
  }
}

// The kernel refuses to let a file grow past `bytes`.
class SmallFiles {
 public:
  explicit SmallFiles(rlim_t bytes) : handler_(signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit small{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
  }
  ~SmallFiles() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  decltype(SIG_IGN) handler_;
};

// Where each write of a snapshot begins, and its end.
std::vector<size_t> writes_of(const std::vector<std::byte>& file) {
  std::vector<size_t> at = {0, 16};
  while (at.back() < file.size()) {
    uint32_t bytes = 0;
    std::memcpy(&bytes, &file[at.back() + 8], sizeof bytes);
    at.push_back(at.back() + 16 + bytes);
  }
  return at;
}

TEST_CASE("whichever write of a snapshot finds the disk full, at its start or in its middle, it is an error alone") {
  TemporaryDirectory directory;
  const OnDisk kind{"mosaic", 30 << 10, 0};
  PlayedStream stream(config_for(kind, directory.path), kind.policy);
  for (int i = 0; i < 40; ++i) stream.frame(13);
  stream.memory->drain();
  SnapshotFile file, cut;
  file.save(stream.memory.get());
  const std::vector<std::byte> good = file.bytes();
  const std::vector<size_t> begins = writes_of(good);
  REQUIRE(begins.size() >= 10);
  REQUIRE(begins.back() == good.size());
  for (size_t write = 0; write + 1 < begins.size(); ++write)
    for (const size_t room : {begins[write], (begins[write] + begins[write + 1]) / 2, begins[write + 1] - 1}) {
      CAPTURE(write);
      CAPTURE(room);
      std::string said;
      try {
        const SmallFiles limit(room);
        cut.save(stream.memory.get());
      } catch (const SpillError& error) {
        said = error.what();
      }
      CHECK(said.find("snapshot: it cannot be written (") == 0);
      CHECK(cut.bytes().size() == room);
      CHECK_THROWS_AS((void)cut.restore(stream.config, make_policy(kind.policy, {}), make_backend("cpu", 1)),
                      InvalidInput);
    }
  file.save(stream.memory.get());
  CHECK(file.bytes() == good);  // the session that was not saved is the one it was
  stream.frame(13);
  stream.memory->check_invariants();
}

}  // namespace
