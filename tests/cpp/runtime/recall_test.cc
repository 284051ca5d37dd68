// What is read of a disk, where many lanes are chosen for together: more heads than are taken at once, pages that are lost
// between two tokens of an answer, masses that are no numbers, more lanes than there is room for.
#include "runtime/recall.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "core/error.h"
#include "support/counted.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"
#include "support/shim_backend.h"

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::TemporaryDirectory;

namespace {

constexpr double kHalf = 2e-3;  // frames are attended by tensor cores, whose factors are halves where pages are

// Few tokens of a head are kept and all others are read from disk: together they are what full attention sees. A frame is a
// page, so that none of what was given up waits for the rest of its page.
const PolicySettings kReadsAll{{"most_tokens", 64}, {"recall", 1}, {"frames_recall", 1}};

MemoryConfig reads_all(const std::string& folder, int layers, int kv_heads, uint64_t cap) {
  MemoryConfig config = mosaic::testing::small_config(cap);
  config.model.layers = layers, config.model.kv_heads = kv_heads, config.model.q_heads = 2 * kv_heads;
  config.exact = CodecId::kFp16, config.packed = CodecId::kFp16, config.window_codec = CodecId::kFp16;
  config.window_frames = 2, config.branch_tokens = 32, config.retrieve_tokens = 1000;
  config.disk_bytes = 64 << 20, config.spill_dir = folder;
  return config;
}

PolicySettings with(PolicySettings settings, const char* name, const char* value) {
  settings.emplace_back(name, value);
  return settings;
}

}  // namespace

TEST_CASE("a layer of more heads than are taken at once reads its disk, in groups, as full attention does") {
  int variant = 0;
  for (const auto& [policy, settings] :
       {std::pair<const char*, PolicySettings>{"edge", kReadsAll}, {"mosaic", with(kReadsAll, "unit", "tokens")}}) {
    if (!testing::is_played(variant++, 2)) continue;
    CAPTURE(std::string(policy));
    TemporaryDirectory directory;
    const MemoryConfig config = reads_all(directory.path, 1, 12, 6 << 20);
    REQUIRE(config.model.kv_heads > kLanesTogether);
    for (const bool shim : {false, true}) {
      CAPTURE(shim);
      testing::ShimControl control;
      PlayedStream stream(config, make_policy(policy, settings),
                          shim ? testing::make_shim(3, &control) : make_backend("cpu", 1));
      REQUIRE(stream.memory->plan().archive.pages > 0);
      REQUIRE(!stream.memory->plan().archive.copies_stay);
      double worst = 0;
      for (int i = 0; i < 26; ++i) {
        stream.room = i / 6 % 6;
        worst = std::max(worst, stream.frame(16, i > 22));
      }
      worst = std::max(worst, stream.ask(5, 3, false, true));
      CHECK(worst < kHalf);
      const MemoryStats stats = stream.memory->stats();
      CHECK(stats.tokens.spilled > stats.tokens.quantised);
      CHECK(stats.counters.fetched_pages > 12 * 15);
      stream.memory->check_invariants();
    }
  }
}

TEST_CASE("pages that are lost between two tokens of an answer are not read by the next, on a device as on the CPU") {
  TemporaryDirectory directory;
  const MemoryConfig config = reads_all(directory.path, 2, 2, 3 << 20);
  std::array<std::vector<float>, 2> before, after;
  for (const size_t shim : {0, 1}) {
    CAPTURE(shim);
    testing::ShimControl control;
    testing::ScriptedIo io;
    PlayedStream stream(config, make_policy("edge", kReadsAll),
                        shim == 1 ? testing::make_shim(3, &control) : make_backend("cpu", 1), 1, &io);
    REQUIRE(!stream.memory->plan().archive.copies_stay);
    for (int i = 0; i < 30; ++i) stream.room = i / 6 % 6, stream.frame(16);
    stream.open_question();
    CHECK(stream.pass(3, true) < kHalf);
    CHECK(stream.pass(1, true) < kHalf);
    stream.memory->drain();
    io.fail_call = 0, io.fail_until = std::numeric_limits<int>::max();
    CHECK(stream.pass(1, true) > 10 * kHalf);  // what it reads is not all any more
    before[shim] = stream.out;
    CHECK(stream.memory->stats().counters.lost_pages > 0);
    CHECK(stream.memory->stats().counters.read_pauses == 1);
    stream.pass(1);
    after[shim] = stream.out;
    stream.close_question(false);
    stream.memory->check_invariants();
  }
  for (const auto& [host, device] : {std::pair{&before[0], &before[1]}, {&after[0], &after[1]}}) {
    float worst = 0;
    for (size_t i = 0; i < host->size(); ++i) worst = std::max(worst, std::abs((*host)[i] - (*device)[i]));
    CHECK(worst < kHalf);
  }
}

