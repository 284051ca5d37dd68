// Policies by what they choose: names and settings, tolerances, what window and uniform keep, budgets of mosaic.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "support/played_stream.h"
#include "support/selected.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::select;
using mosaic::testing::Selected;
using mosaic::testing::small_config;

std::string refusal(const std::string& policy, const PolicySettings& settings) {
  try {
    make_policy(policy, settings);
  } catch (const InvalidInput& e) {
    return e.what();
  }
  return "";
}

// Frame numbers kept in the store by a policy that keeps frames whole.
std::set<int> kept_frames(const KvMemory& memory, int lane = 0) {
  std::set<int> kept;
  const ClusterIndex& index = memory.store().index(lane);
  for (const ClusterId c : index.live()) kept.insert(index[c].born);
  return kept;
}

MemoryConfig tight() {
  MemoryConfig c = small_config(200 << 10);
  c.window_frames = 3;
  c.packed = CodecId::kFp16;
  c.retrieve_tokens = 64;
  return c;
}

TEST_CASE("every policy is found by its name, and an unknown one is told what there is") {
  for (const std::string& name : policy_names()) {
    CHECK(std::string(make_policy(name, {})->name()) == name);
    CHECK(refusal(name, {{"no_such_setting", 1}}).find("no_such_setting") != std::string::npos);
  }
  const std::string message = refusal("lru", {});
  CHECK(message.find("lru") != std::string::npos);
  for (const std::string& name : policy_names()) CHECK(message.find(name) != std::string::npos);
}

TEST_CASE("a setting out of its range is refused with the range, and NaN with it") {
  CHECK(refusal("mosaic", {{"thin", 1.5}}).find("thin") != std::string::npos);
  CHECK(refusal("mosaic", {{"thin", std::nan("")}}).find("thin") != std::string::npos);
  CHECK(refusal("mosaic", {{"n0", 0}}).find("n0") != std::string::npos);
  CHECK(refusal("mosaic", {{"tau_max", 0.4}, {"read_scenes", 3}}).empty());
}

TEST_CASE("a count that is no whole number and a flag that is neither on nor off are refused, not rounded") {
  CHECK(refusal("edge", {{"unit", "summaries"}, {"frames", 1.4}}).find("frames=1.4") != std::string::npos);
  CHECK(refusal("edge", {{"unit", "summaries"}, {"frames", 2}}).empty());
  CHECK(refusal("infinipot-v", {{"pool", 0.3}}).find("pool=0.3") != std::string::npos);
  CHECK(refusal("infinipot-v", {{"pool", 0}}).empty());
}

TEST_CASE("tau falls from tau_max to tau_min with the count, as published when it is fixed") {
  const auto p = make_policy("mosaic", {{"tau", "fixed"}, {"tau_max", 0.5}, {"tau_min", 0.2}, {"n0", 32}});
  for (const int n : {1, 10, 32, 100, 1000})
    CHECK(p->tolerance(0, n) == doctest::Approx(0.2 + 0.3 * std::exp(-n / 32.0)));
  CHECK(p->radius(0) == std::numeric_limits<float>::infinity());
}

TEST_CASE("window keeps the newest frames, the same in every layer, and drops the rest") {
  PlayedStream stream(tight(), "window");
  for (int i = 0; i < 60; ++i) stream.frame(16);
  const std::set<int> kept = kept_frames(*stream.memory);
  REQUIRE(!kept.empty());
  CHECK(*kept.rbegin() == 56);  // 57, 58, 59 are in the window
  CHECK(*kept.rbegin() - *kept.begin() + 1 == static_cast<int>(kept.size()));
  for (int lane = 1; lane < 3; ++lane) CHECK(kept_frames(*stream.memory, lane) == kept);
  CHECK(stream.memory->stats().tokens.dropped == (56 - static_cast<int>(kept.size())) * 16 * 3);
}

TEST_CASE("uniform keeps frames evenly spread over the whole stream") {
  PlayedStream stream(tight(), "uniform");
  for (int i = 0; i < 300; ++i) stream.frame(16);
  const std::set<int> kept = kept_frames(*stream.memory);
  REQUIRE(kept.size() >= 3);
  const int stride = *std::next(kept.begin()) - *kept.begin();
  int last = -1;
  for (const int frame : kept) {
    if (last >= 0) CHECK(frame - last == stride);
    last = frame;
  }
  CHECK(*kept.begin() <= stride);
  CHECK(*kept.rbegin() + stride > 296);
  for (int lane = 1; lane < 3; ++lane) CHECK(kept_frames(*stream.memory, lane) == kept);
}

TEST_CASE("full refuses the frame that does not fit, changes nothing, and still answers") {
  PlayedStream stream(tight(), "full");
  std::string message;
  int frames = 0;
  for (; frames < 500 && message.empty(); ++frames) {
    const MemoryStats before = stream.memory->stats();
    try {
      stream.frame(16, frames % 8 == 0);
    } catch (const MemoryCapError& e) {
      message = e.what();
      const MemoryStats after = stream.memory->stats();
      CHECK(std::memcmp(&before.tokens, &after.tokens, sizeof before.tokens) == 0);
      CHECK(before.frames == after.frames);
      CHECK(before.clusters == after.clusters);
    }
  }
  CHECK(message.find("memory=") != std::string::npos);
  CHECK(message.find("full") != std::string::npos);
  stream.memory->check_invariants();
  CHECK(stream.ask(4, 2, false, true) < 2e-5);  // and the answer is still full attention
  CHECK_THROWS_AS(stream.frame(16), MemoryCapError);
  CHECK(stream.memory->stats().tokens.dropped == 0);
}

TEST_CASE("mosaic reads no more members than the budget, the best first") {
  MemoryConfig config = small_config(1 << 20);
  config.retrieve_tokens = 64;
  PlayedStream stream(config, "mosaic");
  for (int i = 0; i < 80; ++i) stream.frame(16);
  const ClusterIndex& index = stream.memory->store().index(1);
  for (const int budget : {0, 1, 16, 64, 100000}) {
    const Selected s = select(stream, 1, budget);
    int members = 0;
    for (const int id : s.chosen) members += index[id].paged;
    CHECK(members <= budget);
    CHECK(std::is_sorted(s.score.rbegin(), s.score.rend()));
    CHECK(std::set<int>(s.chosen.begin(), s.chosen.end()).size() == s.chosen.size());
    if (budget == 100000) CHECK(s.chosen.size() == index.live().size());
  }
}

TEST_CASE("mosaic clusters a repeating stream into about as many clusters as it has kinds of tokens") {
  PlayedStream stream(small_config(2 << 20), "mosaic");
  stream.prototypes = 6;
  for (int i = 0; i < 100; ++i) stream.frame(16);
  for (int lane = 0; lane < 3; ++lane) {
    const ClusterIndex& index = stream.memory->store().index(lane);
    CHECK(index.live().size() >= 6);
    CHECK(index.live().size() <= 60);
  }
  stream.memory->check_invariants();
}

}  // namespace
