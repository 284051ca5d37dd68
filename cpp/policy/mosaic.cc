// mosaic: cross-modal clusters, after Mosaic (arXiv 2604.10060) - frames by their embedding into scenes, tokens by their
// keys into clusters of one scene; kept, moved and retrieved as units. The paper has no cap. Here:
//   admit    nearest cluster of the frame's scene, if within reach; else a cluster of its own. The variance rule
//            s2 <= tau(n) cuts clusters that grow too wide, later if they are on disk.
//   relieve  denser codec > colder tier > the members that their mean stands for best > the nearest clusters of a scene
//            merge. Merging raises the reach of the lane, so the granularity follows the cap (BIRCH's rising threshold).
//   select   scenes, then clusters of the best scenes, by attention mass or by dot product, within a token budget.
#include <algorithm>
#include <cmath>

#include "policy/retrieval.h"

namespace mosaic {

namespace {

struct MosaicSettings {
  float tau_max = 0.5f;     // allowed variance of a small cluster, as a share of the reach when adaptive
  float tau_min = 0.2f;     // and of a large one
  float n0 = 32;            // tokens over which it falls
  bool adaptive = true;     // tau and reach follow what is observed; false: the paper's constants, nearest always joins
  float reach = 0.02f;      // where an adaptive reach starts
  float scene_tau = 0.05f;  // variance over which a frame opens a new scene
  float value_weight = 1.0f;           // of values beside keys in the metric; 0 is the paper's
  ScoreMode score = ScoreMode::kMass;  // kDot, the mean query's dot product, is the paper's
  int scenes = 0;                      // scenes read for a question; 0: all
  float thin = 0.25f;                  // under pressure a token within this share of the reach joins the summary only
};

class Mosaic final : public Policy {
 public:
  explicit Mosaic(const MosaicSettings& settings) : s_(settings) {}
  const char* name() const override { return "mosaic"; }
  PolicyNeeds needs() const override {
    return {.by_token = true,
            .means = true,
            .summaries = true,
            .scenes = true,
            .selects = true,
            .value_weight = s_.value_weight};
  }

  size_t scratch_bytes(const StoreShape& shape) const override {
    const Sizes n(shape);
    return Region::rounded(n.lanes * sizeof(float)) + Region::rounded(n.rows * sizeof(int32_t)) +
           Region::rounded(n.rows * sizeof(Near)) + Region::rounded(n.scenes * sizeof(float)) +
           Region::rounded(n.scenes * sizeof(int32_t)) + Region::rounded(n.tokens * sizeof(int32_t)) +
           Region::rounded(n.tokens * sizeof(float)) + 2 * Region::rounded(n.row * sizeof(float));
  }

  void bind(const ClusterStore& store, Region& region) override {
    const Sizes n(store.shape());
    reach_ = region.take<float>("policy", n.lanes);
    std::fill_n(reach_, n.lanes, s_.reach);
    rows_ = region.take<int32_t>("policy", n.rows);
    near_ = region.take<Near>("policy", n.rows);
    scene_score_ = region.take<float>("policy", n.scenes);
    scene_count_ = region.take<int32_t>("policy", n.scenes);
    scenes_ = n.scenes;
    best_ = region.take<int32_t>("policy", n.tokens);
    similarity_ = region.take<float>("policy", n.tokens);
    mean_k_ = region.take<float>("policy", n.row);
    mean_v_ = region.take<float>("policy", n.row);
    dram_slots_ = store.free_slots();
  }

  SceneId scene(const ClusterStore& store, const float* embedding) override {
    const auto [scene, distance] = store.scenes()->nearest(embedding);
    if (scene == kNone) return kNone;
    return distance <= s_.scene_tau || store.scenes()->variance_with(scene, embedding) <= s_.scene_tau / 2 ? scene
                                                                                                           : kNone;
  }

  void admit(const ClusterStore& store, const AdmitBlock& block, Placement* out) override {
    const ClusterIndex& index = store.index(block.lane);
    AssignArgs args;
    args.k = block.tokens.k;
    args.v = block.tokens.v;
    args.items = block.tokens.n;
    args.dim = index.dim();
    args.stride = static_cast<size_t>(index.dim());
    args.mean_k = index.mean_k();
    args.mean_v = index.mean_v();
    args.rows = rows_;
    args.n_rows = index.of_scene(block.scene, rows_);
    args.value_weight = s_.value_weight;
    args.best = best_;
    args.similarity = similarity_;
    store.ops().assign(args);
    const bool pressed = store.free_slots() * 8 < dram_slots_ && !store.can_spill();
    const float reach = this->reach(block.lane);
    for (int i = 0; i < block.tokens.n; ++i) {
      const float distance = 2 - 2 * similarity_[static_cast<size_t>(i)];
      out[i] = {};
      if (best_[static_cast<size_t>(i)] == kNone || distance > reach) continue;
      out[i].cluster = best_[static_cast<size_t>(i)];
      out[i].keep = !(pressed && distance <= s_.thin * reach);
    }
  }

