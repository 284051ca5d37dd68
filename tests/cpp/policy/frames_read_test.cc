// What a frame reads while it streams under policies that retrieve, and which tokens of a question they retrieve by.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "support/memory_fakes.h"
#include "support/played_stream.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;
using mosaic::testing::TemporaryDirectory;

// Room for all, and a question that reads little of it.
MemoryConfig roomy() {
  MemoryConfig c = small_config(16 << 20);
  c.exact = CodecId::kFp32;
  c.packed = CodecId::kFp32;
  c.retrieve_tokens = 32;
  c.window_frames = 2;
  c.prefix_tokens = 5;
  c.branch_tokens = 64;
  return c;
}

struct Retrieving {
  const char* name;
  PolicySettings settings;  // under which nothing is given up
};
const Retrieving kRetrieving[] = {
    {"rekv", {}}, {"mosaic", {}}, {"mukv", {{"segment_share", 1}, {"frame_share", 1}, {"patch_share", 1}}}};

PolicySettings with(PolicySettings settings, const char* name, SettingValue value) {
  settings.emplace_back(name, value);
  return settings;
}

// The largest difference of the newest frames' answers to full attention over all that was ever seen.
double furthest_from_full(const Retrieving& policy, const char* frames_read) {
  PlayedStream stream(roomy(), policy.name, with(policy.settings, "frames_read", frames_read), 3);
  stream.prefix_block(5);
  double worst = 0;
  for (int i = 0; i < 24; ++i) {
    stream.room = (i / 3) % 4;
    worst = std::max(worst, stream.frame(i % 4 == 3 ? 15 : 16, i > 16));
  }
  stream.memory->check_invariants();
  return worst;
}

TEST_CASE("a frame reads all that is kept in memory, however little of it a question reads") {
  for (const Retrieving& policy : kRetrieving) {
    INFO(std::string(policy.name));
    CHECK(furthest_from_full(policy, "kept") < 1e-5);
    CHECK(furthest_from_full(policy, "chosen") > 1e-3);
  }
}

TEST_CASE("a frame that reads what is kept reads every token that memory holds, and asks the disk for none") {
  for (const char* name : {"rekv", "mukv", "mosaic"}) {
    INFO(std::string(name));
    TemporaryDirectory directory;
    MemoryConfig config = small_config(500 << 10);
    config.window_frames = 3;
    config.branch_tokens = 32;
    config.retrieve_tokens = 48;
    config.disk_bytes = 8 << 20;
    config.spill_dir = directory.path;
    config.summaries = false;
    PlayedStream stream(config, name);
    bool spilled = false;
    for (int i = 0; i < 70; ++i) {
      stream.frame(16);
      stream.memory->drain();
      const MemoryStats before = stream.memory->stats();
      stream.begin_frame(16);
      stream.attend_layers(config.model.layers);
      stream.memory->commit();
      stream.now_ms += 500;
      const MemoryStats after = stream.memory->stats();
      spilled |= before.tokens.spilled > 0;
      CHECK(after.frame_reads == before.tokens.exact + before.tokens.quantised);
      CHECK(after.unread_pages == before.unread_pages);
    }
    CHECK(spilled);
  }
}

TEST_CASE("a frame that reads the newest tokens reads as many of the store's beside what never yields") {
  const int lanes = 3, frame = 16;
  for (const int newest : {1, 48, 100}) {
    PlayedStream stream(roomy(), "rekv", {{"frames_read", "newest"}, {"newest_tokens", newest}});
    stream.prefix_block(5);
    for (int i = 0; i < 40; ++i) stream.frame(frame);
    const int fixed = 5 + frame + 2 * frame;  // prefix, first frame, window
    CHECK(stream.memory->stats().frame_reads == lanes * (fixed + newest / frame * frame));
  }
}

// The answers of a question of 9 tokens, the first 3 and the last 2 the template's, whose queries of rows `changed` are
// other ones.
std::vector<float> answers(const Retrieving& policy, const char* query, const std::vector<int>& changed) {
  PlayedStream stream(roomy(), policy.name, with(policy.settings, "query", query), 5);
  stream.prototypes = 16;
  stream.noise = 0.5f;
  for (int i = 0; i < 24; ++i) {
    stream.room = (i / 3) % 4;
    stream.frame(16);
  }
  stream.memory->open_question();
  stream.imagine(9);
  for (const int row : changed)
    for (int l = 0; l < stream.config.model.layers; ++l)
      for (size_t e = 0; e < stream.q_row(); ++e)
        stream.q[static_cast<size_t>(l * 9 + row) * stream.q_row() + e] = 30 * stream.normal();
  stream.memory->begin_text(9, 3, 2);
  stream.attend_layers(stream.config.model.layers);
  stream.memory->commit();
  stream.memory->close_question(false);
  return stream.out;
}

// Whether the answers of one token are the same, bit for bit, in all layers.
bool same(const std::vector<float>& a, const std::vector<float>& b, size_t row) {
  const size_t d = a.size() / 27;  // 3 layers of 9 tokens
  for (size_t l = 0; l < 3; ++l)
    if (std::memcmp(&a[(l * 9 + row) * d], &b[(l * 9 + row) * d], d * sizeof(float)) != 0) return false;
  return true;
}

// A query changes the answer of its own token, and those of others only through what is read.
TEST_CASE("what a question reads is chosen by its bare tokens, by the last of them, or by all as the setting says") {
  const std::vector<int> around = {0, 1, 2, 7, 8}, but_last = {0, 1, 2, 3, 4, 5, 7, 8};
  for (const Retrieving& policy : kRetrieving) {
    INFO(std::string(policy.name));
    const auto unchanged = [&](const char* query, const std::vector<int>& changed) {
      const std::vector<float> before = answers(policy, query, {}), after = answers(policy, query, changed);
      return same(before, after, 6);
    };
    CHECK(unchanged("question", around));
    CHECK_FALSE(unchanged("question", but_last));
    CHECK(unchanged("last", but_last));
    CHECK_FALSE(unchanged("mean", around));
  }
}

TEST_CASE("a template that leaves nothing of a question is refused, and the next block is as if it never was") {
  PlayedStream stream(roomy(), "rekv");
  stream.frame(16);
  stream.memory->open_question();
  CHECK_THROWS_AS(stream.memory->begin_text(5, 3, 2), InvalidInput);
  CHECK_THROWS_AS(stream.memory->begin_text(5, -1, 0), InvalidInput);
  CHECK_THROWS_AS(stream.memory->begin_text(5, 2147483647, 2147483647), InvalidInput);
  CHECK(stream.pass(5, true) < 1e-5);
  stream.close_question(false);
}

}  // namespace
