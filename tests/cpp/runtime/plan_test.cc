// The plan over random models, settings, policies and caps: what a cap accepts every larger one does, and the number that a
// refusal names is the least that is accepted, to the byte and as it is printed.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <string>

#include "core/error.h"
#include "runtime/plan.h"
#include "runtime/plan_parts.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

struct Draw {
  std::mt19937 random;
  explicit Draw(unsigned seed) : random(seed) {}
  template <class T>
  T one_of(std::initializer_list<T> of) {
    return *(of.begin() + random() % of.size());
  }
  bool chance(int percent) { return static_cast<int>(random() % 100) < percent; }

  ModelShape model() {
    ModelShape m;
    m.layers = one_of({1, 2, 5, 28});
    m.kv_heads = one_of({1, 2, 3, 8});
    m.q_heads = m.kv_heads * one_of({1, 2, 7});
    m.head_dim = one_of({2, 8, 20, 64, 128});
    m.rope.head_dim = m.rope.rotary_dim = m.head_dim;
    if (m.head_dim >= 8 && chance(30)) {
      m.rope.sections[0] = m.rope.sections[1] = 1;
      m.rope.sections[2] = m.head_dim / 2 - 2;
      m.rope.grid_follows_time = chance(50);
    }
    m.embedding_dim = one_of({1, 5, 64, 1024});
    m.frame_tokens = one_of({1, 6, 13, 16, 17, 64, 196, 1000});
    m.video_window = one_of({0, 0, 0, 1, 3});
    m.context = one_of({0, 0, 2048, 32768, 131072});
    return m;
  }
  MemoryConfig config(const std::string& spill_dir) {
    MemoryConfig c;
    c.model = model();
    c.exact = one_of({CodecId::kFp16, CodecId::kFp16, CodecId::kFp32});
    if (chance(20)) c.window_codec = one_of({CodecId::kFp32, CodecId::kFp16, CodecId::kK8V8});
    if (chance(30)) c.packed = one_of({CodecId::kInt4, CodecId::kInt8, CodecId::kFp16});
    c.exact_share = one_of({0.0, 0.15, 0.15, 0.5, 0.9, 0.999});
    c.index_share = one_of({0.0, 0.0, 0.0, 0.1, 0.9});
    c.window_frames = one_of({0, 0, 2, 5, 40});
    c.prefix_tokens = one_of({0, 3, 40});
    c.branch_tokens = one_of({0, 0, 16, 200});
    c.retrieve_tokens = one_of({0, 0, 1, 64, 5000});
    c.clusters = one_of({0, 0, 0, 2, 50, 3000});
    c.scenes = one_of({0, 0, 1, 9});
    c.max_cluster_tokens = one_of({2, 16, 64});
    c.positions = one_of({Positions::kAuto, Positions::kOriginal, Positions::kContiguous});
    c.summaries = chance(80);
    if (chance(50)) {
      c.disk_bytes = one_of<uint64_t>({100'000, 1 << 20, 1ull << 30, 1ull << 45});
      c.spill_dir = spill_dir;
    }
    return c;
  }
};

// What a refusal of `cap` says; empty: it is accepted.
std::string refusal(MemoryConfig config, Policy& policy, const Backend& backend, uint64_t cap) {
  config.cap_bytes = cap;
  try {
    const Plan plan = make_plan(config, policy, backend);
    CHECK(plan.total_bytes <= cap);
    CHECK(plan.config.cap_bytes == cap);
    return "";
  } catch (const MemoryCapError& e) {
    return e.what();
  }
}

// "... needs at least 79.7 KiB (81536 bytes; ..." The bytes, and what is printed before them.
struct Needed {
  uint64_t bytes = 0, printed = 0, step = 0;
};
Needed needed(const std::string& said) {
  const std::string before = " needs at least ";
  const size_t at = said.find(before), bracket = said.find(" (", at);
  REQUIRE(at != std::string::npos);
  REQUIRE(bracket != std::string::npos);
  const std::string text = said.substr(at + before.size(), bracket - at - before.size());
  const double number = std::stod(text);
  const std::string unit = text.substr(text.find(' ') + 1);
  const double scale = unit == "B" ? 1 : unit == "KiB" ? 1024 : unit == "MiB" ? 1 << 20 : 1 << 30;
  return {std::stoull(said.substr(bracket + 2)), static_cast<uint64_t>(number * scale),
          static_cast<uint64_t>(unit == "B" ? 1 : scale / 10)};
}

TEST_CASE("what a cap accepts every larger one does, and a refusal names the least there is") {
  TemporaryDirectory directory;
  const Backend backend = make_backend("cpu", 3);
  const int rounds = pressed_rounds(150);
  int tried = 0;
  for (int seed = 0; seed < rounds; ++seed) {
    Draw draw(static_cast<unsigned>(seed));
    const MemoryConfig config = draw.config(directory.path);
    for (const std::string& name : policy_names()) {
      const auto policy = make_policy(name, {});
      INFO("seed " << seed << ", policy " << name);
      std::string said;
      try {
        said = refusal(config, *policy, backend, 1);
      } catch (const InvalidInput&) {  // these settings suit no cap
        CHECK_THROWS_AS(refusal(config, *policy, backend, uint64_t{1} << 34), InvalidInput);
        continue;
      }
      if (said.find("disk_bytes is") != std::string::npos) continue;  // a disk smaller than a page
      const Needed need = needed(said);
      CAPTURE(said);
      CHECK(refusal(config, *policy, backend, need.bytes) == "");
      CHECK(refusal(config, *policy, backend, need.printed) == "");
      CHECK(refusal(config, *policy, backend, need.printed - need.step - 1) != "");
      const std::string below = refusal(config, *policy, backend, need.bytes - 1);
      CHECK(needed(below).bytes == need.bytes);
      for (int i = 0; i < 8; ++i) {
        const uint64_t more = uint64_t{1} << draw.random() % 30;
        const uint64_t cap = need.bytes + draw.random() % more;
        CAPTURE(cap);
        CHECK(refusal(config, *policy, backend, cap) == "");
      }
      CHECK(refusal(config, *policy, backend, uint64_t{1} << 49) == "");
      ++tried;
    }
  }
  CHECK(tried > 3 * rounds);
}

TEST_CASE("window and question are in half precision until they take a sixteenth of the cap") {
  const Backend backend = make_backend("cpu", 1);
  MemoryConfig config = small_config();
  config.model.layers = 8, config.model.head_dim = config.model.rope.head_dim = config.model.rope.rotary_dim = 64;
  config.window_frames = 2, config.branch_tokens = 16;
  const auto codec = [&](const char* policy, uint64_t cap) {
    config.cap_bytes = cap;
    return make_plan(config, *make_policy(policy, {}), backend).window.codec;
  };
  const uint64_t token = 8 * page_bytes(CodecId::kFp16, {config.model.kv_heads, 64}) / kPageTokens;
  const uint64_t exact = (3ull * config.model.frame_tokens + 16) * token;
  CHECK(codec("edge", 16 * exact + 8) == CodecId::kFp16);
  CHECK(codec("edge", 16 * exact - 8) == CodecId::kK8V8);
  CHECK(codec("mosaic", 16 * exact - 8) == CodecId::kK8V8);
  CHECK(codec("full", 16 * exact - 8) == CodecId::kFp16);  // gives nothing up
  config.window_codec = CodecId::kFp16;
  CHECK(codec("edge", 16 * exact - 8) == CodecId::kFp16);
  config.window_codec = std::nullopt;
  config.exact = CodecId::kFp32;
  CHECK(codec("edge", 16 * exact - 8) == CodecId::kFp32);
  config.window_codec = CodecId::kInt4;
  CHECK_THROWS_WITH_AS(codec("edge", 16 * exact), doctest::Contains("window_codec=int4"), InvalidInput);
}

TEST_CASE("a row of the account is in one part, a policy's own is the policy's, and a stranger's is a defect") {
  Region region = Region::counting();
  region.take<float>("window", 16);
  region.take<std::byte>("kernel scratch", 128);
  region.take<float>("tables of mine", 32);
  const auto part = [](const std::vector<Plan::Part>& parts, const std::string& name) {
    return *std::find_if(parts.begin(), parts.end(), [&](const Plan::Part& one) { return one.name == name; });
  };
  const auto parts = parts_of(region.rows(), 2);
  CHECK(part(parts, "window and question").bytes == 64);
  CHECK(part(parts, "kernel scratch").bytes == 128);
  CHECK(std::string(part(parts, "kernel scratch").knob) == "kernel_threads= or branch_tokens=");
  CHECK(part(parts, "tables of mine").bytes == 128);
  CHECK(doctest::String(part(parts, "tables of mine").knob) == doctest::Contains("the policy's settings"));
  CHECK_THROWS_WITH_AS(parts_of(region.rows(), 3), doctest::Contains("tables of mine"), InvariantError);
}

}  // namespace
