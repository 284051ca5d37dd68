// Clusters: the update rule, splits now and later, merges, sizes; scenes; and what the fetch cache promises.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "core/error.h"
#include "support/store_world.h"

namespace {

using namespace mosaic;
using mosaic::testing::counted;
using mosaic::testing::StoreWorld;

const std::vector<TierSpec> kDisk = {{Medium::device, CodecId::kFp16, 24}, {Medium::disk, CodecId::kFp16, 64}};

// The rule of Mosaic (arXiv 2604.10060) in double: a running mean and variance, distance between unit vectors.
struct RuleInDouble {
  std::vector<double> k, v;
  double n = 0, variance = 0;
  static double cosine(const std::vector<double>& a, const std::vector<float>& b) {
    double dot = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < a.size(); ++i) dot += a[i] * b[i], aa += a[i] * a[i], bb += static_cast<double>(b[i]) * b[i];
    return dot / std::sqrt(aa * bb);
  }
  void insert(const StoreWorld::Token& t, double w) {
    k.resize(t.k.size());
    v.resize(t.v.size());
    for (size_t i = 0; i < k.size(); ++i) {
      k[i] = (n * k[i] + t.k[i]) / (n + 1);
      v[i] = (n * v[i] + t.v[i]) / (n + 1);
    }
    const double similarity = (cosine(k, t.k) + w * cosine(v, t.v)) / (1 + w);
    variance = (n * variance + 2 - 2 * similarity) / (n + 1);
    ++n;
  }
};

TEST_CASE("a cluster's mean, variance, count and times follow the update rule") {
  for (const float w : {0.0f, 1.0f, 0.25f}) {
    StoreWorld world({{Medium::device, CodecId::kFp16, 64}}, 16, 40, w);
    RuleInDouble rule;
    ClusterId c = kNone;
    double position = 0;
    for (int i = 0; i < 33; ++i) {
      const auto t = world.token(2, 0.5f);
      position += t.meta.position;
      const double before = c == kNone ? 0 : world.store->variance_with(1, c, t.k.data(), t.v.data());
      if (c == kNone) {
        REQUIRE(world.store->open(1, 0, t.run(), i, &c) == Short::kNothing);
      } else {
        REQUIRE(world.store->append(1, c, t.run(), i) == Short::kNothing);
      }
      rule.insert(t, w);
      const ClusterIndex& index = world.store->index(1);
      CHECK(std::abs(index.variance(c) - rule.variance) < 2e-3);  // the means are half precision
      CHECK(std::abs(before - index.variance(c)) < 2e-3);
      for (size_t e = 0; e < rule.k.size(); ++e) {
        CHECK(std::abs(half_to_float(index.mean_k()[static_cast<size_t>(c) * 16 + e]) - rule.k[e]) < 4e-3);
        CHECK(std::abs(half_to_float(index.mean_v()[static_cast<size_t>(c) * 16 + e]) - rule.v[e]) < 4e-3);
      }
      CHECK(index.count(c) == i + 1);
      CHECK(index[c].paged == (i == 0 ? 0 : i + 1));  // the first token is the mean until there is a second
      CHECK(index[c].mean_position == doctest::Approx(position / (i + 1)));
      CHECK(index[c].last_time == t.meta.time_low);
      world.store->check_invariants();
    }
    CHECK(world.store->index(1)[c].first_time == 0);
    CHECK(world.store->account().exact == 33);
  }
}

TEST_CASE("a cluster takes max_run members; what comes after is in its summary") {
  StoreWorld world;
  const ClusterId c = world.open_with(0, 1, 40);
  CHECK(world.store->index(0)[c].paged == 40);
  for (int i = 0; i < 5; ++i) CHECK(world.store->append(0, c, world.token(1).run(), 3) == Short::kNothing);
  CHECK(world.store->index(0)[c].paged == 40);
  CHECK(world.store->index(0).count(c) == 45);
  CHECK(world.store->account().collapsed == 5);
  world.store->check_invariants();
}

