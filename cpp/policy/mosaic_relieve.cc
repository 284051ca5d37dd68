// What mosaic gives up: denser codec, colder tier, members behind their mean, and two clusters for one.
#include <algorithm>

#include "policy/mosaic.h"
#include "policy/yielding.h"

namespace mosaic {

int Mosaic::relieve(const ClusterStore& store, const Need& need, Relief* out, int capacity) {
  if (need.kind == Need::Kind::kClusters) return merge_nearest(store, need.lane, out, capacity);
  // Denser codec, then colder tier: a page goes one tier down where that has room, coldest tier first.
  if (const int n = demote_coldest(store, need, out, capacity); n > 0 || need.kind == Need::Kind::kHotSlots) return n;
  return summarise_best(store, need.lane, out);
}

// The nearest pairs of one scene, disjoint, about a tenth of the index, so that the search is paid rarely.
int Mosaic::merge_nearest(const ClusterStore& store, int lane, Relief* out, int capacity) {
  // Where every scene is down to one cluster, clusters of different scenes must merge: nothing is dropped.
  const int n = merge_pairs(store, lane, true, out, capacity);
  return n > 0 ? n : merge_pairs(store, lane, false, out, capacity);
}

// near_: of every live cluster the nearest other one (of its scene).
void Mosaic::pair_by_distance(const ClusterStore& store, int lane, bool inside) {
  const ClusterIndex& index = store.index(lane);
  const auto d = static_cast<size_t>(index.dim());
  for (const ClusterId c : index.live()) {
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
}

// Units that were filled in order: each with the one that came next (in its scene), the smallest pair first.
void Mosaic::pair_by_time(const ClusterIndex& index, bool inside) {
  int n = 0;
  for (const ClusterId c : index.live()) rows_[n++] = c;
  const auto earlier = [&](ClusterId a, ClusterId b) {
    if (inside && index[a].scene != index[b].scene) return index[a].scene < index[b].scene;
    return index[a].born != index[b].born ? index[a].born < index[b].born : a < b;
  };
  std::sort(rows_, rows_ + n, earlier);
  for (int i = 0; i < n; ++i) {
    Near& near = near_[static_cast<size_t>(rows_[i])];
    near = {kNone, std::numeric_limits<float>::infinity()};
    if (i + 1 == n || (inside && index[rows_[i]].scene != index[rows_[i + 1]].scene)) continue;
    near = {rows_[i + 1], static_cast<float>(index.count(rows_[i]) + index.count(rows_[i + 1]))};
  }
}

int Mosaic::merge_pairs(const ClusterStore& store, int lane, bool inside, Relief* out, int capacity) {
  const ClusterIndex& index = store.index(lane);
  const int wanted = std::clamp(index.capacity() / 10, 1, std::min(capacity, 48));  // more would be felt in one frame
  if (fills()) {
    pair_by_time(index, inside);
  } else {
    pair_by_distance(store, lane, inside);
  }
  int n = 0;
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
  if (!fills()) {
    float& reach = reach_[static_cast<size_t>(lane)];
    reach = std::max(reach, farthest);
  }
  return n;
}

}  // namespace mosaic