namespace {

// Slots that are to be read ahead, and whether they were when they were read, by lane.
struct WatchedIo : SpillIo {
  off_t stride = 0;
  int lanes = 0;
  std::set<off_t> ahead;
  std::vector<int> read, foreseen;

  void watch(const ArchiveShape& shape) {
    stride = static_cast<off_t>(SpillFile::stride_of(data_bytes(shape.codec, shape.page)));
    lanes = shape.lanes;
    read.assign(static_cast<size_t>(lanes), 0), foreseen = read;
    ahead.clear();
  }
  void will_read(int, off_t at, off_t bytes) override {
    for (off_t slot = at / stride; slot < (at + bytes) / stride; ++slot) ahead.insert(slot);
  }
  ssize_t preadv(int fd, const iovec* parts, int n, off_t at) override {
    const ssize_t moved = SpillIo::preadv(fd, parts, n, at);
    for (off_t slot = at / stride; slot < (at + moved) / stride; ++slot) {
      ++read[static_cast<size_t>(slot % lanes)];
      foreseen[static_cast<size_t>(slot % lanes)] += ahead.count(slot) > 0 ? 1 : 0;
    }
    return moved;
  }
};

}  // namespace

TEST_CASE("what the next layer may read of the disk is asked for ahead, unless prefetch is off") {
  for (const bool prefetch : {true, false}) {
    CAPTURE(prefetch);
    TemporaryDirectory directory;
    MemoryConfig config = reads_all(directory.path, 3, 2, 3 << 20);
    config.prefetch = prefetch;
    WatchedIo io;
    PlayedStream stream(config, make_policy("edge", {{"most_tokens", 64}, {"recall", 0.5}}), make_backend("cpu", 1), 1,
                        &io);
    io.watch(stream.memory->plan().archive);
    for (int i = 0; i < 30; ++i) stream.room = i / 6 % 6, stream.frame(16);
    stream.memory->drain();
    io.watch(stream.memory->plan().archive);
    stream.ask(5, 1, false);
    stream.memory->drain();
    for (size_t lane = 0; lane < 6; ++lane) {
      CAPTURE(lane);
      CHECK(io.read[lane] > 20);
      CHECK(io.foreseen[lane] == (prefetch && lane > 1 ? io.read[lane] : 0));
    }
  }
}

TEST_CASE("weights are ordered heaviest first whatever they are, and what is no number stands behind all others") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kMost = std::numeric_limits<float>::infinity();
  const std::vector<float> weight{0, kNan, 2, 2, kMost, kNan, 0.5f, kMost, 0, kNan, 1};
  const Heaviest before{weight.data()};
  const int n = static_cast<int>(weight.size());
  for (int a = 0; a < n; ++a)
    for (int b = 0; b < n; ++b) {
      CHECK(before(a, b) + before(b, a) == (a != b ? 1 : 0));
      for (int c = 0; c < n; ++c)
        if (before(a, b) && before(b, c)) CHECK(before(a, c));
    }
  std::vector<int> order(weight.size());
  std::iota(order.rbegin(), order.rend(), 0);
  std::sort(order.begin(), order.end(), before);
  CHECK(order == std::vector<int>{4, 7, 2, 3, 10, 6, 0, 8, 1, 5, 9});
}

TEST_CASE("more lanes than there is room for are not chosen for together") {
  TemporaryDirectory directory;
  const Backend backend = make_backend("cpu", 1);
  const ArchiveShape shape{
      .lanes = 3, .pages = 16, .page = {1, 16}, .most_read = 4, .together = 2, .folder = directory.path};
  const auto take = [&](Region& region, auto&& use) {
    Archive archive(region, shape, *backend.ops, nullptr);
    Recall recall(region, shape, *backend.ops, {.question = 1, .most_tokens = 64}, 1);
    use(archive, recall);
  };
  const auto nothing = [](Archive&, Recall&) {};
  Region region(*backend.device, testing::counted([&](Region& r) { take(r, nothing); }));
  take(region, [](Archive& archive, Recall& recall) {
    std::array<Recall::Asking, 3> lanes{{{.lane = 0}, {.lane = 1}, {.lane = 2}}};
    CHECK_THROWS_WITH_AS(recall.choose_pages(Recall::Reader::kQuestion, &archive, lanes, {}),
                         doctest::Contains("more lanes"), InvariantError);
    CHECK(!recall.has_chosen(0));
    CHECK(recall.choose_pages(Recall::Reader::kQuestion, &archive, std::span(lanes).first(2), {}) == 0);
    CHECK(recall.has_chosen(1));
    CHECK(!recall.has_chosen(2));
  });
}