TEST_CASE("a split parts the members by direction, keeps each once, and files the token that did not fit") {
  for (const auto& tiers :
       {std::vector<TierSpec>{{Medium::device, CodecId::kFp16, 64}},
        std::vector<TierSpec>{{Medium::device, CodecId::kFp16, 32}, {Medium::device, CodecId::kInt8, 32}}}) {
    StoreWorld world(tiers);
    const ClusterId c = world.open(0, 0);
    std::set<int> a{0}, b;
    for (int i = 1; i < 31; ++i) {
      const auto t = world.token(i % 3 == 0 ? 0 : 9);
      (i % 3 == 0 ? a : b).insert(t.meta.position);
      REQUIRE(world.store->append(0, c, t.run(), 0) == Short::kNothing);
    }
    if (tiers.size() > 1) world.store->demote(0, c, 0);
    const auto last = world.token(9);
    b.insert(last.meta.position);
    ClusterId made = kNone;
    REQUIRE(world.store->split(0, c, last.run(), 7, &made) == Short::kNothing);
    REQUIRE(made != kNone);
    world.store->check_invariants();
    auto one = world.members(0, c), two = world.members(0, made);
    CHECK(std::is_sorted(one.begin(), one.end()));
    CHECK(std::is_sorted(two.begin(), two.end()));
    CHECK(std::set<int>(one.begin(), one.end()) == a);
    CHECK(std::set<int>(two.begin(), two.end()) == b);
    CHECK(one.size() + two.size() == 32);
    CHECK(world.store->account().seen == 32);
    CHECK(world.store->counters().splits == 1);
    CHECK(world.store->index(0).variance(c) < 0.05f);
    CHECK(world.store->index(0).variance(made) < 0.05f);
  }
}

TEST_CASE("a split without room says what is short and changes nothing") {
  StoreWorld world({{Medium::device, CodecId::kFp16, 3}}, 2, 20);
  const ClusterId c = world.open_with(0, 0, 18);  // two pages, one slot left
  const auto t = world.token(9);
  ClusterId made = kNone;
  const TokenAccount before = world.store->account();
  CHECK(world.store->split(0, c, t.run(), 1, &made) == Short::kSlots);
  CHECK(world.open(0, 12) != kNone);
  CHECK(world.store->split(0, c, t.run(), 1, &made) == Short::kClusters);
  CHECK(made == kNone);
  CHECK(world.store->account().seen == before.seen + 1);
  CHECK(world.members(0, c).size() == 18);
  world.store->check_invariants();
}

TEST_CASE("the split of a spilled cluster is put off, and made when it is settled") {
  StoreWorld world(kDisk, 16, 40, 1, 8);
  const ClusterId c = world.open_with(0, 0, 30);
  world.demote_all(0, c);
  REQUIRE(world.store->index(0)[c].disk_pages == 2);
  ClusterId buffer = kNone, again = kNone;
  REQUIRE(world.store->defer(0, c, world.token(9).run(), 2, &buffer) == Short::kNothing);
  CHECK(world.store->index(0)[c].buffer == buffer);
  CHECK(world.store->index(0)[buffer].buffer_of == c);
  REQUIRE(world.store->defer(0, c, world.token(9).run(), 2, &again) == Short::kNothing);
  CHECK(again == buffer);
  CHECK(world.store->counters().deferred_splits == 1);
  CHECK(world.store->disk().read_calls == 0);  // nothing was fetched for it
  world.store->check_invariants();
  CHECK(world.store->settle(0, c, 3));
  world.store->unpin_all();
  world.store->check_invariants();
  const ClusterIndex& index = world.store->index(0);
  CHECK(index.live().size() == 2);
  CHECK(index[c].buffer == kNone);
  std::multiset<size_t> sizes;
  for (const ClusterId live : index.live()) {
    sizes.insert(world.members(0, live).size());
    CHECK(index[live].buffer_of == kNone);
    CHECK(index.variance(live) < 0.05f);
  }
  CHECK(sizes == std::multiset<size_t>{2, 30});
  CHECK_FALSE(world.store->settle(0, c, 3));
}

TEST_CASE("a pending split survives whatever happens to the cluster or to its buffer first") {
  for (int what = 0; what < 6; ++what) {
    INFO("case " << what);
    StoreWorld world(kDisk, 16, 40, 1, 8);
    const ClusterId c = world.open_with(0, 0, 20), other = world.open_with(0, 1, 3);
    world.demote_all(0, c);
    ClusterId buffer = kNone;
    for (int i = 0; i < 3; ++i) REQUIRE(world.store->defer(0, c, world.token(9).run(), 2, &buffer) == Short::kNothing);
    if (what == 0) world.store->drop(0, c);
    if (what == 1) world.store->drop(0, buffer);
    if (what == 2) world.store->merge(0, other, c);
    if (what == 3) world.store->merge(0, other, buffer);
    if (what == 4) world.store->merge(0, buffer, c);
    if (what == 5) world.store->merge(0, c, buffer);
    world.store->check_invariants();
    for (int i = 0; i < 16; ++i) {
      if (!world.store->index(0).is_live(i)) continue;
      world.store->settle(0, i, 4);
      world.store->unpin_all();
      world.store->check_invariants();
    }
  }
}

