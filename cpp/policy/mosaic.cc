// mosaic: cross-modal clusters, after Mosaic (arXiv 2604.10060) - frames by their embedding into scenes, tokens by their
// keys into clusters of one scene; kept, moved and retrieved as units. The paper has no cap. Here:
//   admit    nearest cluster of the frame's scene, if within reach; else a cluster of its own. The variance rule
//            s2 <= tau(n) cuts clusters that grow too wide, later if they are on disk.
//   relieve  denser codec > colder tier > the members that their mean stands for best > the nearest clusters of a scene
//            merge. Merging raises the reach of the lane, so the granularity follows the cap (BIRCH's rising threshold).
//   select   scenes, then clusters of the best scenes, by attention mass or by dot product, within a token budget.
#include <algorithm>
#include <cmath>

#include "policy/policy.h"

namespace mosaic {

namespace {

struct MosaicSettings {
  float tau_max = 0.5f;     // allowed variance of a small cluster, as a share of the reach when adaptive
  float tau_min = 0.2f;     // and of a large one
  float n0 = 32;            // tokens over which it falls
  bool adaptive = true;     // tau and reach follow what is observed; false: the paper's constants, nearest always joins
  float reach = 0.02f;      // where an adaptive reach starts
  float scene_tau = 0.05f;  // variance over which a frame opens a new scene
  float value_weight = 1.0f;  // of values beside keys in the metric; 0 is the paper's
  bool mass = true;           // score by attention mass; false: dot product with the mean query (the paper's)
  int scenes = 0;             // scenes read for a question; 0: all
  float thin = 0.25f;         // under pressure a token within this share of the reach joins the summary only
};

class Mosaic final : public Policy {
 public:
  explicit Mosaic(const MosaicSettings& settings) : s_(settings) {}
  const char* name() const override { return "mosaic"; }
  PolicyNeeds needs() const override {
    return {.by_token = true, .summaries = true, .scenes = true, .selects = true, .value_weight = s_.value_weight};
  }

  void bind(const ClusterStore& store) override {
    reach_.assign(static_cast<size_t>(store.shape().lanes), s_.reach);
    const auto rows = static_cast<size_t>(std::max(store.shape().index.capacity, 1));
    rows_.resize(rows);
    near_.resize(rows);
    scene_score_.resize(static_cast<size_t>(std::max(store.shape().scenes, 1)));
    scene_count_.resize(scene_score_.size());
    best_.resize(static_cast<size_t>(store.shape().max_run));
    similarity_.resize(best_.size());
    mean_k_.resize(static_cast<size_t>(store.shape().page.row()));
    mean_v_.resize(mean_k_.size());
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
    args.rows = rows_.data();
    args.n_rows = index.of_scene(block.scene, rows_.data());
    args.value_weight = s_.value_weight;
    args.best = best_.data();
    args.similarity = similarity_.data();
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
    const ClusterIndex& index = store.index(query.lane);
    int n = 0;
    for (const ClusterId c : index.live())
      if (index[c].last_time >= query.since_ms) result->rows[n++] = c;
    std::sort(result->rows, result->rows + n);
    for (int i = 0; i < n; ++i) result->bias[i] = std::log(static_cast<float>(index.count(result->rows[i])));
    ScoreArgs args;
    args.q = query.q;
    args.tokens = query.tokens;
    args.q_heads = query.q_heads;
    args.q_stride = query.q_stride;
    args.shape = store.shape().page;
    args.scale = query.scale;
    args.mode = s_.mass ? ScoreMode::kMass : ScoreMode::kDot;
    args.mean_k = index.mean_k();
    args.rows = result->rows;
    args.row_bias = result->bias;
    args.n_rows = n;
    args.score = result->scratch;
    store.ops().score(args);
    if (s_.scenes > 0 && s_.scenes < store.scenes()->size()) n = keep_best_scenes(store, index, n, result);
    // Best first, until the members fill the budget; a cluster that does not fit is left to its summary.
    const int order = store.ops().top_k(result->scratch, n, n, result->chosen);
    int tokens = 0;
    result->n = 0;
    for (int i = 0; i < order; ++i) {
      const int at = result->chosen[i];
      const ClusterId c = result->rows[at];
      if (tokens + index[c].paged > query.max_tokens) continue;
      tokens += index[c].paged;
      result->score[result->n] = result->scratch[at];
      result->chosen[result->n++] = c;
    }
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
  // Scenes by the sum of their clusters' mass, or by the dot product with their mean key (the mean of the clusters'
  // products, weighted by count, is that product).
  int keep_best_scenes(const ClusterStore& store, const ClusterIndex& index, int n, SelectResult* result) {
    std::fill(scene_score_.begin(), scene_score_.end(), 0.0f);
    std::fill(scene_count_.begin(), scene_count_.end(), 0);
    for (int i = 0; i < n; ++i) {
      const auto scene = static_cast<size_t>(index[result->rows[i]].scene);
      const int count = index.count(result->rows[i]);
      scene_score_[scene] += s_.mass ? result->scratch[i] : result->scratch[i] * static_cast<float>(count);
      scene_count_[scene] += count;
    }
    for (size_t s = 0; s < scene_score_.size(); ++s) {
      if (scene_count_[s] == 0) {
        scene_score_[s] = -std::numeric_limits<float>::infinity();
      } else if (!s_.mass) {
        scene_score_[s] /= static_cast<float>(scene_count_[s]);
      }
    }
    const int scenes = static_cast<int>(scene_score_.size());
    const int best = store.ops().top_k(scene_score_.data(), scenes, std::min(s_.scenes, scenes), scene_count_.data());
    int kept = 0;
    for (int i = 0; i < n; ++i) {
      const SceneId scene = index[result->rows[i]].scene;
      if (std::find(scene_count_.begin(), scene_count_.begin() + best, scene) == scene_count_.begin() + best) continue;
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
      args.k = mean_k_.data();
      args.v = mean_v_.data();
      args.items = 1;
      args.dim = index.dim();
      args.stride = d;
      args.mean_k = index.mean_k();
      args.mean_v = index.mean_v();
      args.rows = rows_.data();
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

  struct Near {
    ClusterId cluster = kNone;
    float distance = 0;
    bool taken = false;
  };
  MosaicSettings s_;
  std::vector<float> reach_;  // [lanes]
  std::vector<int32_t> rows_;
  std::vector<Near> near_;
  std::vector<float> scene_score_;
  std::vector<int32_t> scene_count_;
  std::vector<int32_t> best_;
  std::vector<float> similarity_;
  std::vector<float> mean_k_, mean_v_;
  int dram_slots_ = 0;
};

}  // namespace

std::unique_ptr<Policy> make_mosaic(const PolicySettings& settings) {
  MosaicSettings s;
  SettingReader("mosaic", settings)
      .number("tau_max", &s.tau_max, 0, 4)
      .number("tau_min", &s.tau_min, 0, 4)
      .number("n0", &s.n0, 1e-3, 1e9)
      .flag("adaptive", &s.adaptive)
      .number("reach", &s.reach, 0, 4)
      .number("scene_tau", &s.scene_tau, 0, 4)
      .number("value_weight", &s.value_weight, 0, 100)
      .flag("mass", &s.mass)
      .number("scenes", &s.scenes, 0, 1e6)
      .number("thin", &s.thin, 0, 1)
      .finish();
  return std::make_unique<Mosaic>(s);
}

}  // namespace mosaic
