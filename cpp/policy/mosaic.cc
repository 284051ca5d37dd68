// Where tokens go: what mosaic admits, how far a cluster goes and when it is cut; and its settings.
#include "policy/mosaic.h"

#include <algorithm>
#include <cmath>

#include "policy/mosaic_tokens.h"

namespace mosaic {

PolicyNeeds Mosaic::needs() const {
  return {.group = {.by_token = true,
                    .scenes = has_scenes(),
                    .grows_on_disk = !fills() && !s_.by_frame,
                    .eager_splits = s_.eager,
                    .value_weight = s_.value_weight},
          .means = PolicyNeeds::Means::kAttended,
          .read = s_.read};
}

void Mosaic::bind(const StoreShape& shape, Region& region) {
  const float radius = s_.tau == Tau::kAdaptive ? s_.radius : std::numeric_limits<float>::infinity();
  if (!fills()) clustering_.bind(shape, region, radius, has_scenes());
  scenes_ = static_cast<size_t>(std::max(shape.scenes, 1));
  rows_ = region.take<int32_t>("policy", std::max(shape.index.capacity, 1));
  scene_score_ = region.take<float>("policy", scenes_);
  scene_count_ = region.take<int32_t>("policy", scenes_);
  distance_ = region.take<float>("policy", shape.max_run);
  mean_k_ = region.take<float>("policy", shape.page.row());
  mean_v_ = region.take<float>("policy", shape.page.row());
  if (s_.tau == Tau::kQuantile)
    observed_ =
        region.take<Observed>("policy", shape.lanes, {RunningQuantile(s_.tau_min), RunningQuantile(s_.tau_max)});
  dram_slots_ = 0;
  for (const TierSpec& tier : shape.tiers) dram_slots_ += tier.medium == Medium::disk ? 0 : tier.slots;
}

SceneId Mosaic::scene(const ClusterStore& store, const float* embedding) {
  const auto [scene, distance] = store.scenes()->nearest(embedding);
  if (scene == kNone) return kNone;
  return distance <= s_.scene_tau || store.scenes()->variance_with(scene, embedding) <= s_.scene_tau / 2 ? scene
                                                                                                         : kNone;
}

void Mosaic::admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) {
  if (fills()) {
    label_in_order(store, batch, out);
  } else if (s_.by_frame) {
    label_frame(store, batch, out);
  } else {
    label_tokens(store, batch, out);
  }
}

void Mosaic::label_tokens(const ClusterStore& store, const AdmitBatch& batch, Placement* out) {
  clustering_.label(store, batch, out, distance_);
  const bool pressed = store.free_slots() * 8 < dram_slots_ && !store.can_spill();
  const float radius = this->radius(batch.lane);
  const auto row = static_cast<size_t>(store.index(batch.lane).dim());
  for (int i = 0; i < batch.tokens.n; ++i) {
    const auto at = static_cast<size_t>(i);
    const ClusterId best = out[i].cluster;
    if (best == Placement::kOpen) continue;
    if (s_.tau == Tau::kQuantile)
      observe(batch.lane, store.variance_with(batch.lane, best, batch.tokens.k + at * row, batch.tokens.v + at * row));
    out[i].keep = !(pressed && distance_[at] <= s_.thin * radius);
  }
}

// The frame's mean key (and value) chooses, all its tokens follow. The store's variance is over tokens, so no cluster is
// cut: a frame joins within the radius, or while tau allows, and where the cluster has room for all of it.
void Mosaic::label_frame(const ClusterStore& store, const AdmitBatch& batch, Placement* out) {
  const ClusterIndex& index = store.index(batch.lane);
  const auto row = static_cast<size_t>(index.dim());
  const auto n = static_cast<size_t>(batch.tokens.n);
  for (size_t e = 0; e < row; ++e) {
    double k = 0, v = 0;
    for (size_t i = 0; i < n; ++i) {
      k += batch.tokens.k[i * row + e];
      v += batch.tokens.v[i * row + e];
    }
    mean_k_[e] = static_cast<float>(k / static_cast<double>(n));
    mean_v_[e] = static_cast<float>(v / static_cast<double>(n));
  }
  ClusterId best = kNone;
  float similarity = 0;
  AssignArgs args = index.against_means(store.shape().value_weight);
  args.k = mean_k_;
  args.v = mean_v_;
  args.items = 1;
  args.rows = rows_;
  args.best = &best;
  args.similarity = &similarity;
  for (const ClusterId c : index.live())
    if (index[c].scene == batch.scene && index.count(c) + batch.tokens.n <= store.shape().max_members)
      rows_[args.n_rows++] = c;
  store.ops().assign(args);
  const float distance = 2 - 2 * similarity;
  bool joins = best != kNone;
  if (joins && s_.tau == Tau::kQuantile) observe(batch.lane, distance);
  if (joins)
    joins = distance <=
            (s_.tau == Tau::kAdaptive ? radius(batch.lane) : tau(batch.lane, index.count(best) / batch.tokens.n));
  for (size_t i = 0; i < n; ++i) {
    out[i] = {};
    out[i].cluster = joins ? best : Placement::kOpen;
    out[i].together = 0;
  }
}

