// mosaic: cross-modal clusters, after Mosaic (arXiv 2604.10060) - frames by their embedding into scenes, tokens by their
// keys into clusters of one scene; kept, moved and retrieved as units. The paper has no cap. Here:
//   admit    mosaic.cc          nearest cluster of the frame's scene, if within the radius; else a cluster of its own. The
//            variance rule s2 <= tau(n) cuts clusters that grow too wide, later if they are on disk.
//   select   mosaic_select.cc   scenes, then clusters of the best scenes, by attention mass or by dot product, within a
//            token budget.
//   evict  mosaic_evict.cc  denser codec > colder tier > the members that their mean stands for best > the nearest
//            clusters of a scene merge. Merging raises the radius of the lane, so the granularity follows the cap (BIRCH's
//            rising threshold).
// Each part can be taken away by a setting; published=1 sets those of the paper; unit="tokens" is another memory
// (mosaic_tokens.cc).
#pragma once

#include <limits>

#include "policy/clustering.h"
#include "policy/quantile.h"
#include "policy/retrieval.h"

namespace mosaic {

struct MosaicSettings {
  enum class Levels : uint8_t {
    kNested,    // scenes, and clusters inside them
    kVisual,    // scenes alone: a scene is the unit, in as many rows of the index as its tokens need
    kSemantic,  // clusters over the whole stream
    kTime,      // no similarity: units of a few frames in the order they came
  };
  enum class Tau : uint8_t {
    kFixed,     // tau as published; the nearest cluster is always joined
    kAdaptive,  // a share of the lane's radius, which merging raises
    kQuantile,  // tau_min and tau_max are levels: quantiles of the variances observed in the lane
  };
  Levels levels = Levels::kNested;
  Tau tau = Tau::kAdaptive;
  bool eager = false;         // a spilled cluster is fetched and cut at once; false: when it is next read
  bool by_frame = false;      // the item that is assigned: a frame's tokens together, by their mean; false: each token
  float tau_max = 0.5f;       // allowed variance of a small cluster
  float tau_min = 0.2f;       // and of a large one
  float n0 = 32;              // tokens over which it falls
  float radius = 0.02f;       // where an adaptive radius starts
  float scene_tau = 0.05f;    // variance over which a frame opens a new scene
  float value_weight = 1.0f;  // of values beside keys in the metric; 0 is the paper's
  ScoreMode score = ScoreMode::kMass;  // kDot, the mean query's dot product, is the paper's
  int read_scenes = 0;                 // scenes read for a question; 0: all
  float thin = 0.25f;                  // under pressure a token within this share of the radius joins the summary only
  PolicyNeeds::Reading read{.of = PolicyNeeds::Reading::Of::kChosen};
};

class Mosaic final : public Policy {
 public:
  explicit Mosaic(const MosaicSettings& settings) : s_(settings) {}
  const char* name() const override { return "mosaic"; }
  PolicyNeeds needs() const override;
  void bind(const StoreShape& shape, Region& region) override;

  SceneId scene(const ClusterStore& store, const float* embedding) override;
  void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override;
  float radius(int lane) const override;
  float tolerance(int lane, int count) const override;
  void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
              SelectResult* result) override;
  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override;
  void serialize(Snapshot& s, const ClusterStore& store) override;

 private:
  using Levels = MosaicSettings::Levels;
  using Tau = MosaicSettings::Tau;
  struct Observed {  // of a lane
    RunningQuantile low, high;
  };
  // Units are filled in the order frames come; nothing in them is compared, so nothing is cut.
  bool fills() const { return s_.levels == Levels::kVisual || s_.levels == Levels::kTime; }
  bool has_scenes() const { return s_.levels == Levels::kNested || s_.levels == Levels::kVisual; }
  // The published curve between two values, or two quantiles of what was observed.
  float tau(int lane, int count) const;
  void label_tokens(const ClusterStore& store, const AdmitBatch& batch, Placement* out);
  void label_frame(const ClusterStore& store, const AdmitBatch& batch, Placement* out);
  void label_in_order(const ClusterStore& store, const AdmitBatch& batch, Placement* out);
  void observe(int lane, float variance);
  void score_scenes(const ClusterIndex& index, int n, const SelectScratch& scratch);
  int keep_best_scenes(const ClusterStore& store, const ClusterIndex& index, int n, const SelectScratch& scratch);
  int merge_in_order(const ClusterStore& store, int lane, bool inside, Eviction* out, int capacity);

  MosaicSettings s_;
  Clustering clustering_;         // unless units are filled in order
  Observed* observed_ = nullptr;  // [lanes], tau=quantile alone
  int32_t* rows_ = nullptr;       // [clusters]
  float* scene_score_ = nullptr;  // [scenes]
  int32_t* scene_count_ = nullptr;
  size_t scenes_ = 0;
  float* distance_ = nullptr;  // [tokens of a batch]
  float* mean_k_ = nullptr;    // [row]
  float* mean_v_ = nullptr;
  int dram_slots_ = 0;
};

}  // namespace mosaic
