// Clustering: what policies share that file tokens one by one into a fixed number of clusters - the nearest cluster of a
// token, and the closest pair of clusters when a row is needed. One object keeps what it knows of every lane.
//
// The closest pair is found without comparing all pairs. Every cluster remembers its nearest other one and the version it
// had then; one that took a token or merged since is looked up anew, in chunks through Ops::assign. So the closest pair
// is always known by the one of the two that changed last, and what a merge costs grows with the clusters, not with
// their square. Where scenes count, tokens join and clusters merge inside one scene, and across scenes only when no scene
// has two clusters left. Equal input gives equal pairs.
#pragma once

#include <array>
#include <span>

#include "policy/policy.h"

namespace mosaic {

class Clustering {
 public:
  // radius: the distance (squared, between unit vectors) within which a token joins, until merging raises it.
  // scenes: what is compared is of one scene.
  void bind(const StoreShape& shape, Region& region, float radius, bool scenes = false);

  // Within it a token may join a cluster of the lane. It rises to the distance of what had to merge (BIRCH's threshold),
  // so that the grain of the clusters follows their number.
  float radius(int lane) const { return radius_[lane]; }
  // out: the nearest cluster of each token if it lies within the radius, else kOpen. distance (may be null): to the nearest,
  // +inf where there is none.
  void label(const ClusterStore& store, const AdmitBatch& batch, Placement* out, float* distance = nullptr);
  // Evictions that merge the closest pairs of the lane, disjoint, closest first, the larger of two keeping its row. At least
  // one while two clusters live.
  // Where there are many clusters some merge ahead of need, so that what a look-up costs is shared.
  int merge_closest(const ClusterStore& store, int lane, Eviction* out, int capacity);
  void serialize(Snapshot& s);

 private:
  static constexpr int32_t kUnknown = -1, kLooking = -2, kAsked = -3;
  static constexpr int kChunk = kAssignItems;  // clusters looked up at once
  static constexpr int kMostChunks = 16;       // and chunks that the device is asked for together
  struct Near {
    ClusterId cluster = kNone;   // nearest other cluster, when it was looked up
    int32_t version = kUnknown;  // of this cluster then; anything else now: look it up again
    float distance = 0;
  };
  Near* near_of(int lane) const { return near_ + static_cast<size_t>(lane) * clusters_; }
  // Looks up clusters that changed, `most` at most, among those of their scene or among all; `besides` is asked for too.
  void look_up(const ClusterStore& store, int lane, bool inside, int most, const AssignArgs* besides = nullptr);
  // What is to be asked for the n clusters of a chunk, and what came of it.
  AssignArgs chunk_args(const ClusterStore& store, int lane, bool inside, int chunk, int n);
  void take_in(const ClusterStore& store, int lane, int chunk);
  static void assign(const ClusterStore& store, std::span<AssignArgs> asked);
  int pair_up(const ClusterStore& store, int lane, bool inside, Eviction* out, int capacity);
  void forget(const ClusterStore& store, int lane);

  float* radius_ = nullptr;   // [lanes]
  Near* near_ = nullptr;      // [lanes, clusters]
  int32_t* rows_ = nullptr;   // [chunks, clusters]; behind them those of a batch, which has the first one's elsewhere
  uint8_t* taken_ = nullptr;  // [clusters]
  int32_t* best_ = nullptr;   // of the items of all chunks; so with the batch
  float* similarity_ = nullptr;
  float* k_ = nullptr;  // [chunks, kChunk, row]
  float* v_ = nullptr;
  ClusterId* chunk_ = nullptr;               // [chunks, kChunk] clusters being looked up
  std::array<int, kMostChunks> items_ = {};  // of each
  int chunks_ = 1;                           // asked for together
  size_t of_batch_ = 0;                      // the chunk in whose place a batch stands; 0: in that of the first
  size_t clusters_ = 0;
  size_t lanes_ = 0;
  bool scenes_ = false;
};

}  // namespace mosaic