  float reach(int lane) const override {
    return s_.adaptive ? reach_[static_cast<size_t>(lane)] : std::numeric_limits<float>::infinity();
  }
  float tolerance(int lane, int count) const override {
    const float tau = s_.tau_min + (s_.tau_max - s_.tau_min) * std::exp(-static_cast<float>(count) / s_.n0);
    return s_.adaptive ? tau * 2 * reach_[static_cast<size_t>(lane)] : tau;
  }

  void select(const ClusterStore& store, const SelectQuery& query, SelectResult* result) override {
    int n = score_clusters(store, query, s_.score, result);
    if (s_.scenes > 0 && s_.scenes < store.scenes()->size())
      n = keep_best_scenes(store, store.index(query.lane), n, result);
    take_best(store, query, n, 0, result);
  }

  int relieve(const ClusterStore& store, const Need& need, Relief* out, int capacity) override {
    if (need.kind == Need::Kind::kClusters) return merge_nearest(store, need.lane, out, capacity);
    // Denser codec, then colder tier: a page goes one tier down where that has room, coldest tier first.
    const int last = store.tiers().size() - 1;
    for (int tier = need.kind == Need::Kind::kHotSlots ? 0 : last; tier >= 0; --tier) {
      const int to = store.tiers().colder(tier);
      if (to == kNone || store.tiers().free_slots(to) == 0) continue;
      if (need.kind == Need::Kind::kSlots && !(store.tiers().is_disk(to) && store.can_spill())) continue;
      const int wanted = std::min(capacity, std::max(need.amount, 4));
      int n = coldest(store, need, tier, out, wanted);
      if (n == 0 &&
          need.kind == Need::Kind::kSlots) {  // all grew with this frame: the disk still comes before summaries
        Need any = need;
        any.frame = std::numeric_limits<int32_t>::max();
        n = coldest(store, any, tier, out, wanted);
      }
      if (n > 0) return n;
    }
    if (need.kind == Need::Kind::kHotSlots) return 0;
    return best_summarised(store, need.lane, out);
  }

 private:
  struct Near {
    ClusterId cluster = kNone;
    float distance = 0;
    bool taken = false;
  };
  struct Sizes {
    explicit Sizes(const StoreShape& s)
        : lanes(static_cast<size_t>(s.lanes)),
          rows(static_cast<size_t>(std::max(s.index.capacity, 1))),
          scenes(static_cast<size_t>(std::max(s.scenes, 1))),
          tokens(static_cast<size_t>(s.max_run)),
          row(static_cast<size_t>(s.page.row())) {}
    size_t lanes, rows, scenes, tokens, row;
  };

  // Scenes by the sum of their clusters' mass, or by the dot product with their mean key (the mean of the clusters'
  // products, weighted by count, is that product).
  int keep_best_scenes(const ClusterStore& store, const ClusterIndex& index, int n, SelectResult* result) {
    std::fill_n(scene_score_, scenes_, 0.0f);
    std::fill_n(scene_count_, scenes_, 0);
    for (int i = 0; i < n; ++i) {
      const auto scene = static_cast<size_t>(index[result->rows[i]].scene);
      const int count = index.count(result->rows[i]);
      scene_score_[scene] +=
          (s_.score == ScoreMode::kMass) ? result->scratch[i] : result->scratch[i] * static_cast<float>(count);
      scene_count_[scene] += count;
    }
    for (size_t s = 0; s < scenes_; ++s) {
      if (scene_count_[s] == 0) {
        scene_score_[s] = -std::numeric_limits<float>::infinity();
      } else if (!(s_.score == ScoreMode::kMass)) {
        scene_score_[s] /= static_cast<float>(scene_count_[s]);
      }
    }
    const int scenes = static_cast<int>(scenes_);
    const int best = store.ops().top_k(scene_score_, scenes, std::min(s_.scenes, scenes), scene_count_);
    int kept = 0;
    for (int i = 0; i < n; ++i) {
      const SceneId scene = index[result->rows[i]].scene;
      if (std::find(scene_count_, scene_count_ + best, scene) == scene_count_ + best) continue;
      result->rows[kept] = result->rows[i];
      result->scratch[kept++] = result->scratch[i];
    }
    return kept;
  }

  // Clusters with pages in the tier, least recently grown first.
  int coldest(const ClusterStore& store, const Need& need, int tier, Relief* out, int wanted) {
    int n = 0;
    for (int k = 0; k < store.shape().lanes && n < wanted; ++k) {
      const int lane = (need.lane + k) % store.shape().lanes;  // the lane in need first
      const ClusterIndex& index = store.index(lane);
      for (;;) {
        ClusterId best = kNone;
        for (const ClusterId c : index.live()) {
          if (index[c].paged == 0 || index[c].touched >= need.frame) continue;
          if (best != kNone && index[c].touched >= index[best].touched) continue;
          bool taken = false;
          for (int i = 0; i < n; ++i) taken |= out[i].lane == lane && out[i].cluster == c;
          if (!taken && store.pages_in(lane, c, tier) > 0) best = c;
        }
        if (best == kNone || n == wanted) break;
        out[n++] = {Relief::Kind::kDemote, lane, best, kNone, tier};
      }
    }
    return n;
  }

