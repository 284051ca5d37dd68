// infinipot-v in a session: the cap, the account, lanes of one length, what is kept of a stream that repeats. The
// arithmetic is compared with the published one in tests/python/test_infinipot_v.py.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

#include "support/allocation_counter.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"

namespace {

using namespace mosaic;
using mosaic::testing::AllocationScope;
using mosaic::testing::least_cap;
using mosaic::testing::PlayedStream;
using mosaic::testing::pressed_rounds;
using mosaic::testing::small_config;
using mosaic::testing::TemporaryDirectory;

const char* const kPolicy = "infinipot-v";

std::vector<TokenMeta> members(const KvMemory& memory, int lane) {
  const ClusterStore& store = memory.store();
  std::vector<TokenMeta> out;
  for (const ClusterId c : store.index(lane).live())
    for (PageId id = store.index(lane)[c].head; id != kNone; id = store.pages()[id].next) {
      const Page& page = store.pages()[id];
      const TokenMeta* meta = store.tiers().page(page.tier, page.slot).meta;
      out.insert(out.end(), meta, meta + page.count);
    }
  return out;
}

int full_pot(const KvMemory& memory) {
  int slots = 0;
  for (const TierSpec& tier : memory.plan().store.tiers) slots += tier.medium == Medium::disk ? 0 : tier.slots;
  return slots / memory.plan().store.lanes * kPageTokens;
}

TEST_CASE("infinipot-v is full attention while everything fits") {
  MemoryConfig config = small_config(8 << 20);
  config.packed = config.exact;
  config.window_frames = 3;
  PlayedStream stream(config, kPolicy);
  double worst = 0;
  for (int i = 0; i < 20; ++i) worst = std::max(worst, stream.frame(i % 5 == 4 ? 7 : 16, true));
  worst = std::max(worst, stream.ask(5, 3, false, true));
  CHECK(worst < 2e-5);
  CHECK(stream.memory->stats().tokens.dropped == 0);
}

TEST_CASE("lanes stay one length within their share, in time order, and all that is stored is read") {
  for (const CodecId packed : {CodecId::kFp16, CodecId::kInt4})
    for (const uint64_t spare : {uint64_t{0}, uint64_t{60} << 10})
      for (const int tokens : {16, 13, 1}) {
        INFO("packed " << std::string(codec_name(packed)) << ", spare " << spare << ", tokens " << tokens);
        MemoryConfig config = small_config();
        config.packed = packed;
        config.window_frames = 2;
        config.branch_tokens = 32;
        config.model.frame_tokens = tokens;
        config.cap_bytes = least_cap(config, kPolicy) + spare;
        PlayedStream stream(config, kPolicy);
        KvMemory& memory = *stream.memory;
        const int full = full_pot(memory);
        bool compressed = false;
        for (int i = 0; i < pressed_rounds(4000) / (tokens + 3); ++i) {
          stream.frame(i % 6 == 5 ? 1 + tokens / 2 : tokens);
          if (i % 9 == 0) stream.ask(3, 1, false);
          memory.check_invariants();
          const size_t length = members(memory, 0).size();
          for (int lane = 0; lane < memory.store().shape().lanes; ++lane) {
            const auto kept = members(memory, lane);
            if (full * 3 / 4 > tokens) CHECK(kept.size() == length);  // else a frame is more than what is kept
            CHECK(kept.size() <= static_cast<size_t>(full));
            for (size_t t = 1; t < kept.size(); ++t) CHECK(kept[t].position > kept[t - 1].position);
          }
          compressed |= memory.stats().counters.thinned_clusters > 0;
          if (compressed) CHECK(length + 16 >= static_cast<size_t>(full * 3 / 4));
        }
        CHECK(compressed);
        CHECK(stream.finite());
        CHECK(memory.stats().unread_pages == 0);
        CHECK(memory.stats().tokens.dropped > 0);
        CHECK(memory.stats().tokens.collapsed == 0);
      }
}

TEST_CASE("of a picture that stands still the place that changes is kept, and the newest frame whole") {
  MemoryConfig config = small_config();
  config.packed = config.exact;
  config.window_frames = 2;
  config.cap_bytes = least_cap(config, kPolicy) + (40 << 10);
  PlayedStream stream(config, kPolicy, {{"order", "tar"}});
  KvMemory& memory = *stream.memory;
  const std::vector<float> k = stream.normals(3 * 16 * stream.row());
  const int moving = 6;
  int64_t thinned = 0;
  for (int i = 0; i < 400; ++i) {
    stream.begin_frame(16);
    stream.k = k;
    for (int l = 0; l < 3; ++l)
      for (size_t e = 0; e < stream.row(); ++e)
        stream.k[static_cast<size_t>(l * 16 + moving) * stream.row() + e] = stream.normal();
    stream.attend_layers(3);
    memory.commit();
    stream.now_ms += 500;
    if (memory.stats().counters.thinned_clusters == thinned) continue;
    thinned = memory.stats().counters.thinned_clusters;
    if (i < 200) continue;
    for (int lane = 0; lane < 6; ++lane) {
      const auto kept = members(memory, lane);
      const int newest = kept.back().time_low;
      int moved = 0, others = 0, last = 0;
      std::set<int> frames;
      for (const TokenMeta& m : kept) {
        frames.insert(m.time_low);
        last += m.time_low == newest ? 1 : 0;
        (m.h * 4 + m.w == moving ? moved : others) += 1;
      }
      CHECK(last == 16);
      CHECK(moved == static_cast<int>(frames.size()));  // in every frame of which anything is left
      CHECK(moved * 15 > others);
    }
  }
  CHECK(thinned > 0);
}

uint64_t play(unsigned seed, CodecId packed, bool disk, const PolicySettings& settings) {
  TemporaryDirectory directory;
  MemoryConfig config = small_config();
  config.model.frame_tokens = 13;
  config.packed = packed;
  config.window_frames = 2;
  config.prefix_tokens = 3;
  config.branch_tokens = 24;
  if (disk) {
    config.disk_bytes = 96 << 10;
    config.spill_dir = directory.path;
  }
  config.cap_bytes = least_cap(config, kPolicy) + (20 << 10);
  PlayedStream stream(config, kPolicy, settings, seed);
  KvMemory& memory = *stream.memory;
  uint64_t digest = 1469598103934665603u;
  stream.prefix_block(3);
  for (int step = 0; step < pressed_rounds(250); ++step) {
    stream.noise = stream.below(4) == 0 ? 0.6f : 0.03f;
    if (stream.below(5) > 0) {
      stream.frame(1 + stream.below(13), false, 1 + stream.below(7));  // grids of any shape
    } else {
      stream.ask(1 + stream.below(5), stream.below(3), stream.below(2) == 0, false,
                 stream.below(2) == 0 ? INT32_MIN : stream.below(stream.now_ms + 1));
    }
    memory.check_invariants();
    for (const float f : stream.out) digest = (digest ^ std::bit_cast<uint32_t>(f)) * 1099511628211u;
  }
  CHECK(stream.finite());
  CHECK(memory.stats().counters.thinned_clusters > 0);
  CHECK(memory.stats().taken_bytes <= config.cap_bytes);
  CHECK(memory.stats().tokens.spilled == 0);
  return digest;
}

TEST_CASE("random sessions on grids of any shape keep every invariant and answer the same bits again") {
  for (const char* order : {"both", "tar", "van", "reversed", "uniform"})
    for (const CodecId packed : {CodecId::kFp16, CodecId::kInt4, CodecId::kInt8}) {
      INFO("order " << order << ", packed " << std::string(codec_name(packed)));
      const bool disk = packed == CodecId::kInt8;
      CHECK(play(5, packed, disk, {{"order", order}}) == play(5, packed, disk, {{"order", order}}));
    }
}

TEST_CASE("numbers that half precision cannot hold are kept or dropped, never a defect") {
  MemoryConfig config = small_config();
  config.window_frames = 2;
  config.packed = config.exact;
  config.overflow = Overflow::kSaturate;
  config.cap_bytes = least_cap(config, kPolicy) + (20 << 10);
  PlayedStream stream(config, kPolicy);
  for (int i = 0; i < 200; ++i) {
    stream.begin_frame(16);
    for (size_t e = 0; e < stream.k.size(); e += 3) stream.k[e] = i % 2 == 0 ? 1e30f : -1e30f;
    for (size_t e = 0; e < stream.v.size(); e += 5) stream.v[e] = 1e38f;
    stream.attend_layers(3);
    stream.memory->commit();
    stream.now_ms += 500;
    stream.memory->check_invariants();
  }
  CHECK(stream.memory->stats().counters.thinned_clusters > 0);
}

TEST_CASE("compressing allocates nothing") {
  MemoryConfig config = small_config(300 << 10);
  config.window_frames = 3;
  PlayedStream stream(config, kPolicy);
  stream.frame(16);
  std::vector<float> out(stream.out.size());
  const auto at = [&](int l) { return static_cast<size_t>(l) * 16; };
  const AllocationScope scope;
  for (int i = 1; i < pressed_rounds(1500); ++i) {
    stream.memory->begin_frame({i * 500, stream.embedding.data(), 16, 4});
    for (int l = 0; l < 3; ++l)
      stream.memory->attend(l, &stream.q[at(l) * stream.q_row()], &stream.k[at(l) * stream.row()],
                            &stream.v[at(l) * stream.row()], out.data());
    stream.memory->commit();
  }
  const uint64_t count = scope.count();
  CHECK(count == 0);
  CHECK(stream.memory->stats().counters.thinned_clusters > 0);
}

TEST_CASE("settings of infinipot-v out of range are refused by name") {
  const auto refusal = [](const PolicySettings& settings) -> std::string {
    try {
      make_policy(kPolicy, settings);
    } catch (const InvalidInput& e) {
      return e.what();
    }
    return "";
  };
  CHECK(refusal({{"alpha", 0.3}, {"keep", 0.9}, {"recent", 0.25}, {"pool", 0}, {"order", "van"}}).empty());
  for (const char* name : {"alpha", "keep", "recent", "pool"})
    for (const double value : {-0.1, 1.5, std::nan("")})
      CHECK(refusal({{name, value}}).find(name) != std::string::npos);
  CHECK(refusal({{"order", "best"}}).find("reversed") != std::string::npos);
  CHECK(refusal({{"order", 1.0}}).find("order") != std::string::npos);
}

}  // namespace
