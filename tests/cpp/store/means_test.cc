// Means of clusters against float64: a run is learned at once, so a mean is rounded to half precision once.
#include <doctest/doctest.h>

#include <cmath>
#include <map>

#include "support/played_stream.h"
#include "support/store_world.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;
using mosaic::testing::StoreWorld;

// One rounding to half: a 2^-11th of the number, or of the least normal one; and what fp32 sums add.
double one_rounding(double x) { return std::max(std::abs(x), 6.2e-5) / 2048 + 2e-6; }

TEST_CASE("the mean of a run that opens a cluster is the mean in float64, rounded once") {
  StoreWorld world({{Medium::device, CodecId::kFp16, 64}}, 16, 200);
  std::vector<float> k, v;
  std::vector<TokenMeta> meta;
  const auto d = static_cast<size_t>(world.shape.page.row());
  std::vector<double> mean_k(d), mean_v(d);
  const int n = 196;
  for (int i = 0; i < n; ++i) {
    const auto token = world.token(i % 3, 0.7f);
    for (size_t e = 0; e < d; ++e) {
      mean_k[e] += static_cast<double>(token.k[e]) / n;
      mean_v[e] += static_cast<double>(token.v[e]) / n;
    }
    k.insert(k.end(), token.k.begin(), token.k.end());
    v.insert(v.end(), token.v.begin(), token.v.end());
    meta.push_back(token.meta);
  }
  ClusterId made = kNone;
  REQUIRE(world.store->open(0, 0, {k.data(), v.data(), meta.data(), n}, 0, &made) == Short::kNothing);
  const ClusterIndex& index = world.store->index(0);
  CHECK(index.count(made) == n);
  CHECK(index[made].mean_position == doctest::Approx((n - 1) / 2.0));
  for (size_t e = 0; e < d; ++e) {
    const size_t at = static_cast<size_t>(made) * d + e;
    CHECK(std::abs(half_to_float(index.mean_k()[at]) - mean_k[e]) <= one_rounding(mean_k[e]));
    CHECK(std::abs(half_to_float(index.mean_v()[at]) - mean_v[e]) <= one_rounding(mean_v[e]));
  }
  world.store->check_invariants();
}

// By the positions that pages name, the mean of what a cluster holds in float64; of clusters that hold all they ever took.
TEST_CASE("frames of rekv and units of mukv stand for retrieval by their mean in float64, rounded once") {
  const PolicySettings all{{"segment_share", 1}, {"frame_share", 0.5}, {"patch_share", 0.3}};
  for (const std::string policy : {"rekv", "mukv"}) {
    INFO(policy);
    MemoryConfig config = small_config(8 << 20);
    config.window_frames = 2;
    config.model.frame_tokens = 49;
    PlayedStream stream(config, policy, policy == "mukv" ? all : PolicySettings{});
    stream.noise = 0.8f;
    for (int i = 0; i < 30; ++i) stream.frame(49, false, 7);
    std::map<int, const PlayedStream::Token*> came_at;
    for (const auto& token : stream.video) came_at[token.position] = &token;
    const ClusterStore& store = stream.memory->store();
    int compared = 0;
    for (int lane = 0; lane < 3; ++lane) {
      const ClusterIndex& index = store.index(lane);
      for (const ClusterId c : index.live()) {
        if (index[c].paged < 8) continue;
        REQUIRE(index[c].paged == index.count(c));
        std::vector<double> mean(stream.row());
        for (PageId id = index[c].head; id != kNone; id = store.pages()[id].next) {
          const Page& page = store.pages()[id];
          for (int i = 0; i < page.count; ++i) {
            const int position = store.tiers().page(page.tier, page.slot).meta[i].position;
            for (size_t e = 0; e < stream.row(); ++e)
              mean[e] += static_cast<double>(came_at.at(position)->k[static_cast<size_t>(lane) * stream.row() + e]) /
                         index[c].paged;
          }
        }
        for (size_t e = 0; e < stream.row(); ++e) {
          const float kept = half_to_float(index.mean_k()[static_cast<size_t>(c) * stream.row() + e]);
          // What is kept was rounded to half before it was learned, as the stream's own record is.
          CHECK(std::abs(kept - mean[e]) <= one_rounding(mean[e]));
        }
        ++compared;
      }
    }
    CHECK(compared > 60);
  }
}

}  // namespace