// The newest unit of the scene (of the stream) is filled, then the next one is opened; a frame is never divided.
void Mosaic::label_in_order(const ClusterStore& store, const AdmitBatch& batch, Placement* out) {
  const ClusterIndex& index = store.index(batch.lane);
  ClusterId newest = kNone;
  const int n = index.of_scene(batch.scene, rows_);
  for (int i = 0; i < n; ++i)
    if (newest == kNone || index[rows_[i]].touched > index[newest].touched) newest = rows_[i];
  const bool fits = newest != kNone && index.count(newest) + batch.tokens.n <= store.shape().max_members &&
                    (index[newest].paged == index.count(newest) || index.count(newest) == 1);
  for (int i = 0; i < batch.tokens.n; ++i) {
    out[i] = {};
    out[i].cluster = fits ? newest : Placement::kOpen;
    out[i].together = 0;
  }
}

void Mosaic::observe(int lane, float variance) {
  observed_[lane].low.add(static_cast<double>(variance));
  observed_[lane].high.add(static_cast<double>(variance));
}

float Mosaic::radius(int lane) const {
  return s_.tau == Tau::kAdaptive && !fills() ? clustering_.radius(lane) : std::numeric_limits<float>::infinity();
}

float Mosaic::tau(int lane, int count) const {
  float low = s_.tau_min, high = s_.tau_max;
  if (s_.tau == Tau::kQuantile) {  // 0 before anything was seen: only equal tokens join
    low = static_cast<float>(observed_[lane].low.value());
    high = static_cast<float>(observed_[lane].high.value());
  }
  return low + (high - low) * std::exp(-static_cast<float>(count) / s_.n0);
}

float Mosaic::tolerance(int lane, int count) const {
  if (fills() || s_.by_frame) return std::numeric_limits<float>::infinity();
  const float allowed = tau(lane, count);
  return s_.tau == Tau::kAdaptive ? allowed * 2 * clustering_.radius(lane) : allowed;
}

void Mosaic::serialize(Snapshot& s, const ClusterStore& store) {
  if (!fills()) clustering_.serialize(s);
  for (int lane = 0; lane < (observed_ != nullptr ? store.shape().lanes : 0); ++lane) {
    observed_[lane].low.serialize(s);
    observed_[lane].high.serialize(s);
  }
}

MOSAIC_POLICY("mosaic", make_mosaic) {
  if (is_set_to(settings, "unit", "tokens")) return make_mosaic_of_tokens(without(settings, "unit"));
  MosaicSettings s;
  SettingReader reader("mosaic", settings);
  int unit = 0;
  reader.choice("unit", &unit, {"clusters", "tokens"});
  bool published = false;
  reader.flag("published", &published);
  if (published) {
    s.tau = MosaicSettings::Tau::kFixed;
    s.value_weight = 0;
    s.score = ScoreMode::kDot;
    s.thin = 0;
  }
  auto levels = static_cast<int>(s.levels), tau = static_cast<int>(s.tau);
  int split = 0, item = 0;
  reader.choice("levels", &levels, {"nested", "visual", "semantic", "none"})
      .choice("tau", &tau, {"fixed", "adaptive", "quantile"})
      .choice("split", &split, {"deferred", "eager"})
      .choice("item", &item, {"token", "frame"});
  s.levels = static_cast<MosaicSettings::Levels>(levels);
  s.tau = static_cast<MosaicSettings::Tau>(tau);
  s.eager = split == 1;
  s.by_frame = item == 1;
  const bool quantiles = s.tau == MosaicSettings::Tau::kQuantile;
  if (quantiles) {
    s.tau_max = 0.95f;
    s.tau_min = 0.8f;
  }
  read_score(reader, &s.score)
      .number("tau_max", &s.tau_max, 0, quantiles ? 1 : 4)
      .number("tau_min", &s.tau_min, 0, quantiles ? 1 : 4)
      .number("n0", &s.n0, 1e-3, 1e9)
      .number("radius", &s.radius, 0, 4)
      .number("scene_tau", &s.scene_tau, 0, 4)
      .number("value_weight", &s.value_weight, 0, 100)
      .number("read_scenes", &s.read_scenes, 0, 1e6)
      .number("thin", &s.thin, 0, 1);
  read_frames_read(reader, &s.read);
  read_query(reader, &s.read).finish();
  return std::make_unique<Mosaic>(s);
}

}  // namespace mosaic
