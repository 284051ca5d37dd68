// Long random sequences of everything a session can do, with the invariants recounted after every step.
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <string>

#include "policy/by_worth.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"

namespace {

using namespace mosaic;
using mosaic::testing::least_cap;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;
using mosaic::testing::TemporaryDirectory;

struct Layout {
  const char* name;
  CodecId packed;
  bool disk;
  uint64_t spare;  // above the least cap that works
};
constexpr Layout kLayouts[] = {
    {"exact only", CodecId::kFp16, false, 20 << 10},     {"exact and int4", CodecId::kInt4, false, 40 << 10},
    {"int8 and disk", CodecId::kInt8, true, 30 << 10},   {"the least cap", CodecId::kInt4, false, 0},
    {"the least cap and disk", CodecId::kInt4, true, 0},
};

MemoryConfig layout_config(const Layout& layout, const std::string& policy, const std::string& spill_dir,
                           const PolicySettings& settings) {
  MemoryConfig c = small_config();
  c.model.frame_tokens = 13;
  c.packed = layout.packed;
  c.window_frames = 2;
  c.prefix_tokens = 3;
  c.branch_tokens = 24;
  c.max_cluster_tokens = 20;
  c.retrieve_tokens = 64;
  c.scenes = 4;
  if (layout.disk) {
    c.disk_bytes = 96 << 10;
    c.spill_dir = spill_dir;
  }
  if (make_policy(policy, settings)->needs().group.records && !codec_is_record(*c.packed)) c.packed.reset();
  c.cap_bytes = least_cap(c, policy, settings) + layout.spare;
  return c;
}

// Everything that was answered, as one number, so that two runs can be compared bit by bit.
struct Digest {
  uint64_t value = 1469598103934665603u;
  void add(const std::vector<float>& x) {
    for (const float f : x) value = (value ^ std::bit_cast<uint32_t>(f)) * 1099511628211u;
  }
  void add(int64_t x) { value = (value ^ static_cast<uint64_t>(x)) * 1099511628211u; }
};

uint64_t play(const Layout& layout, const std::string& policy, unsigned seed, int steps,
              const PolicySettings& settings = {}) {
  TemporaryDirectory directory;
  const MemoryConfig config = layout_config(layout, policy, directory.path, settings);
  PlayedStream stream(config, policy, settings, seed);
  KvMemory& memory = *stream.memory;
  CHECK(memory.region().used() <= config.cap_bytes);
  Digest digest;
  bool refused = false;
  int64_t frames = 0;
  if (seed % 2 == 0) stream.prefix_block(3);
  for (int step = 0; step < steps; ++step) {
    const int what = stream.below(20);
    if (what < 13) {
      if (stream.below(6) == 0) stream.room = stream.below(6);
      stream.noise = stream.below(4) == 0 ? 0.6f : 0.03f;
      try {
        stream.frame(1 + stream.below(config.model.frame_tokens));
        ++frames;
        digest.add(stream.out);
      } catch (const MemoryCapError&) {
        refused = true;
        CHECK(policy == "full");
      }
    } else if (what < 16) {
      const int32_t since = stream.below(3) == 0 ? stream.below(stream.now_ms + 1) : INT32_MIN;
      stream.open_question(since);
      const int passes = 1 + stream.below(4);
      int room = config.branch_tokens;
      for (int p = 0; p < passes && room > 0; ++p) {
        const int tokens = p == 0 ? 1 + stream.below(std::min(room, 9)) : 1;
        stream.pass(tokens);
        room -= tokens;
        CHECK(stream.finite());
        digest.add(stream.out);
        memory.check_invariants();
      }
      stream.close_question(stream.below(2) == 0);
    } else if (what < 18) {  // a block that is given up half way
      const bool asking = stream.below(2) == 0;
      if (asking) stream.open_question();
      bool begun = true;
      try {
        if (asking) {
          stream.imagine(2);
          memory.begin_text(2);
        } else {
          stream.begin_frame(1 + stream.below(config.model.frame_tokens));
        }
      } catch (const MemoryCapError&) {
        begun = false;
        refused = true;
      }
      if (begun) {
        stream.attend_layers(stream.below(config.model.layers + 1));
        memory.abort();
      }
      if (asking) stream.close_question(true);
    } else {  // NaN or infinity in one number of one layer
      const bool asking = stream.below(2) == 0;
      if (asking) stream.open_question();
      bool begun = true;
      try {
        if (asking) {
          stream.imagine(2);
          memory.begin_text(2);
        } else {
          stream.begin_frame(3);
        }
      } catch (const MemoryCapError&) {
        begun = false;
        refused = true;
      }
      if (begun) {
        std::vector<float>* const poisoned[] = {&stream.q, &stream.k, &stream.v};
        std::vector<float>& x = *poisoned[stream.below(3)];
        x[static_cast<size_t>(stream.below(static_cast<int>(x.size())))] =
            stream.below(2) == 0 ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
        CHECK_THROWS_AS(stream.attend_layers(config.model.layers), InvalidInput);
      }
      if (asking) stream.close_question(false);
    }
    memory.check_invariants();
    const MemoryStats s = memory.stats();
    CHECK(s.taken_bytes <= config.cap_bytes);
    CHECK(s.frames == frames);
    int64_t seen = 0;
    for (const auto& token : stream.video) seen += token.time >= 0 ? 1 : 0;
    const int lanes = memory.plan().window.lanes;
    CHECK(s.tokens.seen == (seen + static_cast<int64_t>(stream.prefix.size())) * lanes);
    if (policy == "mosaic") CHECK(s.tokens.dropped == 0);
    if (!memory.policy().needs().attends_means()) CHECK(s.tokens.collapsed == 0);
    if (policy == "full") CHECK(s.tokens.dropped + s.tokens.collapsed == 0);
    digest.add(s.tokens.quantised);
    digest.add(s.tokens.collapsed);
    digest.add(s.clusters);
  }
  memory.drain();
  memory.check_invariants();
  if (policy == "full" && layout.spare == 0 && steps >= 90) CHECK(refused);
  return digest.value;
}

TEST_CASE("random sessions keep every invariant, under every policy and tier layout") {
  for (const Layout& layout : kLayouts)
    for (const std::string& policy : policy_names())
      for (int seed = 1; seed <= mosaic::testing::pressed_rounds(4); ++seed) {
        INFO(std::string(layout.name) << ", policy " << policy << ", seed " << seed);
        play(layout, policy, static_cast<unsigned>(seed), mosaic::testing::emulated_rounds(120));
      }
}

TEST_CASE("random sessions keep every invariant whatever a token is worth") {
  for (const Layout& layout : kLayouts)
    for (const Score& score : Score::all()) {
      INFO(std::string(layout.name) << ", score=" << score.name);
      play(layout, "edge", 5, mosaic::testing::emulated_rounds(120), {{"score", score.name}});
    }
}

TEST_CASE("two runs with one seed answer the same bits, with a disk tier too") {
  for (const Layout& layout : kLayouts)
    for (const std::string& policy : policy_names()) {
      INFO(std::string(layout.name) << ", policy " << policy);
      const int steps = mosaic::testing::pressed_rounds(90);
      CHECK(play(layout, policy, 7, steps) == play(layout, policy, 7, steps));
    }
}

}  // namespace
