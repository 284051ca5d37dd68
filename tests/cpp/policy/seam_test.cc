// What the seam promises a policy: lanes per head, blocks of several frames, clusters without end, new clusters shared by
// number, attention received, and memory inside the cap.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "support/played_stream.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

// Keeps everything in one cluster a lane, thins every second token when short, and writes down what it was shown.
class Pot final : public Policy {
 public:
  struct Seen {
    std::map<int, std::vector<float>> received;  // by frame number of the block, of lane 0
    std::map<int, int> tokens;
    int blocks = 0;
  };
  Pot(PolicyNeeds needs, Seen* seen) : needs_(needs), seen_(seen) {}
  const char* name() const override { return "pot"; }
  PolicyNeeds needs() const override { return needs_; }
  void bind(const StoreShape& shape, Region& region) override {
    keep_ = region.take<uint8_t>("policy", members(shape));
  }
  void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override {
    for (int i = 0; i < batch.tokens.n; ++i) {
      out[i] = {};
      if (!store.index(batch.lane).live().empty()) out[i].cluster = store.index(batch.lane).live()[0];
      out[i].together = 0;
    }
    if (batch.lane != 0) return;
    ++seen_->blocks;
    seen_->tokens[batch.frame] = batch.tokens.n;
    if (batch.attention_received != nullptr)
      seen_->received[batch.frame].assign(batch.attention_received, batch.attention_received + batch.tokens.n);
  }
  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    for (int tier = 0; need.kind == Need::Kind::kHotSlots && tier + 1 < store.tiers().size() && capacity > 0; ++tier) {
      if (store.index(need.lane).live().empty() || store.tiers().free_slots(1) == 0) return 0;
      out[0] = {Eviction::Kind::kDemote, need.lane, store.index(need.lane).live()[0], kNone, 0};
      return 1;
    }
    int lane = 0;
    const auto size = [&](int l) {
      return store.index(l).live().empty() ? 0 : store.index(l)[store.index(l).live()[0]].paged;
    };
    for (int l = 1; l < store.shape().lanes; ++l) lane = size(l) > size(lane) ? l : lane;
    if (need.kind != Need::Kind::kSlots || size(lane) < 2) return 0;
    for (int i = 0; i < size(lane); ++i) keep_[i] = i % 2 == 0 || i > size(lane) - 20;
    out[0] = {.kind = Eviction::Kind::kThin, .lane = lane, .cluster = store.index(lane).live()[0], .keep = keep_};
    return 1;
  }
  void serialize(Snapshot&, const ClusterStore&) override {}

 private:
  static size_t members(const StoreShape& shape) {
    size_t slots = 0;
    for (const TierSpec& tier : shape.tiers) slots += static_cast<size_t>(tier.slots);
    return slots * kPageTokens;
  }
  PolicyNeeds needs_;
  Seen* seen_;
  uint8_t* keep_ = nullptr;
};

PolicyNeeds pot(bool per_head, int frames, bool received = false) {
  return {.group = {.by_token = true,
                    .per_head = per_head,
                    .frames = frames,
                    .unbounded = true,
                    .attention_received = received},
          .share = {.clusters = 1}};
}

TEST_CASE("lanes of one head and blocks of several frames are full attention while everything fits") {
  for (const bool per_head : {false, true})
    for (const int frames : {1, 3})
      for (const int video_window : {0, 4}) {
        INFO("per head " << per_head << ", frames " << frames << ", video window " << video_window);
        MemoryConfig config = small_config(8 << 20);
        config.packed = config.exact;
        config.model.video_window = video_window;
        config.window_frames = 4;
        config.prefix_tokens = 5;
        config.branch_tokens = 48;
        Pot::Seen seen;
        PlayedStream stream(config, std::make_unique<Pot>(pot(per_head, frames), &seen));
        double worst = stream.prefix_block(5, true);
        for (int i = 0; i < 14; ++i) {
          worst = std::max(worst, stream.frame(i % 4 == 3 ? 13 : 16, true));
          stream.memory->check_invariants();
        }
        worst = std::max(worst, stream.ask(5, 3, true, true));
        worst = std::max(worst, stream.frame(7, true));
        worst = std::max(worst, stream.ask(3, 2, false, true));
        CHECK(worst < 2e-5);
        CHECK(stream.memory->store().shape().lanes == (per_head ? 6 : 3));
        CHECK(seen.blocks == (15 - 1 - 4) / frames);
        for (const auto& [first, tokens] : seen.tokens) CHECK((first - 1) % frames == 0);
      }
}

