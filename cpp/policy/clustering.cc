#include "policy/clustering.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace mosaic {

namespace {

constexpr uint8_t kTaken = 1;      // in this round: merges
constexpr uint8_t kSeen = 2;       // its nearest was looked up
constexpr int kAhead = 64;         // one pair merges at a time for every so many clusters, up to a chunk
constexpr double kHost = 1 << 19;  // products, below which the host is there before a launch and a wait would be

float distance_of(float similarity) { return std::max(0.0f, 2 - 2 * similarity); }

}  // namespace

void Clustering::bind(const StoreShape& shape, Region& region, float radius, bool scenes) {
  scenes_ = scenes;
  lanes_ = static_cast<size_t>(shape.lanes);
  clusters_ = static_cast<size_t>(std::max(shape.index.capacity, 1));
  // Where a launch costs more than the work there is room to ask for much at once: of a large index little goes for that.
  const bool apart = region.has_private();
  chunks_ = apart ? std::clamp(shape.index.capacity / kAhead, 1, kMostChunks) : 1;
  const Size row = shape.page.row(), items = Size(kChunk) * chunks_;
  const Size tokens = apart ? Size(shape.max_run) + items : Size(std::max(shape.max_run, kChunk));
  radius_ = region.take<float>("policy", shape.lanes, radius);
  near_ = region.take<Near>("policy", Size(shape.lanes) * clusters_, Near{});
  rows_ = region.take<int32_t>("policy", apart ? Size(clusters_) * (chunks_ + 1) : Size(clusters_));
  taken_ = region.take<uint8_t>("policy", clusters_);
  best_ = region.take<int32_t>("policy", tokens);
  similarity_ = region.take<float>("policy", tokens);
  k_ = region.take<float>("policy", row * items);
  v_ = region.take<float>("policy", row * items);
  chunk_ = region.take<ClusterId>("policy", items);
  of_batch_ = apart ? static_cast<size_t>(chunks_) : 0;
}

void Clustering::label(const ClusterStore& store, const AdmitBatch& batch, Placement* out, float* distance) {
  const ClusterIndex& index = store.index(batch.lane);
  const size_t at = of_batch_ * kChunk;
  AssignArgs args = index.against_means(store.shape().value_weight);
  args.k = batch.tokens.k;
  args.v = batch.tokens.v;
  args.items = batch.tokens.n;
  args.best = best_ + at;
  args.similarity = similarity_ + at;
  // From half full on, the nearest pairs are kept known, a few a frame, so that no frame pays for all of them.
  const bool looks = 2 * index.live().size() >= static_cast<size_t>(index.capacity());
  const int most = looks ? 2 * std::max(batch.tokens.n, kChunk) : 0;
  if (of_batch_ == 0) look_up(store, batch.lane, scenes_, most);  // one after the other, in the same room
  int32_t* const rows = rows_ + of_batch_ * clusters_;
  for (const ClusterId c : index.live())
    if (!scenes_ || index[c].scene == batch.scene) rows[args.n_rows++] = c;
  args.rows = rows;
  if (of_batch_ != 0) {
    look_up(store, batch.lane, scenes_, most, &args);
  } else {
    store.ops().assign(args);
  }
  for (int i = 0; i < batch.tokens.n; ++i) {
    const bool any = args.best[i] != kNone;
    const float far = any ? distance_of(args.similarity[i]) : std::numeric_limits<float>::infinity();
    out[i] = {};
    if (any && far <= radius_[batch.lane]) out[i].cluster = args.best[i];
    if (distance != nullptr) distance[i] = far;
  }
}

// As many chunks at a time as there is room for: none depends on what comes of another.
void Clustering::look_up(const ClusterStore& store, int lane, bool inside, int most, const AssignArgs* besides) {
  const ClusterIndex& index = store.index(lane);
  const Near* const near = near_of(lane);
  const auto live = index.live();
  const auto changed = [&](ClusterId c) { return near[c].version != index[c].version && near[c].version != kAsked; };
  std::array<AssignArgs, kMostChunks + 1> asked;
  size_t n_asked = 0;
  int chunks = 0;
  const auto ask = [&] {
    if (besides != nullptr) asked[n_asked++] = *std::exchange(besides, nullptr);
    assign(store, std::span(asked).first(std::exchange(n_asked, 0)));
    for (int chunk = 0; chunk < chunks; ++chunk) take_in(store, lane, chunk);
    chunks = 0;
  };
  for (size_t first = 0; first < live.size() && most > 0; ++first) {
    if (!changed(live[first])) continue;
    int n = 0;  // a chunk is of one scene
    for (size_t i = first; i < live.size() && n < kChunk; ++i)
      if (changed(live[i]) && (!inside || index[live[i]].scene == index[live[first]].scene))
        chunk_[chunks * kChunk + n++] = live[i];
    asked[n_asked++] = chunk_args(store, lane, inside, chunks++, n);
    most -= n;
    if (chunks == chunks_) ask();
  }
  if (chunks > 0 || besides != nullptr) ask();
}

