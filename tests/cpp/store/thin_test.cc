// Thinning: some members of a cluster go, the rest is packed, and every token stays accounted for.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "support/store_world.h"

namespace {

using namespace mosaic;
using mosaic::testing::StoreWorld;

std::vector<TierSpec> one_tier() { return {{Medium::device, CodecId::kFp16, 64}}; }

// Positions that the mask keeps of those that are there, and the mask run against the store.
void thin_and_compare(StoreWorld* world, ClusterId c, const std::vector<uint8_t>& keep) {
  const std::vector<int> before = world->members(0, c);
  REQUIRE(before.size() == keep.size());
  std::vector<int> expected;
  for (size_t i = 0; i < keep.size(); ++i)
    if (keep[i] != 0) expected.push_back(before[i]);
  const TokenAccount account = world->store->account();
  world->store->thin(std::array{ClusterStore::Thinning{0, c, keep.data()}});
  world->store->check_invariants();
  CHECK(world->members(0, c) == expected);
  const auto gone = static_cast<int64_t>(before.size() - expected.size());
  const TokenAccount& after = world->store->account();
  CHECK(after.seen == account.seen);
  CHECK(after.collapsed + after.dropped == account.collapsed + account.dropped + gone);
  CHECK(world->store->index(0)[c].paged == static_cast<int>(expected.size()));
  int pages = 0;
  for (PageId id = world->store->index(0)[c].head; id != kNone; id = world->store->pages()[id].next) ++pages;
  CHECK(pages <= pages_for(static_cast<int>(expected.size())) + 1);  // one page may have been part-empty before
}

TEST_CASE("thinning keeps what the mask says, in order, packed, whatever the mask") {
  for (const int n : {2, 15, 16, 17, 31, 32, 33, 40})
    for (int pattern = 0; pattern < 8; ++pattern) {
      INFO("members " << n << ", pattern " << pattern);
      StoreWorld world(one_tier());
      const ClusterId c = world.open_with(0, 1, n);
      std::vector<uint8_t> keep(static_cast<size_t>(n), 1);
      for (int i = 0; i < n; ++i) {
        auto& one = keep[static_cast<size_t>(i)];
        if (pattern == 0) one = 1;
        if (pattern == 1) one = 0;
        if (pattern == 2) one = i % 2 == 0;
        if (pattern == 3) one = i < n / 2;
        if (pattern == 4) one = i >= n / 2;
        if (pattern == 5) one = i != n - 1;
        if (pattern == 6) one = i == n - 1;
        if (pattern == 7) one = world.random() % 4 == 0;
      }
      thin_and_compare(&world, c, keep);
    }
}

TEST_CASE("what was kept in untouched pages keeps its bytes, and exact pages lose nothing when packed") {
  StoreWorld world(one_tier());
  const ClusterId c = world.open(0, 1);
  std::vector<std::vector<float>> keys;
  for (int i = 1; i < 40; ++i) {
    const auto t = world.token(i % 16);
    keys.push_back(t.k);
    REQUIRE(world.store->append(0, c, t.run(), i) == Short::kNothing);
  }
  std::vector<uint8_t> keep(40, 1);
  for (const size_t gone : {20u, 21u, 33u}) keep[gone] = 0;
  thin_and_compare(&world, c, keep);
  size_t at = 0;
  for (PageId id = world.store->index(0)[c].head; id != kNone; id = world.store->pages()[id].next) {
    CodecId codec{};
    const PageView view = world.store->resident(id, &codec);
    for (int i = 0; i < world.store->pages()[id].count; ++i, ++at) {
      const int position = view.meta[i].position;
      std::vector<float> k(16), v(16);
      world.backend.ops->decode(codec, world.shape.page, view.data, i, i + 1, k.data(), v.data(), 16);
      if (position > 0) CHECK(k == keys[static_cast<size_t>(position) - 1]);
    }
  }
  CHECK(at == 37);
}

TEST_CASE("a thinned cluster goes on growing, and thinning again and again stays exact in its counts") {
  StoreWorld world({{Medium::device, CodecId::kFp16, 16}, {Medium::device, CodecId::kInt4, 64}});
  const ClusterId c = world.open_with(0, 2, 30);
  for (int round = 0; round < 12; ++round) {
    if (round % 3 == 1) world.store->demote(0, c, 0);
    const int n = world.store->index(0)[c].paged;
    std::vector<uint8_t> keep(static_cast<size_t>(n));
    for (auto& one : keep) one = world.random() % 3 != 0;
    thin_and_compare(&world, c, keep);
    while (world.store->index(0)[c].paged < 30)
      REQUIRE(world.store->append(0, c, world.token(2).run(), round) == Short::kNothing);
  }
  CHECK(world.store->counters().thinned_clusters > 0);
}

TEST_CASE("pages on disk stay whole when their cluster is thinned") {
  StoreWorld world({{Medium::device, CodecId::kInt4, 32}, {Medium::disk, CodecId::kInt4, 32}});
  const ClusterId c = world.open_with(0, 1, 32);
  world.demote_all(0, c);
  for (int i = 0; i < 8; ++i) REQUIRE(world.store->append(0, c, world.token(1).run(), 1) == Short::kNothing);
  REQUIRE(world.store->index(0)[c].disk_pages == 2);
  const std::vector<int> before = world.members(0, c);
  std::vector<uint8_t> keep(40, 0);
  world.store->thin(std::array{ClusterStore::Thinning{0, c, keep.data()}});
  world.store->check_invariants();
  CHECK(world.members(0, c) == std::vector<int>(before.begin(), before.begin() + 32));
  CHECK(world.store->account().collapsed == 8);
}

}  // namespace