TEST_CASE("a merge adds counts, pools means and variance, joins times and pages") {
  StoreWorld world;
  const ClusterId a = world.open_with(0, 0, 5), b = world.open_with(0, 1, 9);
  const ClusterIndex& index = world.store->index(0);
  const float pooled = index.merged_variance(a, b, 1);
  const double apart = index.distance(a, b, 1);
  CHECK(apart > 1.5);
  CHECK(pooled == doctest::Approx((5 * index.variance(a) + 9 * index.variance(b)) / 14 + 45.0 / 196 * apart));
  std::vector<double> mean(16);
  for (size_t e = 0; e < 16; ++e)
    mean[e] = (5 * half_to_float(index.mean_k()[static_cast<size_t>(a) * 16 + e]) +
               9 * half_to_float(index.mean_k()[static_cast<size_t>(b) * 16 + e])) /
              14;
  world.store->merge(0, a, b);
  world.store->check_invariants();
  CHECK(index.count(a) == 14);
  CHECK(index[a].paged == 14);
  CHECK(index.variance(a) == doctest::Approx(pooled));
  for (size_t e = 0; e < 16; ++e)
    CHECK(half_to_float(index.mean_k()[static_cast<size_t>(a) * 16 + e]) == doctest::Approx(mean[e]).epsilon(2e-3));
  CHECK(index[a].first_time == 0);
  CHECK(index[a].last_time == 130);
  CHECK(world.store->pages_in(0, a, 0) == 1);  // two half-empty pages became one
  CHECK_FALSE(index.is_live(b));
  auto all = world.members(0, a);
  std::sort(all.begin(), all.end());
  for (int i = 0; i < 14; ++i) CHECK(all[static_cast<size_t>(i)] == i);
}

TEST_CASE("a page knows its earliest and latest token, even when a merge put them out of order") {
  StoreWorld world;
  const ClusterId first = world.open_with(0, 0, 1);
  world.time = 100;
  const ClusterId a = world.open_with(0, 0, 4);
  world.time = 50;
  const ClusterId b = world.open_with(0, 0, 4);
  world.store->merge(0, a, b);
  world.store->merge(0, a, first);
  const Page& page = world.store->pages()[world.store->index(0)[a].head];
  CHECK(page.count == 9);
  CHECK(page.first_time == 0);
  CHECK(page.last_time == 1030);
  world.store->check_invariants();
}

TEST_CASE("merging clusters that are too large together collapses one of them and loses no token") {
  StoreWorld world;
  const ClusterId a = world.open_with(0, 0, 30), b = world.open_with(0, 1, 25);
  world.store->merge(0, a, b);
  world.store->check_invariants();
  CHECK(world.store->index(0).count(a) == 55);
  CHECK(world.store->index(0)[a].paged <= 40);
  CHECK(world.store->account().dropped == 0);
  CHECK(world.store->account().total() == 55);
}

TEST_CASE("single tokens merge without a slot to spare: they are collapsed, not lost") {
  StoreWorld world({{Medium::device, CodecId::kFp16, 1}}, 8);
  world.open_with(1, 0, 2);  // takes the only slot
  const ClusterId a = world.open(0, 0), b = world.open(0, 0);
  world.store->merge(0, a, b);
  world.store->check_invariants();
  CHECK(world.store->account().collapsed == 2);
  world.store->drop(0, a);
  world.store->check_invariants();
  CHECK(world.store->account().dropped == 2);
}

TEST_CASE("a cluster of one token that loses its page is still that token") {
  StoreWorld world({{Medium::device, CodecId::kFp16, 64}}, 8, 40);
  const ClusterId c = world.open_with(0, 0, 2);
  const auto t = world.token(9);
  ClusterId made = kNone;
  REQUIRE(world.store->split(0, c, t.run(), 1, &made) == Short::kNothing);
  for (const ClusterId live : {c, made}) world.store->collapse(0, live);
  world.store->check_invariants();
  CHECK(world.store->account().total() == 3);
}

TEST_CASE("fp32 sessions keep single tokens in pages, for a half-precision mean is not exact to them") {
  StoreWorld world({{Medium::device, CodecId::kFp32, 64}});
  const ClusterId c = world.open(0, 0);
  CHECK(world.store->index(0)[c].paged == 1);
  world.store->collapse(0, c);
  CHECK(world.store->account().collapsed == 1);
  world.store->check_invariants();
}

TEST_CASE("tokens that join a page of a denser codec move to an exact one while there is room") {
  StoreWorld world({{Medium::device, CodecId::kFp16, 2}, {Medium::device, CodecId::kInt4, 8}});
  const ClusterId c = world.open_with(0, 0, 5);
  REQUIRE(world.store->demote(0, c, 0));
  CHECK(world.store->account().quantised == 5);
  world.store->check_invariants();
  CHECK(world.store->append(0, c, world.token(0).run(), 2) == Short::kNothing);
  CHECK(world.store->account().exact == 6);
  world.store->check_invariants();
  REQUIRE(world.store->demote(0, c, 0));
  world.open_with(1, 0, 2);
  world.open_with(1, 1, 2);  // both exact slots are taken
  CHECK(world.store->append(0, c, world.token(0).run(), 2) == Short::kNothing);
  CHECK(world.store->account().quantised == 7);
  CHECK(world.members(0, c).size() == 7);
  world.store->check_invariants();
}