  // The cluster whose mean stands for its members with the least error per page that comes free.
  int best_summarised(const ClusterStore& store, int lane, Relief* out) {
    for (int k = 0; k < store.shape().lanes; ++k) {
      const int at = (lane + k) % store.shape().lanes;
      const ClusterIndex& index = store.index(at);
      ClusterId best = kNone;
      float least = std::numeric_limits<float>::infinity();
      for (const ClusterId c : index.live()) {
        if (index[c].paged == 0) continue;
        const float loss = (index.variance(c) + 1e-6f) * static_cast<float>(index[c].paged) /
                           static_cast<float>(pages_for(index[c].paged));
        if (loss < least) {
          least = loss;
          best = c;
        }
      }
      if (best == kNone) continue;
      out[0] = {Relief::Kind::kSummarise, at, best};
      return 1;
    }
    return 0;
  }

  // The nearest pairs of one scene, disjoint, about a tenth of the index, so that the search is paid rarely.
  int merge_nearest(const ClusterStore& store, int lane, Relief* out, int capacity) {
    // Where every scene is down to one cluster, clusters of different scenes must merge: nothing is dropped.
    const int n = merge_pairs(store, lane, true, out, capacity);
    return n > 0 ? n : merge_pairs(store, lane, false, out, capacity);
  }

  int merge_pairs(const ClusterStore& store, int lane, bool inside, Relief* out, int capacity) {
    const ClusterIndex& index = store.index(lane);
    const int wanted = std::clamp(index.capacity() / 10, 1, std::min(capacity, 48));  // more would be felt in one frame
    const auto d = static_cast<size_t>(index.dim());
    int n = 0;
    for (const ClusterId c : index.live()) {  // nearest other cluster of its scene
      int rows = 0;
      for (const ClusterId other : index.live())
        if (other != c && (!inside || index[other].scene == index[c].scene)) rows_[static_cast<size_t>(rows++)] = other;
      near_[static_cast<size_t>(c)] = {kNone, std::numeric_limits<float>::infinity()};
      if (rows == 0) continue;
      for (size_t i = 0; i < d; ++i) {
        mean_k_[i] = half_to_float(index.mean_k()[static_cast<size_t>(c) * d + i]);
        mean_v_[i] = half_to_float(index.mean_v()[static_cast<size_t>(c) * d + i]);
      }
      AssignArgs args;
      args.k = mean_k_;
      args.v = mean_v_;
      args.items = 1;
      args.dim = index.dim();
      args.stride = d;
      args.mean_k = index.mean_k();
      args.mean_v = index.mean_v();
      args.rows = rows_;
      args.n_rows = rows;
      args.value_weight = s_.value_weight;
      ClusterId best = kNone;
      float similarity = 0;
      args.best = &best;
      args.similarity = &similarity;
      store.ops().assign(args);
      near_[static_cast<size_t>(c)] = {best, 2 - 2 * similarity};
    }
    float farthest = 0;
    while (n < wanted) {
      ClusterId best = kNone;
      for (const ClusterId c : index.live()) {
        const Near& near = near_[static_cast<size_t>(c)];
        if (near.cluster == kNone || near_[static_cast<size_t>(near.cluster)].taken || near.taken) continue;
        if (best == kNone || near.distance < near_[static_cast<size_t>(best)].distance) best = c;
      }
      if (best == kNone) break;
      Near& near = near_[static_cast<size_t>(best)];
      near.taken = near_[static_cast<size_t>(near.cluster)].taken = true;
      farthest = std::max(farthest, near.distance);
      out[n++] = {Relief::Kind::kMerge, lane, best, near.cluster};
    }
    float& reach = reach_[static_cast<size_t>(lane)];
    reach = std::max(reach, farthest);
    return n;
  }

  MosaicSettings s_;
  float* reach_ = nullptr;        // [lanes]
  int32_t* rows_ = nullptr;       // [clusters]
  Near* near_ = nullptr;          // [clusters]
  float* scene_score_ = nullptr;  // [scenes]
  int32_t* scene_count_ = nullptr;
  size_t scenes_ = 0;
  int32_t* best_ = nullptr;  // [tokens of a frame]
  float* similarity_ = nullptr;
  float* mean_k_ = nullptr;  // [row]
  float* mean_v_ = nullptr;
  int dram_slots_ = 0;
};

}  // namespace

std::unique_ptr<Policy> make_mosaic(const PolicySettings& settings) {
  MosaicSettings s;
  SettingReader reader("mosaic", settings);
  read_score(reader, &s.score)
      .number("tau_max", &s.tau_max, 0, 4)
      .number("tau_min", &s.tau_min, 0, 4)
      .number("n0", &s.n0, 1e-3, 1e9)
      .flag("adaptive", &s.adaptive)
      .number("reach", &s.reach, 0, 4)
      .number("scene_tau", &s.scene_tau, 0, 4)
      .number("value_weight", &s.value_weight, 0, 100)
      .number("scenes", &s.scenes, 0, 1e6)
      .number("thin", &s.thin, 0, 1)
      .finish();
  return std::make_unique<Mosaic>(s);
}

}  // namespace mosaic