// A cluster is its own nearest: the chunk is compared with all others at once, and with itself pair by pair.
AssignArgs Clustering::chunk_args(const ClusterStore& store, int lane, bool inside, int chunk, int n) {
  const ClusterIndex& index = store.index(lane);
  Near* const near = near_of(lane);
  const auto d = static_cast<size_t>(index.dim());
  const size_t first = static_cast<size_t>(chunk) * kChunk;
  const ClusterId* const ids = chunk_ + first;
  for (int i = 0; i < n; ++i) {
    near[ids[i]] = {kNone, kLooking, std::numeric_limits<float>::infinity()};
    const size_t from = static_cast<size_t>(ids[i]) * d, to = (first + static_cast<size_t>(i)) * d;
    for (size_t e = 0; e < d; ++e) {
      k_[to + e] = half_to_float(index.mean_k()[from + e]);
      v_[to + e] = half_to_float(index.mean_v()[from + e]);
    }
  }
  AssignArgs args = index.against_means(store.shape().value_weight);
  args.k = k_ + first * d;
  args.v = v_ + first * d;
  args.items = n;
  int32_t* const rows = rows_ + static_cast<size_t>(chunk) * clusters_;
  const SceneId scene = index[ids[0]].scene;
  for (const ClusterId c : index.live())
    if (near[c].version != kLooking && (!inside || index[c].scene == scene)) rows[args.n_rows++] = c;
  args.rows = rows;
  args.best = best_ + first;
  args.similarity = similarity_ + first;
  for (int i = 0; i < n; ++i) near[ids[i]].version = kAsked;
  items_[chunk] = n;
  return args;
}

void Clustering::take_in(const ClusterStore& store, int lane, int chunk) {
  const ClusterIndex& index = store.index(lane);
  Near* const near = near_of(lane);
  const size_t first = static_cast<size_t>(chunk) * kChunk;
  const ClusterId* const ids = chunk_ + first;
  for (int i = 0; i < items_[chunk]; ++i) {
    const size_t at = first + static_cast<size_t>(i);
    near[ids[i]].version = index[ids[i]].version;
    if (best_[at] == kNone) continue;
    near[ids[i]].cluster = best_[at];
    near[ids[i]].distance = distance_of(similarity_[at]);
  }
  for (int i = 0; i < items_[chunk]; ++i)
    for (int j = 0; j < i; ++j) {
      const float apart = std::max(0.0f, index.distance(ids[i], ids[j], store.shape().value_weight));
      for (const auto& [a, b] : {std::pair{ids[i], ids[j]}, std::pair{ids[j], ids[i]}})
        if (apart < near[a].distance) near[a] = {b, near[a].version, apart};
    }
}

// What the host would have before the device is asked is its own.
void Clustering::assign(const ClusterStore& store, std::span<AssignArgs> asked) {
  size_t left = 0;
  for (const AssignArgs& a : asked) {
    const double sides = a.value_weight != 0 ? 2 : 1;  // a candidate is read and turned, whatever comes to it
    if (a.items <= kChunk && sides * a.n_rows * a.dim * (8 + a.items) <= kHost) {
      store.ops().for_host().assign(a);
    } else {
      asked[left++] = a;
    }
  }
  if (left == 0) return;
  store.ops().assign_lanes(asked.first(left));
  store.ops().wait();
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
      AssignArgs alone = chunk_args(store, lane, inside, 0, 1);
      assign(store, {&alone, 1});
      take_in(store, lane, 0);
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
    s.in_range(near_[i].version, kUnknown, int32_t{std::numeric_limits<uint16_t>::max()}, "the version of a cluster");
    s.item(near_[i].distance);
    s.require(!std::isnan(near_[i].distance), "a distance is a number");
  }
}

}  // namespace mosaic