TEST_CASE("pages that are being spilled may be appended to, split, merged, dropped or collapsed") {
  for (int what = 0; what < 6; ++what) {
    INFO("case " << what);
    StoreWorld world(kDisk);
    const ClusterId c = world.open_with(0, 0, 20), other = world.open_with(0, 9, 20);
    REQUIRE(world.store->demote(0, c, 0));  // under way
    ClusterId made = kNone;
    if (what == 0) CHECK(world.store->append(0, c, world.token(0).run(), 2) == Short::kNothing);
    if (what == 1) CHECK(world.store->split(0, c, world.token(9).run(), 2, &made) == Short::kNothing);
    if (what == 2) world.store->merge(0, c, other);
    if (what == 3) world.store->merge(0, other, c);
    if (what == 4) world.store->drop(0, c);
    if (what == 5) world.store->collapse(0, c);
    world.store->check_invariants();
    world.store->poll_spills(false);
    world.store->check_invariants();
    world.store->drain();
    world.store->check_invariants();
    if (what < 2) {
      const ClusterIndex& index = world.store->index(0);
      CHECK(index.count(c) + (made == kNone ? 0 : index.count(made)) == 21);
      CHECK(world.members(0, c).size() >= 20);
    }
  }
}

TEST_CASE("a read copy that is pinned stays; others give way, least recently used first") {
  StoreWorld world(kDisk, 16, 40, 1, 2);
  std::vector<PageId> pages;
  for (int i = 0; i < 4; ++i) {
    const ClusterId c = world.open_with(0, i, 3);
    pages.push_back(world.store->index(0)[c].head);
    world.demote_all(0, c);
  }
  CodecId codec{};
  const PageView first = world.store->resident(pages[0], &codec);
  REQUIRE(first.data != nullptr);
  const int position = first.meta[0].position;
  CHECK(world.store->resident(pages[1], &codec).data != nullptr);
  CHECK_FALSE(world.store->request(pages[2]));  // both are pinned
  CHECK(world.store->resident(pages[2], &codec).data == nullptr);
  CHECK(first.meta[0].position == position);
  world.store->unpin_all();
  CHECK(world.store->resident(pages[0], &codec).data == first.data);  // used again: page 1 is the one to go
  CHECK(world.store->resident(pages[2], &codec).data != nullptr);
  CHECK(first.meta[0].position == position);
  CHECK(world.store->pages()[pages[1]].staged == kNone);
  world.store->check_invariants();
  world.store->unpin_all();
  world.store->drop(0, world.store->pages()[pages[0]].cluster);
  world.store->check_invariants();
}

TEST_CASE("the store's pieces are planned to the byte") {
  for (const int fetch : {1, 5}) StoreWorld world(kDisk, 7, 19, 0.5f, fetch);
  StoreWorld plain({{Medium::device, CodecId::kFp16, 3}, {Medium::device, CodecId::kInt4, 5}}, 3, 17, 0);
}

TEST_CASE("scenes: frames join the nearest, a full table merges its nearest pair, clusters follow") {
  StoreWorld world;
  SceneTable& scenes = *world.store->scenes();
  const float east[] = {1, 0, 0, 0}, north[] = {0, 1, 0, 0}, almost[] = {0.1f, 1, 0, 0}, up[] = {0, 0, 2, 0};
  const SceneId a = scenes.open(east), b = scenes.open(north), c = scenes.open(up);
  CHECK(scenes.full());
  CHECK(scenes.nearest(almost).scene == b);
  CHECK(scenes.nearest(almost).distance == doctest::Approx(2 - 2 / std::sqrt(1.01)));
  const float expected = scenes.variance_with(b, almost);
  scenes.add(b, almost);
  CHECK(scenes.variance(b) == doctest::Approx(expected));
  CHECK(scenes.count(b) == 2);
  for (int i = 0; i < 3; ++i) scenes.add(a, almost);  // drifts towards north
  CHECK(scenes.nearest_pair() == std::pair<SceneId, SceneId>{a, b});
  const ClusterId in_b = world.open(0, 3, b), in_c = world.open(1, 4, c);
  world.store->merge_scenes(a, b);
  CHECK(scenes.size() == 2);
  CHECK(scenes.count(a) == 6);
  CHECK_FALSE(scenes.is_live(b));
  CHECK(world.store->index(0)[in_b].scene == a);
  CHECK(world.store->index(1)[in_c].scene == c);
  CHECK(scenes.open(north) == b);
}

}  // namespace
