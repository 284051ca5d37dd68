// edge, unit="summaries": what it keeps under a cap, what merges, and what a question attends to.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "policy/clustering.h"
#include "policy/yielding.h"
#include "support/played_stream.h"
#include "support/selected.h"
#include "support/store_world.h"

namespace {

using namespace mosaic;
using mosaic::testing::counted;
using mosaic::testing::PlayedStream;
using mosaic::testing::select;
using mosaic::testing::Selected;
using mosaic::testing::small_config;
using mosaic::testing::StoreWorld;

MemoryConfig with_clusters(int clusters) {
  MemoryConfig c = small_config(1 << 20);
  c.clusters = clusters;
  c.window_frames = 3;
  return c;
}

size_t table_bytes(const StoreShape& shape) {
  return counted([&](Region& region) { Clustering().bind(shape, region, 0.0f); });
}

TEST_CASE("edge of summaries passes neither its clusters nor the cap, drops nothing and keeps no pages") {
  for (const int clusters : {2, 7, 64}) {
    PlayedStream stream(with_clusters(clusters), "edge", {{"unit", "summaries"}});
    stream.noise = 0.5f;
    for (int i = 0; i < 120; ++i) {
      stream.frame(1 + i % 16);
      for (int lane = 0; lane < 3; ++lane)
        CHECK(stream.memory->store().index(lane).live().size() <= static_cast<size_t>(clusters));
    }
    stream.memory->check_invariants();
    const MemoryStats s = stream.memory->stats();
    CHECK(s.tokens.dropped == 0);
    CHECK(s.counters.merges > 0);
    // After the last merge of few clusters the radius may hold all that comes.
    if (clusters > 2) CHECK(s.clusters == 3 * clusters);
    for (int lane = 0; lane < 3; ++lane) {
      const ClusterIndex& index = stream.memory->store().index(lane);
      int tokens = 0;
      for (const ClusterId c : index.live()) {
        CHECK(index[c].paged == 0);
        tokens += index.count(c);
      }
      // All but the first frame and the window's three are in a cluster.
      const size_t left = stream.video.size() - static_cast<size_t>(stream.frame_starts[117]);
      CHECK(tokens == static_cast<int>(stream.video.size() - left) - stream.frame_starts[1]);
    }
  }
}

TEST_CASE("edge of summaries spends nearly every byte that is not fixed on summaries") {
  const MemoryConfig config = small_config(600 << 10);
  PlayedStream stream(config, "edge", {{"unit", "summaries"}});
  const Plan& plan = stream.memory->plan();
  const size_t row = counted([&](Region& region) { ClusterIndex(region, {1024, plan.store.index.dim}); }) / 1024;
  CHECK(plan.total_bytes <= config.cap_bytes);
  CHECK(plan.total_bytes + 16 * 3 * row > config.cap_bytes);
  CHECK(plan.store.tiers.size() == 1);
  CHECK(plan.store.tiers[0].slots == 1);
}

TEST_CASE("with room for every token and all summaries attended, edge is full attention") {
  MemoryConfig config = small_config(4 << 20);
  config.window_codec = CodecId::kFp16;
  PlayedStream stream(config, "edge", {{"unit", "summaries"}, {"frames", 0}, {"radius", 0}});
  for (int i = 0; i < 40; ++i) CHECK(stream.frame(1 + (7 * i) % 16, i % 5 == 0) < 2e-5);
  CHECK(stream.ask(5, 2, false, true) < 2e-5);
  CHECK(stream.memory->stats().counters.merges == 0);
}

TEST_CASE("a token joins within the radius and opens a cluster beyond it") {
  PlayedStream near(with_clusters(64), "edge", {{"unit", "summaries"}});
  near.prototypes = 6;
  for (int i = 0; i < 60; ++i) near.frame(16);
  PlayedStream none(with_clusters(64), "edge", {{"unit", "summaries"}, {"radius", 0}});
  none.prototypes = 6;
  for (int i = 0; i < 7; ++i) none.frame(16);  // three have left the window, the first of them for its own place
  for (int lane = 0; lane < 3; ++lane) {
    CHECK(near.memory->store().index(lane).live().size() == 6);
    CHECK(near.memory->policy().radius(lane) == doctest::Approx(0.02f));
    CHECK(none.memory->store().index(lane).live().size() == 48);
  }
}

TEST_CASE("what merges is the closest pair there is, after any history, and the radius is the farthest that merged") {
  for (const int capacity : {2, 3, 16, 40}) {
    StoreWorld world({{Medium::device, CodecId::kFp16, 64}}, capacity, 40, capacity % 2 == 0 ? 1.0f : 0.0f);
    Region region(*world.backend.device, table_bytes(world.shape));
    Clustering clustering;
    clustering.bind(world.shape, region, 0.0f);
    CHECK(region.left() == 0);
    ClusterStore& store = *world.store;
    float farthest = 0;
    int merges = 0;
    for (int step = 0; step < 400; ++step) {
      const int lane = step % 2;
      ClusterIndex& index = store.index(lane);
      const auto live = index.live();
      if (!index.full() && (live.empty() || world.random() % 3 != 0)) {
        const StoreWorld::Token t = world.token(static_cast<int>(world.random() % 12), 0.4f);
        ClusterId made = kNone;
        REQUIRE(store.open(lane, 0, t.run(), step, &made) == Short::kNothing);
      } else if (world.random() % 2 == 0) {  // an old one moves
        store.absorb(lane, live[world.random() % live.size()],
                     world.token(static_cast<int>(world.random() % 12), 0.4f).run(), step);
      } else if (live.size() >= 2) {
        float least = std::numeric_limits<float>::infinity();
        for (const ClusterId a : live)
          for (const ClusterId b : live)
            if (a < b) least = std::min(least, index.distance(a, b, world.shape.value_weight));
        Eviction eviction[4];
        REQUIRE(clustering.merge_closest(store, lane, eviction, 4) == 1);
        REQUIRE(eviction[0].kind == Eviction::Kind::kMerge);
        const float apart = index.distance(eviction[0].cluster, eviction[0].other, world.shape.value_weight);
        CHECK(apart == doctest::Approx(least).epsilon(0.002));
        CHECK(index.count(eviction[0].cluster) >= index.count(eviction[0].other));
        if (lane == 0) {
          farthest = std::max(farthest, apart);
          CHECK(clustering.radius(0) == doctest::Approx(farthest));
        }
        store.merge(lane, eviction[0].cluster, eviction[0].other);
        ++merges;
      }
    }
    CHECK(merges > 50);
    store.check_invariants();
  }
}

TEST_CASE("with scenes the closest pair of any one scene merges, and of two scenes only when none has a pair") {
  for (const int capacity : {3, 17, 40}) {
    StoreWorld world({{Medium::device, CodecId::kFp16, 64}}, capacity, 40, capacity % 2 == 0 ? 1.0f : 0.0f);
    Region region(*world.backend.device, table_bytes(world.shape));
    Clustering clustering;
    clustering.bind(world.shape, region, 0.0f, true);
    ClusterStore& store = *world.store;
    ClusterIndex& index = store.index(0);
    int inside = 0, across = 0, moved = 0;
    for (int step = 0; step < 600; ++step) {
      const auto live = index.live();
      const auto scene = static_cast<SceneId>(world.random() % 5);
      const bool ending = step >= 500;  // merging alone, until one is left
      if (!ending && !index.full() && (live.empty() || world.random() % 3 != 0)) {
        const StoreWorld::Token t = world.token(static_cast<int>(world.random() % 12), 0.4f);
        ClusterId made = kNone;
        REQUIRE(store.open(0, scene, t.run(), step, &made) == Short::kNothing);
      } else if (!ending && step % 13 == 0) {  // two scenes become one: what is nearest in it is another
        index.relabel_scene(scene, (scene + 1) % 5);
        ++moved;
      } else if (!ending && world.random() % 2 == 0) {
        store.absorb(0, live[world.random() % live.size()],
                     world.token(static_cast<int>(world.random() % 12), 0.4f).run(), step);
      } else if (!ending && world.random() % 5 == 0) {  // one goes away, and its row is another's soon
        store.drop(0, live[world.random() % live.size()]);
      } else if (live.size() >= 2) {
        float least[2] = {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::infinity()};
        for (const ClusterId a : live)
          for (const ClusterId b : live)
            for (const int any : {0, 1})
              if (a < b && (any == 1 || index[a].scene == index[b].scene))
                least[any] = std::min(least[any], index.distance(a, b, world.shape.value_weight));
        const bool pair = std::isfinite(least[0]);
        Eviction eviction[4];
        REQUIRE(clustering.merge_closest(store, 0, eviction, 4) == 1);
        const Eviction& merged = eviction[0];
        REQUIRE(index.is_live(merged.cluster));
        REQUIRE(index.is_live(merged.other));
        CHECK((index[merged.cluster].scene == index[merged.other].scene) == pair);
        CHECK(index.distance(merged.cluster, merged.other, world.shape.value_weight) ==
              doctest::Approx(least[pair ? 0 : 1]).epsilon(0.002));
        store.merge(0, merged.cluster, merged.other);
        ++(pair ? inside : across);
      }
    }
    CHECK(inside > 30);
    CHECK(across > 0);
    CHECK(moved > 5);
    store.check_invariants();
  }
}

TEST_CASE("with scenes a token joins a cluster of its own scene only, however near another is") {
  StoreWorld world;
  Region region(*world.backend.device, table_bytes(world.shape));
  Clustering clustering;
  clustering.bind(world.shape, region, std::numeric_limits<float>::infinity(), true);
  const ClusterId same = world.open(0, 5, 0), other = world.open(0, 1, 2);
  const StoreWorld::Token token = world.token(1);
  AdmitBatch batch;
  batch.tokens = token.run();
  Placement out;
  for (const auto& [scene, joins] : {std::pair{0, same}, {2, other}, {1, Placement::kOpen}}) {
    batch.scene = scene;
    clustering.label(*world.store, batch, &out);
    CHECK(out.cluster == joins);
  }
}

TEST_CASE("what is demoted are the clusters that grew longest ago, coldest first, none twice") {
  StoreWorld world({{Medium::device, CodecId::kFp16, 64}, {Medium::device, CodecId::kInt8, 64}}, 20, 40);
  ClusterStore& store = *world.store;
  const int order[] = {7, 2, 9, 4, 1, 8, 3, 6, 5};
  std::vector<ClusterId> at(10, kNone);  // of each frame
  for (const int frame : order) {
    world.time = frame;
    at[static_cast<size_t>(frame)] = world.open_with(0, frame, 3);
  }
  world.demote_all(0, at[2]);  // already there
  for (const int amount : {1, 5, 40}) {
    Eviction out[32];
    const Need need{Need::Kind::kHotSlots, 0, amount, 20};
    const int n = demote_coldest(store, need, out, 32);
    CHECK(n == std::min(std::max(amount, 4), 8));
    for (int i = 0; i < n; ++i) {
      CHECK(out[i].kind == Eviction::Kind::kDemote);
      CHECK(out[i].cluster == at[static_cast<size_t>(i == 0 ? 1 : i + 2)]);
    }
  }
}

TEST_CASE("one cluster alone has nothing to merge with") {
  StoreWorld world;
  Region region(*world.backend.device, table_bytes(world.shape));
  Clustering clustering;
  clustering.bind(world.shape, region, 0.0f);
  Eviction eviction[2];
  CHECK(clustering.merge_closest(*world.store, 0, eviction, 2) == 0);
  world.open(0, 1);
  CHECK(clustering.merge_closest(*world.store, 0, eviction, 2) == 0);
}

TEST_CASE(
    "edge of summaries attends to no more summaries than allowed, and reads members within the budget, best first") {
  PlayedStream stream(small_config(1 << 20), "edge", {{"unit", "summaries"}, {"members", "always"}, {"share", 0.4}});
  stream.noise = 0.3f;
  for (int i = 0; i < 60; ++i) stream.frame(16);
  const ClusterIndex& index = stream.memory->store().index(1);
  int read = 0;
  for (const int budget : {0, 1, 16, 64, 100000})
    for (const int summaries : {1, 5, 48, 100000}) {
      const Selected s = select(stream, 1, budget, summaries);
      int members = 0;
      std::set<int> all(s.attended.begin(), s.attended.end());
      for (const int c : s.chosen) {
        members += index[c].paged;
        all.insert(c);
      }
      CHECK(members <= budget);
      read += members;
      CHECK(std::is_sorted(s.score.rbegin(), s.score.rend()));
      CHECK(all.size() == s.chosen.size() + s.attended.size());  // none twice
      CHECK(all.size() == std::min<size_t>(static_cast<size_t>(summaries), index.live().size()));
    }
  CHECK(read > 0);
}

TEST_CASE("of the summaries a question attends to the best by attention mass, at most six frames' worth") {
  PlayedStream stream(small_config(2 << 20), "edge", {{"unit", "summaries"}});
  stream.noise = 0.5f;
  for (int i = 0; i < 60; ++i) stream.frame(16);
  CHECK(stream.memory->plan().select_rows == 96);
  const std::mt19937 before = stream.random;
  const Selected all = select(stream, 0, 0, 100000);
  stream.random = before;
  const Selected few = select(stream, 0, 0, 96);
  REQUIRE(all.attended.size() > 96);
  CHECK(std::equal(few.attended.begin(), few.attended.end(), all.attended.begin()));
  CHECK(few.attended.size() == 96);
  CHECK(stream.ask(4, 2, false) >= 0);
  CHECK(stream.finite());
}

TEST_CASE("since= attends to nothing that holds an older token") {
  PlayedStream stream(with_clusters(64), "edge", {{"unit", "summaries"}});
  stream.noise = 0.5f;
  for (int i = 0; i < 60; ++i) stream.frame(16);
  const ClusterIndex& index = stream.memory->store().index(0);
  for (const int since : {0, 5000, 20000, 27500, 40000}) {
    size_t wanted = 0;
    for (const ClusterId c : index.live()) wanted += index[c].first_time >= since ? 1 : 0;
    const Selected s = select(stream, 0, 1000, 1000, since);
    CHECK(s.attended.size() == wanted);
    for (const int c : s.attended) CHECK(index[c].first_time >= since);
  }
}

}  // namespace
