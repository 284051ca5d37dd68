// rekv and mukv under pressure: what yields, in which order, and that nothing is dropped while there is a colder place.
// Which tokens mukv keeps and what both read is compared with float64 versions in tests/python.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "policy/mukv_search.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;
using mosaic::testing::TemporaryDirectory;
using mukv::Kind;
using mukv::kind_of;

std::set<int32_t> born(const KvMemory& memory, int lane) {
  std::set<int32_t> found;
  const ClusterIndex& index = memory.store().index(lane);
  for (const ClusterId c : index.live()) found.insert(index[c].born);
  return found;
}

// What the policy would let go first.
std::vector<Eviction> eviction(PlayedStream& stream, Need::Kind kind, int lane, int32_t frame) {
  std::vector<Eviction> out(256);
  auto& policy = const_cast<Policy&>(stream.memory->policy());
  out.resize(static_cast<size_t>(policy.evict(stream.memory->store(), {kind, lane, 1, frame}, out.data(), 256)));
  return out;
}

TEST_CASE("rekv keeps the newest frames, the same in every layer, on disk first when there is one") {
  for (const bool disk : {false, true}) {
    TemporaryDirectory directory;
    MemoryConfig config = small_config(400 << 10);
    config.window_frames = 3;
    config.branch_tokens = 32;
    if (disk) config.disk_bytes = 4 << 20, config.spill_dir = directory.path;
    PlayedStream stream(config, "rekv");
    const int slots = stream.memory->plan().store.tiers.front().slots / 3;  // frames of one page in three layers
    int whole = 0;                                                          // frames while nothing was dropped
    for (int i = 0; i < 240; ++i) {
      stream.frame(16);
      if (stream.memory->stats().tokens.dropped == 0) whole = i;
      if (i % 8 == 0) {
        stream.memory->check_invariants();
        const std::set<int32_t> kept = born(*stream.memory, 0);
        for (int lane = 1; lane < 3; ++lane) CHECK(born(*stream.memory, lane) == kept);
        if (!kept.empty()) CHECK(*kept.rbegin() - *kept.begin() + 1 == static_cast<int>(kept.size()));
      }
    }
    CHECK(*born(*stream.memory, 0).rbegin() == 236);
    const MemoryStats stats = stream.memory->stats();
    CHECK(stats.tokens.collapsed == 0);
    CHECK(stats.tokens.dropped > 0);
    CHECK(static_cast<int>(born(*stream.memory, 0).size()) >= slots - 1);
    if (disk) {
      CHECK(stats.tokens.spilled > 0);
      CHECK(whole > 2 * slots);
    }
    stream.ask(5, 2, false);
    CHECK(stream.finite());
  }
}

TEST_CASE("a row of mukv's index comes free by its lane's oldest segment, with all its blocks and no other's") {
  PlayedStream stream(small_config(4 << 20), "mukv", {{"patch", 2}});
  for (int i = 0; i < 41; ++i) stream.frame(16);
  const int32_t next = 33;
  for (int lane = 0; lane < 3; ++lane) {
    const ClusterIndex& index = stream.memory->store().index(lane);
    const std::vector<Eviction> out = eviction(stream, Need::Kind::kClusters, lane, next);
    std::set<ClusterId> oldest, gone;
    for (const ClusterId c : index.live())
      if (index[c].born == 1) oldest.insert(c);
    for (const Eviction& r : out) {
      CHECK(r.kind == Eviction::Kind::kDrop);
      CHECK(r.lane == lane);
      gone.insert(r.cluster);
    }
    CHECK(oldest.size() > 16);  // four super-patches of each frame, frames, a segment
    CHECK(gone == oldest);
    CHECK(eviction(stream, Need::Kind::kClusters, lane, 1).empty());  // the segment in hand never yields to itself
  }
}

TEST_CASE("pages of mukv come free by segments before frames before patches, each the oldest") {
  const PolicySettings none, no_segment{{"segment_share", 0}, {"frame_share", 0.5}};
  const PolicySettings only_patch{{"segment_share", 0}, {"frame_share", 0}, {"patch_share", 0.5}};
  int expected = mukv::kSegment;
  for (const PolicySettings& settings : {none, no_segment, only_patch}) {
    PlayedStream stream(small_config(4 << 20), "mukv", settings);
    for (int i = 0; i < 41; ++i) stream.frame(16);
    const std::vector<Eviction> out = eviction(stream, Need::Kind::kSlots, 1, 37);
    REQUIRE(out.size() == 1);
    const Cluster& cluster = stream.memory->store().index(out[0].lane)[out[0].cluster];
    CHECK(out[0].kind == Eviction::Kind::kDrop);
    CHECK(out[0].lane == 1);
    CHECK(kind_of(cluster.tag) == expected);
    CHECK(cluster.born == 1);
    CHECK(cluster.paged > 0);
    --expected;
  }
}

TEST_CASE(
    "mukv under any cap keeps every invariant, drops only what has no colder place, and old segments get sparse") {
  for (const bool disk : {false, true}) {
    for (const uint64_t cap : {420u << 10, 600u << 10, 1200u << 10, 4096u << 10}) {
      INFO("cap " << cap << ", disk " << disk);
      TemporaryDirectory directory;
      MemoryConfig config = small_config(cap);
      config.model.video_window = 3;
      config.window_frames = 3;
      config.branch_tokens = 32;
      config.retrieve_tokens = 64;
      if (disk) config.disk_bytes = 8 << 20, config.spill_dir = directory.path;
      PlayedStream stream(config, "mukv");
      for (int i = 0; i < 240; ++i) {
        stream.frame(i % 9 == 5 ? 5 : 16);
        if (i % 12 == 11) {
          stream.memory->check_invariants();
          stream.ask(1 + i % 5, 1, false);
          CHECK(stream.finite());
        }
      }
      const MemoryStats stats = stream.memory->stats();
      CHECK(stats.taken_bytes <= stats.cap_bytes);
      CHECK(stats.tokens.collapsed == 0);
      for (int lane = 0; lane < 3; ++lane) {
        const ClusterIndex& index = stream.memory->store().index(lane);
        std::map<int, std::set<int32_t>> of, paged;  // segments that have a block of the kind, and one with pages
        for (const ClusterId c : index.live()) {
          of[kind_of(index[c].tag)].insert(index[c].born);
          if (index[c].paged > 0) paged[kind_of(index[c].tag)].insert(index[c].born);
        }
        REQUIRE(!of[mukv::kPatch].empty());
        CHECK(*of[mukv::kPatch].rbegin() >= 233);  // the newest segment is there
        if (cap > 420u << 10) CHECK(paged[mukv::kSegment].contains(233));
        for (const Kind kind : {mukv::kPatch, mukv::kSegment}) {  // what went is older than all that has pages
          const int32_t first = paged[kind].empty() ? 233 : *paged[kind].begin();
          for (int32_t s = first; s <= 233; s += 4) CHECK(of[kind].contains(s));
        }
        if (!paged[mukv::kSegment].empty()) CHECK(*of[mukv::kPatch].begin() <= *paged[mukv::kSegment].begin());
      }
    }
  }
}

}  // namespace
