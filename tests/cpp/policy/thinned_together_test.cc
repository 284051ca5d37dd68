// Clusters that a policy thins at once, on a device whose kernels pack them by one launch: every token that stays has the
// numbers it came with, whatever is thinned beside it, twice, or in how many lanes.
#include <doctest/doctest.h>

#include "support/came_with.h"
#include "support/rounds.h"

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

namespace {

// A pot a lane. Of all of them every third token goes, and of what stays every second of every other pot.
class Twice final : public Policy {
 public:
  const char* name() const override { return "twice"; }
  PolicyNeeds needs() const override {
    return {.group = {.by_token = true, .by_meta = true, .per_head = true, .unbounded = true},
            .share = {.clusters = 1}};
  }
  void bind(const StoreShape& shape, Region& region) override {
    keep_ = region.take<uint8_t>("policy", shape.dram_slots() * (2 * kPageTokens));
  }
  void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override {
    for (int i = 0; i < batch.tokens.n; ++i) {
      out[i] = {};
      if (!store.index(batch.lane).live().empty()) out[i].cluster = store.index(batch.lane).live()[0];
      out[i].together = 0;
    }
  }
  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    uint8_t* keep = keep_;
    int n = 0;
    const auto thin = [&](int lane, int members, int gone) {
      out[n++] = {.kind = Eviction::Kind::kThin, .lane = lane, .cluster = store.index(lane).live()[0], .keep = keep};
      for (int i = 0; i < members; ++i) *keep++ = i % gone != gone - 1;
    };
    for (int lane = 0; need.kind == Need::Kind::kSlots && lane < store.shape().lanes && n + 2 <= capacity; ++lane) {
      if (store.index(lane).live().empty()) continue;
      const int members = store.index(lane)[store.index(lane).live()[0]].paged;
      if (members < 40) continue;
      thin(lane, members, 3);
      if (lane % 2 == 0) thin(lane, members - members / 3, 2);
    }
    return n;
  }
  void serialize(Snapshot&, const ClusterStore&) override {}

 private:
  uint8_t* keep_ = nullptr;
};

// Tokens of a lane that are not what came at their position, in bits; their number is added to *members.
int changed_tokens(const PlayedStream& stream, const testing::ShimControl& control, int lane, int* members) {
  const ClusterStore& store = stream.memory->store();
  const testing::CameWith came(stream, control, lane);
  int changed = 0;
  for (PageId id = store.index(lane)[store.index(lane).live()[0]].head; id != kNone; id = store.pages()[id].next) {
    const Page& page = store.pages()[id];
    const PageView view = store.tiers().page(page.tier, page.slot);
    *members += page.count;
    changed += came.changed(store.shape().codec(page.tier), store.shape().page, view.data, page.count, 0xffff,
                            [&](int i) { return view.meta[i].position; });
  }
  return changed;
}

}  // namespace

TEST_CASE("pots that are thinned together, some of them twice, keep every number of what stays") {
  for (const int layers : {3, 20}) {  // 40 lanes are more than are listed at once
    CAPTURE(layers);
    MemoryConfig config = small_config(layers == 3 ? 300 << 10 : 1600 << 10);
    config.model.layers = layers;
    config.packed = config.exact;
    config.window_codec = CodecId::kFp16;
    config.window_frames = 2;
    testing::ShimControl control;
    PlayedStream stream(config, std::make_unique<Twice>(), testing::make_shim(3, &control));
    const int frames = layers == 3 ? 120 : testing::pressed_rounds(80);
    for (int i = 0; i < frames; ++i) stream.frame(16);
    stream.memory->check_invariants();
    REQUIRE(stream.memory->stats().counters.thinned_clusters >= 60);
    int members = 0;
    for (int lane = 0; lane < stream.memory->store().shape().lanes; ++lane)
      CHECK(changed_tokens(stream, control, lane, &members) == 0);
    CHECK(members > 40 * layers);
  }
}
