#include "policy/clustering.h"

#include <algorithm>
#include <cmath>

namespace mosaic {

namespace {

constexpr int kChunk = kAssignItems;  // clusters looked up at once
constexpr uint8_t kTaken = 1;         // in this round: merges
constexpr uint8_t kSeen = 2;          // its nearest was looked up
constexpr int kAhead = 64;            // one pair merges at a time for every so many clusters, up to a chunk

float distance_of(float similarity) { return std::max(0.0f, 2 - 2 * similarity); }

}  // namespace

void Clustering::bind(const StoreShape& shape, Region& region, float radius, bool scenes) {
  scenes_ = scenes;
  lanes_ = static_cast<size_t>(shape.lanes);
  clusters_ = static_cast<size_t>(std::max(shape.index.capacity, 1));
  const Size tokens = std::max(shape.max_run, kChunk), row = shape.page.row();
  radius_ = region.take<float>("policy", shape.lanes, radius);
  near_ = region.take<Near>("policy", Size(shape.lanes) * clusters_, Near{});
  rows_ = region.take<int32_t>("policy", clusters_);
  taken_ = region.take<uint8_t>("policy", clusters_);
  best_ = region.take<int32_t>("policy", tokens);
  similarity_ = region.take<float>("policy", tokens);
  k_ = region.take<float>("policy", row * kChunk);
  v_ = region.take<float>("policy", row * kChunk);
  chunk_ = region.take<ClusterId>("policy", kChunk);
}

void Clustering::label(const ClusterStore& store, const AdmitBatch& batch, Placement* out, float* distance) {
  const ClusterIndex& index = store.index(batch.lane);
  // From half full on, the nearest pairs are kept known, a few a frame, so that no frame pays for all of them.
  if (2 * index.live().size() >= static_cast<size_t>(index.capacity()))
    look_up(store, batch.lane, scenes_, 2 * std::max(batch.tokens.n, kChunk));
  AssignArgs args = index.against_means(store.shape().value_weight);
  args.k = batch.tokens.k;
  args.v = batch.tokens.v;
  args.items = batch.tokens.n;
  for (const ClusterId c : index.live())
    if (!scenes_ || index[c].scene == batch.scene) rows_[args.n_rows++] = c;
  args.rows = rows_;
  args.best = best_;
  args.similarity = similarity_;
  store.ops().assign(args);
  for (int i = 0; i < batch.tokens.n; ++i) {
    const bool any = best_[i] != kNone;
    const float far = any ? distance_of(similarity_[i]) : std::numeric_limits<float>::infinity();
    out[i] = {};
    if (any && far <= radius_[batch.lane]) out[i].cluster = best_[i];
    if (distance != nullptr) distance[i] = far;
  }
}

void Clustering::look_up(const ClusterStore& store, int lane, bool inside, int most) {
  const ClusterIndex& index = store.index(lane);
  const Near* const near = near_of(lane);
  const auto live = index.live();
  const auto changed = [&](ClusterId c) { return near[c].version != index[c].version; };
  for (size_t first = 0; first < live.size() && most > 0; ++first) {
    if (!changed(live[first])) continue;
    int n = 0;  // a chunk is of one scene
    for (size_t i = first; i < live.size() && n < kChunk; ++i)
      if (changed(live[i]) && (!inside || index[live[i]].scene == index[live[first]].scene)) chunk_[n++] = live[i];
    look_up_chunk(store, lane, inside, n);
    most -= n;
  }
}

void Clustering::look_up_chunk(const ClusterStore& store, int lane, bool inside, int n) {
  const ClusterIndex& index = store.index(lane);
  Near* const near = near_of(lane);
  const auto d = static_cast<size_t>(index.dim());
  for (int i = 0; i < n; ++i) {
    near[chunk_[i]] = {kNone, kLooking, std::numeric_limits<float>::infinity()};
    const size_t from = static_cast<size_t>(chunk_[i]) * d, to = static_cast<size_t>(i) * d;
    for (size_t e = 0; e < d; ++e) {
      k_[to + e] = half_to_float(index.mean_k()[from + e]);
      v_[to + e] = half_to_float(index.mean_v()[from + e]);
    }
  }
  // A cluster is its own nearest: the chunk is compared with all others at once, and with itself pair by pair.
  AssignArgs args = index.against_means(store.shape().value_weight);
  args.k = k_;
  args.v = v_;
  args.items = n;
  const SceneId scene = index[chunk_[0]].scene;
  for (const ClusterId c : index.live())
    if (near[c].version != kLooking && (!inside || index[c].scene == scene)) rows_[args.n_rows++] = c;
  args.rows = rows_;
  args.best = best_;
  args.similarity = similarity_;
  store.ops().assign(args);
  for (int i = 0; i < n; ++i) {
    near[chunk_[i]].version = index[chunk_[i]].version;
    if (best_[i] == kNone) continue;
    near[chunk_[i]].cluster = best_[i];
    near[chunk_[i]].distance = distance_of(similarity_[i]);
  }
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) {
      const float apart = std::max(0.0f, index.distance(chunk_[i], chunk_[j], store.shape().value_weight));
      for (const auto& [a, b] : {std::pair{chunk_[i], chunk_[j]}, std::pair{chunk_[j], chunk_[i]}})
        if (apart < near[a].distance) near[a] = {b, near[a].version, apart};
    }
}

