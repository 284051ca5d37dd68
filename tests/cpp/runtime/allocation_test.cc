// Everything is taken when a session is built: append and ask over 5,000 frames allocate nothing.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "support/allocation_counter.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"

namespace {

using namespace mosaic;
using mosaic::testing::AllocationScope;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;
using mosaic::testing::TemporaryDirectory;

// Blocks are imagined beforehand; what is left is the memory's own work.
struct Rehearsed {
  std::vector<float> q, k, v, embedding;
  int tokens;
};

uint64_t allocations_of(const MemoryConfig& config, const std::string& policy, int frames, MemoryStats* stats,
                        const PolicySettings& settings = {}) {
  PlayedStream stream(config, policy, settings, 3);
  stream.prototypes = 12;
  stream.noise = 0.15f;
  std::vector<Rehearsed> blocks;
  for (int i = 0; i < 48; ++i) {
    const int tokens = i % 8 == 7 ? 5 : 16;
    stream.imagine(tokens);
    blocks.push_back({stream.q, stream.k, stream.v, stream.rooms[static_cast<size_t>(i / 8)], tokens});
  }
  stream.imagine(16);
  std::vector<float> out(stream.out.size());
  KvMemory& memory = *stream.memory;
  const size_t q_row = stream.q_row(), row = stream.row();
  const auto attend = [&](const Rehearsed& b) {
    const auto n = static_cast<size_t>(b.tokens);
    for (int l = 0; l < config.model.layers; ++l) {
      const auto at = static_cast<size_t>(l) * n;
      memory.attend(l, &b.q[at * q_row], &b.k[at * row], &b.v[at * row], out.data());
    }
    memory.commit();
  };
  const AllocationScope scope;
  for (int i = 0; i < frames; ++i) {
    const Rehearsed& b = blocks[static_cast<size_t>((i * 7 + i / 48) % 48)];
    memory.begin_frame({i * 500, b.embedding.data(), b.tokens, 4});
    attend(b);
    if (i % 40 != 39) continue;
    memory.open_question(i % 80 == 39 ? INT32_MIN : i * 250);
    for (int pass = 0; pass < 3; ++pass) {
      const Rehearsed& text = blocks[static_cast<size_t>(7 + 8 * pass)];
      memory.begin_text(text.tokens);
      attend(text);
    }
    memory.close_question(i % 120 == 39);
    (void)memory.stats();
  }
  const uint64_t count = scope.count();
  memory.check_invariants();
  *stats = memory.stats();
  return count;
}

MemoryConfig tiny_model() {
  MemoryConfig c = small_config(1 << 20);
  c.model.layers = 4;
  c.model.q_heads = 4;
  c.model.kv_heads = 2;
  c.model.head_dim = c.model.rope.head_dim = c.model.rope.rotary_dim = 32;
  c.model.video_window = 4;
  return c;
}

TEST_CASE("append and ask allocate nothing over 5,000 frames, with int4 and with a disk tier" *
          doctest::test_suite("counts")) {
  const int frames = mosaic::testing::rounds(5000);
  TemporaryDirectory directory;
  for (const bool disk : {false, true}) {
    MemoryConfig config = tiny_model();
    if (disk) {
      config.disk_bytes = 1 << 20;
      config.spill_dir = directory.path;
    }
    MemoryStats stats;
    const uint64_t count = allocations_of(config, "mosaic", frames, &stats);
    INFO("disk " << disk);
    CHECK(count == 0);
    CHECK(stats.frames == frames);
    CHECK(stats.taken_bytes <= stats.cap_bytes);
    CHECK(stats.tokens.dropped == 0);
    CHECK(stats.tokens.quantised > 0);
    if (disk) CHECK(stats.counters.fetched_pages > 0);
  }
  const int fewer = std::max(frames / 5, 400);  // enough for the disk to be used
  for (const std::string& policy : policy_names()) {
    const PolicyNeeds needs = make_policy(policy, {})->needs();
    if (needs.share.refuses || policy == "mosaic") continue;  // the frames are more than it holds; played above
    MemoryStats stats;
    INFO(policy);
    CHECK(allocations_of(tiny_model(), policy, fewer, &stats) == 0);
    if (!needs.selects()) continue;  // no disk
    MemoryConfig config = tiny_model();
    config.cap_bytes = 2 << 20;
    config.disk_bytes = 1 << 20;
    config.spill_dir = directory.path;
    CHECK(allocations_of(config, policy, fewer, &stats) == 0);
    CHECK(stats.counters.fetched_pages > 0);
    if (!needs.attends_means()) CHECK(stats.tokens.collapsed == 0);
  }
  for (const bool disk : {false, true}) {
    MemoryConfig config = tiny_model();
    if (disk) config.cap_bytes = 2 << 20, config.disk_bytes = 1 << 20, config.spill_dir = directory.path;
    MemoryStats stats;
    CHECK(allocations_of(config, "edge", fewer, &stats, {{"unit", "summaries"}}) == 0);
    if (disk) CHECK(stats.counters.fetched_pages > 0);
  }
  for (const auto& [policy, settings] :
       {std::pair<const char*, PolicySettings>{"edge", {}}, {"mosaic", {{"unit", "tokens"}}}}) {
    MemoryConfig config = tiny_model();
    config.cap_bytes = 2 << 20, config.disk_bytes = 16 << 20, config.spill_dir = directory.path;
    MemoryStats stats;
    INFO(policy);
    CHECK(allocations_of(config, policy, fewer, &stats, settings) == 0);
    CHECK(stats.counters.fetched_pages > 0);
  }
}

}  // namespace
