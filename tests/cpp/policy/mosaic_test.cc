// mosaic with parts taken away: what its units are then, when they are cut, and what is still read.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "policy/quantile.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"

namespace {

using namespace mosaic;
using mosaic::testing::least_cap;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;
using mosaic::testing::TemporaryDirectory;

constexpr int kStep = 500;  // ms between the frames of a PlayedStream

// Of every cluster of a lane with pages in DRAM: how many tokens it keeps of each frame.
std::map<ClusterId, std::map<int, int>> frames_of_clusters(const KvMemory& memory, int lane = 0) {
  std::map<ClusterId, std::map<int, int>> found;
  const ClusterStore& store = memory.store();
  const ClusterIndex& index = store.index(lane);
  for (const ClusterId c : index.live())
    for (PageId id = index[c].head; id != kNone; id = store.pages()[id].next) {
      const Page& page = store.pages()[id];
      if (store.tiers().is_disk(page.tier)) continue;
      for (int i = 0; i < page.count; ++i)
        ++found[c][store.tiers().page(page.tier, page.slot).meta[i].time_low / kStep];
    }
  return found;
}

// Two rooms, four frames each in turn.
PlayedStream walk(const PolicySettings& settings, int frames, uint64_t cap = 4 << 20) {
  PlayedStream stream(small_config(cap), "mosaic", settings);
  for (int i = 0; i < frames; ++i) {
    stream.room = (i / 4) % 2;
    stream.frame(16);
  }
  stream.memory->check_invariants();
  return stream;
}

int room_of(int frame) { return (frame / 4) % 2; }

TEST_CASE("levels=visual: whole frames of one scene, in the order they came, as many as a cluster holds") {
  const PlayedStream stream = walk({{"levels", "visual"}}, 41);
  CHECK(stream.memory->stats().scenes == 2);
  for (int lane = 0; lane < 3; ++lane) {
    const auto clusters = frames_of_clusters(*stream.memory, lane);
    CHECK(clusters.size() == 8);  // 32 frames left the window beside the first one, 16 of either room, by four
    for (const auto& [c, frames] : clusters) {
      CHECK(frames.size() <= 4);
      for (const auto& [frame, tokens] : frames) {
        CHECK(tokens == 16);
        CHECK(room_of(frame) == room_of(frames.begin()->first));
      }
    }
  }
}

TEST_CASE("levels=none: blocks of neighbouring frames, whatever they show") {
  const PlayedStream stream = walk({{"levels", "none"}}, 43);
  CHECK(stream.memory->stats().scenes == 0);
  int mixed = 0;
  for (const auto& [c, frames] : frames_of_clusters(*stream.memory)) {
    CHECK(static_cast<int>(frames.size()) == frames.rbegin()->first - frames.begin()->first + 1);
    CHECK(frames.size() <= 4);
    for (const auto& [frame, tokens] : frames) CHECK(tokens == 16);
    mixed += room_of(frames.begin()->first) != room_of(frames.rbegin()->first) ? 1 : 0;
  }
  CHECK(mixed > 0);
}

TEST_CASE("levels=semantic: tokens of different rooms meet in one cluster, nested: they never do") {
  for (const bool nested : {false, true}) {
    const PlayedStream stream = walk({{"levels", nested ? "nested" : "semantic"}, {"radius", 0.5}}, 60);
    CHECK(stream.memory->stats().scenes == (nested ? 2 : 0));
    int mixed = 0;
    for (const auto& [c, frames] : frames_of_clusters(*stream.memory)) {
      std::set<int> rooms;
      for (const auto& [frame, tokens] : frames) rooms.insert(room_of(frame));
      mixed += rooms.size() > 1 ? 1 : 0;
    }
    CHECK((mixed > 0) == !nested);
  }
}

TEST_CASE("item=frame: the tokens of a frame stay together, and alike frames share a cluster within its room") {
  PlayedStream stream(small_config(), "mosaic", {{"item", "frame"}, {"radius", 1}});
  stream.prototypes = 1;  // every frame has the same mean, but for noise
  for (int i = 0; i < 60; ++i) stream.frame(13);
  const auto clusters = frames_of_clusters(*stream.memory);
  for (const auto& [c, frames] : clusters) {
    CHECK(frames.size() <= 4);  // 4 x 13 <= 64
    for (const auto& [frame, tokens] : frames) CHECK(tokens == 13);
  }
  CHECK(clusters.size() == 13);  // 51 frames, four to a cluster
}

TEST_CASE("everything read, each ablation gives full attention, with an exact tier that holds it all") {
  for (const PolicySettings& settings : std::vector<PolicySettings>{{{"levels", "visual"}},
                                                                    {{"levels", "semantic"}},
                                                                    {{"levels", "none"}},
                                                                    {{"item", "frame"}},
                                                                    {{"tau", "quantile"}},
                                                                    {{"tau", "fixed"}},
                                                                    {{"published", 1}}}) {
    MemoryConfig config = small_config(8 << 20);
    config.packed = CodecId::kFp16;
    config.retrieve_tokens = 4000;
    config.clusters = 700;
    PlayedStream stream(config, "mosaic", settings, 3);
    for (int i = 0; i < 30; ++i) {
      stream.room = i / 4 % 3;
      stream.frame(16);
      stream.memory->check_invariants();
    }
    INFO(settings[0].first << "=" << settings[0].second.text());
    CHECK(stream.memory->stats().tokens.collapsed == 0);
    CHECK(stream.ask(3, 2, true, true) < 2e-5);
  }
}

TEST_CASE("summaries off: what is not chosen is not attended, what is chosen is, single tokens within the budget too") {
  MemoryConfig config = small_config(2 << 20);
  config.summaries = false;
  config.packed = config.window_codec = CodecId::kFp16;
  config.retrieve_tokens = 4000;
  PlayedStream everything(config, "mosaic", {{"radius", 0}}, 3);  // every token stays a cluster of its own
  for (int i = 0; i < 20; ++i) everything.frame(7);
  CHECK(everything.ask(3, 1, false, true) < 2e-5);
  // A budget of five tokens: what is read beside the first frame and the window is five of the 77 stored ones.
  config.retrieve_tokens = 5;
  PlayedStream five(config, "mosaic", {{"radius", 0}}, 3);
  for (int i = 0; i < 20; ++i) five.frame(7);
  five.open_question();
  five.pass(2);
  CHECK(five.pass(1, true) > 1e-3);  // no longer full attention
  five.close_question(false);
  five.memory->check_invariants();
}

TEST_CASE("split=eager cuts spilled clusters at once, deferred waits; both count, and more is cut eagerly") {
  TemporaryDirectory directory;
  MemoryConfig config = small_config();
  config.packed = config.window_codec = CodecId::kFp16;
  config.retrieve_tokens = 4000;
  config.max_cluster_tokens = 1024;
  config.clusters = 40;
  config.disk_bytes = 8 << 20;
  config.spill_dir = directory.path;
  config.cap_bytes = least_cap(config, "mosaic") + (100 << 10);
  for (const bool eager : {false, true}) {
    PlayedStream stream(
        config, "mosaic",
        {{"tau", "fixed"}, {"tau_max", 0.06}, {"tau_min", 0.03}, {"split", eager ? "eager" : "deferred"}}, 4);
    stream.noise = 0.2f;
    for (int i = 0; i < 70; ++i) {
      stream.room = (i / 4) % 5;
      stream.frame(16);
      stream.memory->check_invariants();
    }
    const MemoryStats stats = stream.memory->stats();
    INFO("split " << (eager ? "eager" : "deferred") << ", splits " << stats.counters.splits << ", deferred "
                  << stats.counters.deferred_splits << ", eager " << stats.counters.eager_splits);
    CHECK((stats.counters.eager_splits > 0) == eager);
    CHECK((stats.counters.deferred_splits > 0) == !eager);
    CHECK(stats.tokens.spilled > 500);
    CHECK(stats.tokens.dropped == 0);
    CHECK(stream.ask(3, 2, true, true) < 2e-5);
  }
}

TEST_CASE("tau=quantile follows the spread of the stream it sees, lane by lane") {
  float allowed[2] = {};
  for (const int wide : {0, 1}) {
    PlayedStream stream(small_config(), "mosaic", {{"tau", "quantile"}});
    CHECK(stream.memory->policy().tolerance(0, 8) == 0);  // nothing seen yet
    stream.noise = wide != 0 ? 0.3f : 0.03f;
    for (int i = 0; i < 60; ++i) stream.frame(16);
    const Policy& p = stream.memory->policy();
    allowed[wide] = p.tolerance(0, 8);
    CHECK(p.tolerance(0, 1) >= p.tolerance(0, 100));
    CHECK(p.tolerance(0, 8) != p.tolerance(1, 8));
  }
  CHECK(allowed[0] > 0);
  CHECK(allowed[1] > 3 * allowed[0]);
}

TEST_CASE("a running quantile is the exact one up to five values, and near it on long streams of any shape") {
  std::mt19937 random(3);
  const auto uniform = [&] { return random() / 4294967296.0; };
  for (const double level : {0.0, 0.05, 0.5, 0.8, 0.95, 1.0})
    for (const int shape : {0, 1, 2, 3}) {
      RunningQuantile quantile(level);
      CHECK(quantile.value() == 0);
      std::vector<double> seen;
      for (int i = 0; i < 4000; ++i) {
        const double u = uniform();
        const double x = shape == 0 ? u : shape == 1 ? -std::log(1 - u) : shape == 2 ? 7.0 : (i % 5 == 0 ? 10 + u : u);
        quantile.add(x);
        seen.push_back(x);
        if (i >= 5 && i != 3999) continue;
        std::vector<double> sorted = seen;
        std::sort(sorted.begin(), sorted.end());
        const auto n = static_cast<double>(sorted.size());
        INFO("level " << level << ", shape " << shape << ", " << sorted.size() << " values, " << quantile.value());
        if (i < 5) {
          CHECK(quantile.value() == sorted[static_cast<size_t>(std::min(n - 1, level * n))]);
        } else {  // its rank is off by at most three in a hundred, or it lies on a step of the distribution
          const auto rank = [&](double x) {
            return static_cast<double>(std::lower_bound(sorted.begin(), sorted.end(), x) - sorted.begin()) / n;
          };
          const double slack = 1e-9 + 0.02 * (sorted.back() - sorted.front());
          CHECK(rank(quantile.value() - slack) <= level + 0.03);
          CHECK(rank(quantile.value() + slack) >= level - 0.03);
        }
      }
    }
}

TEST_CASE("unknown words for a setting are refused with those there are; published leaves others to be set") {
  const auto refusal = [](const PolicySettings& settings) {
    try {
      make_policy("mosaic", settings);
    } catch (const InvalidInput& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  CHECK(refusal({{"levels", "both"}}).find("nested, visual, semantic, none") != std::string::npos);
  CHECK(refusal({{"split", 1}}).find("deferred, eager") != std::string::npos);
  CHECK(refusal({{"item", "segment"}}).find("token, frame") != std::string::npos);
  CHECK(refusal({{"tau", "quantile"}, {"tau_max", 1.5}}).find("tau_max") != std::string::npos);
  CHECK(refusal({{"tau", "fixed"}, {"tau_max", 1.5}}).empty());
  const auto paper = make_policy("mosaic", {{"published", 1}});
  CHECK(paper->needs().group.value_weight == 0);
  CHECK(paper->radius(0) == std::numeric_limits<float>::infinity());
  CHECK(make_policy("mosaic", {{"published", 1}, {"value_weight", 2}})->needs().group.value_weight == 2);
}

TEST_CASE(
    "with a disk that holds everything mosaic keeps every token, however alike they are and however few its clusters") {
  for (const int prototypes : {3, 16})
    for (const int clusters : {16, 40}) {
      INFO(prototypes << " prototypes, " << clusters << " clusters");
      TemporaryDirectory directory;
      MemoryConfig config = small_config(700 << 10);
      config.window_frames = 3;
      config.branch_tokens = 32;
      config.max_cluster_tokens = 32;
      config.clusters = clusters;
      config.disk_bytes = 64 << 20;
      config.spill_dir = directory.path;
      PlayedStream stream(config, "mosaic");
      stream.prototypes = prototypes;
      const int frames = 96;
      for (int i = 0; i < frames; ++i) {
        stream.room = (i / 20) % 4;
        stream.frame(16);
        if (i % 16 == 15) stream.ask(4, 1, false);
        stream.memory->check_invariants();
      }
      const MemoryStats s = stream.memory->stats();
      const MemoryStats::Tier& on_disk = s.tier[s.tiers - 1];
      REQUIRE(on_disk.medium == Medium::disk);
      REQUIRE(on_disk.used_bytes < on_disk.capacity_bytes);
      CHECK(s.tokens.collapsed == 0);
      CHECK(s.tokens.dropped == 0);
      CHECK(s.tokens.exact + s.tokens.quantised + s.tokens.spilled == frames * 16 * 3);
      // Of every position once, in every lane: window and first frame, single tokens in their mean, pages wherever they lie.
      const ClusterStore& store = stream.memory->store();
      int64_t held = 0;
      for (int lane = 0; lane < 3; ++lane)
        for (const ClusterId c : store.index(lane).live())
          held += std::max<int64_t>(store.index(lane)[c].paged, store.index(lane).count(c) == 1 ? 1 : 0);
      CHECK(held == (frames - 4) * 16 * 3);
      CHECK(s.tokens.spilled > 0);
    }
}

TEST_CASE("clusters that grow on a disk are merged right, however few tokens a cluster is meant to have") {
  TemporaryDirectory directory;
  MemoryConfig config = small_config(2 << 20);
  config.model.frame_tokens = 6;
  config.exact = CodecId::kFp32;
  config.packed = CodecId::kFp16;
  config.window_frames = 1;
  config.branch_tokens = 32;
  config.max_cluster_tokens = 5;
  config.clusters = 6;
  config.retrieve_tokens = 4096;
  config.disk_bytes = 64 << 20;
  config.spill_dir = directory.path;
  PlayedStream stream(config, "mosaic", {{"frames_read", "chosen"}}, 3);
  stream.prototypes = 3;
  for (int i = 0; i < 40; ++i) {
    stream.room = (i / 10) % 4;
    stream.frame(6);
    stream.memory->check_invariants();
  }
  CHECK(stream.memory->stats().counters.merges > 0);
  CHECK(stream.memory->stats().tokens.collapsed + stream.memory->stats().tokens.dropped == 0);
  CHECK(stream.ask(3, 1, false, true) < 3e-3);  // halves
}

TEST_CASE("every ablation keeps every invariant under pressure, and two runs answer the same bits") {
  const std::vector<PolicySettings> ablations = {
      {{"levels", "visual"}},
      {{"levels", "visual"}, {"read_scenes", 1}},
      {{"levels", "semantic"}, {"read_scenes", 2}},
      {{"levels", "none"}},
      {{"item", "frame"}},
      {{"item", "frame"}, {"tau", "fixed"}},
      {{"item", "frame"}, {"levels", "semantic"}, {"tau", "quantile"}},
      {{"tau", "quantile"}, {"split", "eager"}},
      {{"tau", "quantile"}, {"tau_max", 0.5}, {"tau_min", 0.1}, {"split", "eager"}, {"levels", "semantic"}},
      {{"tau", "fixed"}, {"tau_max", 0.02}, {"tau_min", 0.01}, {"split", "eager"}},
      {{"published", 1}},
  };
  for (size_t a = 0; a < ablations.size(); ++a)
    for (const bool disk : {false, true}) {
      INFO("ablation " << a << ", disk " << disk);
      const auto play = [&] {
        TemporaryDirectory directory;
        MemoryConfig config = small_config();
        config.model.frame_tokens = 13;
        config.window_frames = 2;
        config.branch_tokens = 24;
        config.max_cluster_tokens = 20;
        config.retrieve_tokens = 64;
        config.scenes = 4;
        if (disk) {
          config.disk_bytes = 96 << 10;
          config.spill_dir = directory.path;
        }
        config.cap_bytes = least_cap(config, "mosaic") + (30 << 10);
        config.summaries = a % 3 != 0;
        PlayedStream stream(config, "mosaic", ablations[a], 5);
        uint64_t digest = 0;
        for (int i = 0; i < mosaic::testing::pressed_rounds(150); ++i) {
          if (stream.below(6) == 0) stream.room = stream.below(6);
          stream.noise = stream.below(4) == 0 ? 0.6f : 0.03f;
          stream.frame(1 + stream.below(13));
          if (i % 11 == 3) stream.ask(3, 1, stream.below(2) == 0);
          CHECK(stream.finite());
          stream.memory->check_invariants();
          for (const float x : stream.out) digest = (digest ^ std::bit_cast<uint32_t>(x)) * 1099511628211u;
        }
        const MemoryStats s = stream.memory->stats();
        CHECK(s.tokens.dropped == 0);
        CHECK(s.tokens.collapsed + s.tokens.spilled > 0);
        return digest;
      };
      CHECK(play() == play());
    }
}

}  // namespace
