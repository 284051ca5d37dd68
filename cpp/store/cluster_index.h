// ClusterIndex: the clusters of one lane (a layer, or one KV head of a layer). A row holds what retrieval and attention
// need of a cluster without reading its members: mean key and value before rotation, count, variance, time range - its
// summary - and the chain of its pages. Rows are few and fixed: when all are taken, two must merge. The means are half
// precision: a summary then costs no more than one exact token, and a cluster of one token IS that token.
// Mechanism only: which cluster a token joins, what merges and what is read is the policy's choice (Mosaic, arXiv 2604.10060).
// Not thread-safe.
#pragma once

#include <cmath>
#include <span>

#include "backend/ops.h"
#include "core/clock.h"
#include "memory/region.h"
#include "store/restored_page.h"

namespace mosaic {

struct Cluster {
  double mean_position = 0;  // of all its tokens; where its summary stands in time order
  SceneId scene = kNone;
  int32_t paged = 0;  // tokens that are kept in pages; count - paged are in the summary alone
  PageId head = kNone;
  PageId tail = kNone;
  int32_t disk_pages = 0;       // of its pages, how many lie on disk
  int32_t born = 0;             // frame number of its first token
  int32_t touched = 0;          // frame number of its latest token
  ClusterId buffer = kNone;     // split pending: the resident cluster that keeps what this spilled one could not absorb
  ClusterId buffer_of = kNone;  // this is such a buffer, of that cluster
  uint16_t h = 0;               // mean M-RoPE row and column
  uint16_t w = 0;
  TimeMs first_time;  // over all tokens it ever took
  TimeMs last_time;
  uint8_t tag = 0;          // of what kind it is, in the policy's own words
  uint16_t version = 0;     // another one after every change of its mean, count or scene, and for the next in its row
  int32_t live_at = kNone;  // index in live(); kNone: the row is free
};

class ClusterIndex {
 public:
  struct Shape {
    int capacity = 0;  // clusters
    int dim = 0;       // kv heads x head size of the lane; 0: keep no means (policies that never collapse)
  };
  ClusterIndex(Region& region, Shape shape);

  bool has_means() const { return shape_.dim > 0; }
  int capacity() const { return shape_.capacity; }
  int dim() const { return shape_.dim; }
  bool full() const { return live_count_ == shape_.capacity; }
  // Ids of the live clusters, in no particular order.
  std::span<const ClusterId> live() const { return {live_, static_cast<size_t>(live_count_)}; }
  bool is_live(ClusterId c) const { return c >= 0 && c < shape_.capacity && clusters_[c].live_at != kNone; }

  Cluster& operator[](ClusterId c) { return clusters_[c]; }
  const Cluster& operator[](ClusterId c) const { return clusters_[c]; }
  int32_t count(ClusterId c) const { return count_[c]; }
  float variance(ClusterId c) const { return variance_[c]; }
  const half_t* mean_k() const { return mean_k_; }  // [capacity, dim]
  const half_t* mean_v() const { return mean_v_; }
  // An assign against the means; which rows, which items and where the answer goes is left to say.
  AssignArgs against_means(float value_weight) const {
    AssignArgs args;
    args.dim = dim();
    args.stride = static_cast<size_t>(dim());
    args.mean_k = mean_k_;
    args.mean_v = mean_v_;
    args.value_weight = value_weight;
    return args;
  }
  half_t* mean_k() { return mean_k_; }
  half_t* mean_v() { return mean_v_; }
  int32_t* counts() { return count_; }
  float* variances() { return variance_; }

  // An empty cluster; kNone when the index is full.
  ClusterId open(SceneId scene, int32_t frame);
  // Give the row back. Its pages must be gone.
  void close(ClusterId c);
  // Account a token that joined c as its nth, from 1 (the means are the caller's through Ops::update_centroids).
  void touch(ClusterId c, int nth, const TokenMeta& meta, int64_t time, int32_t frame);
  // Fold the summary of `from` into `into`: means weighted by count, pooled variance, joined time range. The caller has
  // moved the pages; `from` is closed. value_weight as in AssignArgs.
  void absorb(ClusterId into, ClusterId from, float value_weight);
  // What the pooled variance of a merge would be (the distance that merging follows).
  float merged_variance(ClusterId a, ClusterId b, float value_weight) const;
  // Squared distance of the unit means of a and b: 2 - 2 similarity.
  float distance(ClusterId a, ClusterId b, float value_weight) const;
  // Live clusters of a scene into out[capacity]; returns how many.
  int of_scene(SceneId scene, int32_t* out) const;
  // Every cluster of scene `from` becomes one of `to`.
  void relabel_scene(SceneId from, SceneId to);
  // All but the chains of pages, which the store writes. scenes: that there may be.
  void serialize(Snapshot& s, int scenes, const TokenBounds& bounds);

 private:
  void serialize_cluster(Snapshot& s, ClusterId c, int scenes, const TokenBounds& bounds);

  Shape shape_;
  Cluster* clusters_;
  half_t* mean_k_ = nullptr;
  half_t* mean_v_ = nullptr;
  int32_t* count_;
  float* variance_;
  ClusterId* live_;
  int32_t* free_;
  int live_count_ = 0;
  int free_count_ = 0;
};

}  // namespace mosaic