TEST_CASE("a pot under a small cap is thinned, balances its account and never passes the cap") {
  for (const bool per_head : {false, true}) {
    MemoryConfig config = small_config(400 << 10);
    config.window_frames = 3;
    Pot::Seen seen;
    PlayedStream stream(config, std::make_unique<Pot>(pot(per_head, 2), &seen));
    for (int i = 0; i < 120; ++i) {
      stream.frame(16);
      if (i % 10 == 0) stream.memory->check_invariants();
    }
    stream.ask(4, 2, false);
    CHECK(stream.finite());
    stream.memory->check_invariants();
    const MemoryStats stats = stream.memory->stats();
    CHECK(stats.counters.thinned_clusters > 0);
    CHECK(stats.tokens.dropped > 0);
    CHECK(stats.tokens.seen == int64_t{120} * 16 * stream.memory->store().shape().lanes);
    CHECK(stats.taken_bytes <= stats.cap_bytes);
  }
}

TEST_CASE("attention received is what the queries of the frames in the window paid, summed over heads and queries") {
  // Queries of zero attend evenly, so what each token receives can be counted by hand.
  for (const bool per_head : {false, true}) {
    MemoryConfig config = small_config(8 << 20);
    config.model.video_window = 3;
    config.window_frames = 4;
    Pot::Seen seen;
    PlayedStream stream(config, std::make_unique<Pot>(pot(per_head, 2, true), &seen));
    const std::vector<int> tokens{16, 16, 13, 16, 1, 16, 5, 16, 16, 16, 16};
    for (const int n : tokens) {
      stream.begin_frame(n);
      std::fill(stream.q.begin(), stream.q.end(), 0.0f);
      stream.attend_layers(3);
      stream.memory->commit();
      stream.now_ms += 500;
    }
    const double heads = per_head ? 2 : 4;  // query heads of a lane
    std::vector<std::vector<double>> truth(tokens.size());
    for (size_t f = 0; f < tokens.size(); ++f) truth[f].assign(static_cast<size_t>(tokens[f]), 0.0);
    for (size_t f = 0; f < tokens.size(); ++f) {
      const size_t oldest = f < 2 ? 0 : f - 2;
      int before = 0;
      for (size_t g = oldest; g < f; ++g) before += tokens[g];
      for (int i = 0; i < tokens[f]; ++i) {
        const double share = heads / (before + i + 1);
        for (size_t g = oldest; g < f; ++g)
          for (double& x : truth[g]) x += share;
        for (int j = 0; j <= i; ++j) truth[f][static_cast<size_t>(j)] += share;
      }
    }
    REQUIRE(seen.received.size() == 3);  // frames 1 2, 3 4, 5 6; frame 0 is kept for ever
    for (const auto& [first, received] : seen.received) {
      std::vector<double> both = truth[static_cast<size_t>(first)];
      const auto& second = truth[static_cast<size_t>(first) + 1];
      both.insert(both.end(), second.begin(), second.end());
      REQUIRE(received.size() == both.size());
      for (size_t i = 0; i < both.size(); ++i) CHECK(received[i] == doctest::Approx(both[i]).epsilon(1e-4));
    }
  }
}

TEST_CASE("what a policy takes is part of the plan, and taking other than it counted is a defect that is named") {
  class Greedy final : public Policy {
   public:
    const char* name() const override { return "greedy"; }
    PolicyNeeds needs() const override { return {}; }
    void bind(const StoreShape&, Region& region) override {
      region.take<float>("policy", region.is_counting() ? 160 : 16);
    }
    void admit(const ClusterStore&, const AdmitBatch&, Placement* out) override { out[0] = {}; }
    int evict(const ClusterStore&, const Need&, Eviction*, int) override { return 0; }
    void serialize(Snapshot&, const ClusterStore&) override {}
  };
  CHECK_THROWS_AS(PlayedStream(small_config(), std::make_unique<Greedy>()), InvariantError);
}

}  // namespace
