// TokenClusters: like tokens of a stretch stand together, by their keys and values and by nothing that all share; the keys that
// find them are means of what is in them.
#include "store/token_clusters.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "support/counted.h"

namespace mosaic::testing {

namespace {

constexpr int kDim = 16, kLanes = 2, kTokens = 64, kStretches = 8;

struct ClusterWorld {
  Backend backend = make_backend("cpu", 1);
  ClusterShape shape;
  std::unique_ptr<Region> region;
  std::vector<std::byte> scratch;
  std::unique_ptr<TokenClusters> clusters;
  std::vector<float> key_means = std::vector<float>(kLanes * kDim, 0.5f);
  std::mt19937 random{3};

  explicit ClusterWorld(float of_values = 1) {
    shape = {kLanes, kStretches * kTokens / 16, kTokens, of_values, {1, kDim}};
    region =
        std::make_unique<Region>(*backend.device, counted([&](Region& r) { TokenClusters(r, shape, *backend.ops); }));
    const Ops::Limits limits{64, 1, shape.page, 16, 0};
    scratch.resize(backend.ops->scratch_bytes(limits) + 64);
    backend.ops->set_scratch(scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64, limits);
    clusters = std::make_unique<TokenClusters>(*region, shape, *backend.ops);
    CHECK(region->left() == 0);
  }
  // rows: [tokens, 2 kDim] keys and values.
  void cut(int lane, int stretch, const std::vector<float>& rows) {
    std::copy(rows.begin(), rows.end(), clusters->rows());
    clusters->cut(lane, stretch, &key_means[static_cast<size_t>(lane) * kDim]);
  }
  // Tokens of kinds: token i is of kind i % kinds, with some noise; every number has `shared` added.
  std::vector<float> kinds(int n, float noise, float shared) {
    std::mt19937 same(7);
    std::normal_distribution<float> normal;
    std::vector<float> centres(static_cast<size_t>(n) * 2 * kDim), rows(kTokens * 2 * kDim);
    for (float& x : centres) x = normal(same);
    for (size_t i = 0; i < kTokens; ++i)
      for (size_t c = 0; c < 2 * kDim; ++c)
        rows[i * 2 * kDim + c] = centres[i % static_cast<size_t>(n) * 2 * kDim + c] + noise * normal(same) + shared;
    return rows;
  }
  std::vector<float> decoded(int lane, int cluster) {
    std::vector<float> key(kDim);
    backend.ops->decode(TokenClusters::kCodec, shape.page, clusters->page(lane, cluster / kPageTokens),
                        cluster % kPageTokens, cluster % kPageTokens + 1, key.data(), nullptr, kDim,
                        &key_means[static_cast<size_t>(lane) * kDim]);
    return key;
  }
};

double cosine_of(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t c = 0; c < a.size(); ++c) ab += a[c] * b[c], aa += a[c] * a[c], bb += b[c] * b[c];
  return ab / std::sqrt(aa * bb);
}

}  // namespace

TEST_CASE("like tokens of a stretch are one cluster, whatever all of their numbers share") {
  for (const float shared : {0.0f, 1000.0f}) {
    ClusterWorld world;
    world.cut(1, 2, world.kinds(4, 0.05f, shared));
    uint64_t all = 0;
    for (int page = 8; page < 12; ++page) {
      const uint64_t members = world.clusters->members(1, page);
      all |= members;
      CHECK(std::popcount(members) == kPageTokens);
      const int kind = std::countr_zero(members) % 4;
      for (int token = 0; token < kTokens; ++token)
        if ((members >> token & 1) != 0) CHECK(token % 4 == kind);
    }
    CHECK(all == ~uint64_t{0});
  }
}

TEST_CASE("values part what keys do not, where they weigh") {
  for (const bool weigh : {false, true}) {
    ClusterWorld world(weigh ? 1.0f : 0.0f);
    std::vector<float> rows = world.kinds(1, 0.1f, 0);
    for (size_t i = 0; i < kTokens; ++i) rows[i * 2 * kDim + kDim] += i % 2 == 0 ? 50.0f : -50.0f;
    world.cut(0, 0, rows);
    constexpr uint64_t kEven = 0x5555555555555555;
    bool mixed = false;
    for (int page = 0; page < 4; ++page) {
      const uint64_t even = world.clusters->members(0, page) & kEven;
      mixed = mixed || (even != 0 && even != world.clusters->members(0, page));
    }
    CHECK(mixed == !weigh);
  }
}

TEST_CASE("a cluster's key is the mean of its members', less the lane's") {
  ClusterWorld world;
  double cosine = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    for (int stretch = 0; stretch < kStretches; ++stretch) {
      std::normal_distribution<float> normal;
      std::vector<float> rows(kTokens * 2 * kDim);
      for (float& x : rows) x = normal(world.random) + 0.5f;
      world.cut(lane, stretch, rows);
      for (int cluster = 0; cluster < 4; ++cluster) {
        std::vector<float> mean(kDim, -0.5f), got = world.decoded(lane, stretch * 4 + cluster);
        for (size_t token = 0; token < kTokens; ++token)
          for (size_t c = 0; c < kDim && (world.clusters->members(lane, stretch * 4 + cluster) >> token & 1) != 0; ++c)
            mean[c] += rows[token * 2 * kDim + c] / 16;
        for (float& x : got) x -= 0.5f;
        cosine += cosine_of(mean, got) / (kLanes * kStretches * 4);
      }
    }
  CHECK(cosine > 0.9);
}

TEST_CASE("tokens that are all alike stay in the order in which they came") {
  ClusterWorld world;
  world.cut(0, 1, std::vector<float>(kTokens * 2 * kDim, 3.0f));
  for (int page = 4; page < 8; ++page) CHECK(world.clusters->members(0, page) == uint64_t{0xffff} << (16 * (page - 4)));
}

}  // namespace mosaic::testing
