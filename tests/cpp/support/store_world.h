// A ClusterStore with its region and kernels, and tokens around a few directions to put into it.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "store/cluster_store.h"
#include "support/counted.h"
#include "support/memory_fakes.h"

namespace mosaic::testing {

struct StoreWorld {
  TemporaryDirectory directory;
  StoreShape shape;
  Backend backend = make_backend("cpu", 1);
  std::unique_ptr<Region> region;
  std::vector<std::byte> scratch;
  std::unique_ptr<ClusterStore> store;
  std::mt19937 random{5};
  int time = 0;

  struct Token {
    std::vector<float> k, v;
    TokenMeta meta;
    Run run() const { return {k.data(), v.data(), &meta, 1}; }
  };

  explicit StoreWorld(std::vector<TierSpec> tiers = {{Medium::device, CodecId::kFp16, 64}}, int clusters = 16,
                      int max_run = 40, float value_weight = 1, int fetch_slots = 4, SpillIo* io = nullptr) {
    shape.lanes = 2;
    shape.page = {2, 8};
    shape.index = {clusters, shape.page.row()};
    shape.scenes = 3;
    shape.embedding_dim = 4;
    shape.tiers = std::move(tiers);
    const bool disk = shape.tiers.back().medium == Medium::disk;
    shape.fetch_slots = disk ? fetch_slots : 0;
    shape.max_run = shape.max_members = max_run;
    shape.spill_dir = directory.path;
    shape.value_weight = value_weight;
    const size_t bytes = counted([&](Region& region) { ClusterStore(region, shape, *backend.ops); });
    region = std::make_unique<Region>(*backend.device, bytes);
    const Ops::Limits limits{max_run, 2, shape.page, clusters, 0};
    scratch.resize(backend.ops->scratch_bytes(limits) + 64);
    backend.ops->set_scratch(scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64, limits);
    store = std::make_unique<ClusterStore>(*region, shape, *backend.ops, io);
    if (region->used() != bytes) throw std::logic_error("the store took other bytes than it counted");
  }
  float uniform() { return static_cast<float>(random() / 4294967296.0 * 2 - 1); }
  // A token near the unit direction `axis`, rounded to half so that fp16 pages hold it as it is.
  Token token(int axis, float noise = 0.1f) {
    Token t;
    const auto d = static_cast<size_t>(shape.page.row());
    for (size_t i = 0; i < d; ++i) {
      t.k.push_back(half_to_float(float_to_half((i == static_cast<size_t>(axis) ? 1.0f : 0.0f) + noise * uniform())));
      t.v.push_back(
          half_to_float(float_to_half((i == static_cast<size_t>(axis + 3) % d ? 1.0f : 0.0f) + noise * uniform())));
    }
    t.meta = {time, time * 10, static_cast<uint16_t>(time % 3), static_cast<uint16_t>(time % 5)};
    ++time;
    return t;
  }
  ClusterId open(int lane, int axis, SceneId scene = 0) {
    ClusterId made = kNone;
    const Token t = token(axis);
    if (store->open(lane, scene, t.run(), time, &made) != Short::kNothing) return kNone;
    return made;
  }
  ClusterId open_with(int lane, int axis, int tokens, SceneId scene = 0) {
    const ClusterId c = open(lane, axis, scene);
    for (int i = 1; i < tokens && c != kNone; ++i) store->append(lane, c, token(axis).run(), time);
    return c;
  }
  // Original positions of the members of a cluster, as its pages hold them.
  std::vector<int> members(int lane, ClusterId c) {
    std::vector<int> found;
    for (PageId id = store->index(lane)[c].head; id != kNone;) {
      const PageId next = store->pages()[id].next;
      const int count = store->pages()[id].count;
      CodecId codec{};
      if (const PageView view = store->resident(id, &codec); view.data != nullptr)
        for (int i = 0; i < count; ++i) found.push_back(view.meta[i].position);
      id = next;
    }
    store->unpin_all();
    return found;
  }
  // Everything of a cluster goes one tier down, and is there when this returns.
  void demote_all(int lane, ClusterId c) {
    for (int tier = 0; tier + 1 < static_cast<int>(shape.tiers.size()); ++tier) store->demote(lane, c, tier);
    store->drain();
  }
};

}  // namespace mosaic::testing