int Clustering::merge_closest(const ClusterStore& store, int lane, Eviction* out, int capacity) {
  if (const int n = pair_up(store, lane, scenes_, out, capacity); n > 0 || !scenes_) return n;
  // Every scene is down to one cluster: clusters of different scenes must merge, for nothing is dropped.
  forget(store, lane);
  const int n = pair_up(store, lane, false, out, capacity);
  forget(store, lane);
  return n;
}

void Clustering::forget(const ClusterStore& store, int lane) {
  for (const ClusterId c : store.index(lane).live()) near_of(lane)[c].version = kUnknown;
}

int Clustering::pair_up(const ClusterStore& store, int lane, bool inside, Eviction* out, int capacity) {
  const ClusterIndex& index = store.index(lane);
  Near* const near = near_of(lane);
  const int wanted = std::min(capacity, std::clamp(index.capacity() / kAhead, 1, kChunk));
  std::fill_n(taken_, clusters_, uint8_t{0});
  look_up(store, lane, inside, std::numeric_limits<int>::max());
  int n = 0;
  while (n < wanted) {
    ClusterId best = kNone;
    for (const ClusterId c : index.live()) {
      if (near[c].cluster == kNone || taken_[c] == kTaken || taken_[near[c].cluster] == kTaken) continue;
      if (best == kNone || near[c].distance < near[best].distance ||
          (near[c].distance == near[best].distance && c < best))
        best = c;
    }
    if (best == kNone) break;
    const ClusterId other = near[best].cluster;
    // The other one may be gone or have moved since, and this one's nearest may be a third: what is remembered is never
    // farther than the truth. Each looks again at most once.
    const bool there = index.is_live(other) && other != best && (!inside || index[other].scene == index[best].scene);
    const float apart = there ? std::max(0.0f, index.distance(best, other, store.shape().value_weight)) : 0;
    if (taken_[best] != kSeen && (!there || apart > near[best].distance * 1.001f + 1e-6f)) {
      chunk_[0] = best;
      look_up_chunk(store, lane, inside, 1);
      taken_[best] = kSeen;
      continue;
    }
    taken_[best] = taken_[other] = kTaken;
    const bool keeps =
        index.count(best) > index.count(other) || (index.count(best) == index.count(other) && best < other);
    out[n++] = {Eviction::Kind::kMerge, lane, keeps ? best : other, keeps ? other : best};
    radius_[lane] = std::max(radius_[lane], apart);
  }
  return n;
}

void Clustering::serialize(Snapshot& s) {
  s.all_in_range(radius_, lanes_, 0.0f, std::numeric_limits<float>::infinity(), "a radius is a distance");
  for (size_t i = 0; i < lanes_ * clusters_; ++i) {
    s.in_range(near_[i].cluster, kNone, static_cast<ClusterId>(clusters_) - 1, "the nearest cluster");
    s.item(near_[i].version);
    s.item(near_[i].distance);
    s.require(!std::isnan(near_[i].distance), "a distance is a number");
  }
}

}  // namespace mosaic
