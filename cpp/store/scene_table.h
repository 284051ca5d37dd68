// SceneTable: the visual level. A scene is a cluster of frame embeddings; clusters of keys live inside one scene, in
// every lane. Frames are not kept, so a scene that grows too wide cannot be cut in two: the frame that does not fit
// opens a new scene. Fixed capacity: when full, the two nearest scenes merge (Mosaic, arXiv 2604.10060). Not thread-safe.
#pragma once

#include <span>

#include "core/ids.h"
#include "memory/region.h"
#include "memory/snapshot.h"

namespace mosaic {

class SceneTable {
 public:
  SceneTable(Region& region, int capacity, int dim);

  int capacity() const { return capacity_; }
  int size() const { return size_; }
  bool full() const { return size_ == capacity_; }
  bool is_live(SceneId s) const { return s >= 0 && s < capacity_ && count_[s] > 0; }
  int dim() const { return dim_; }
  int32_t count(SceneId s) const { return count_[s]; }
  float variance(SceneId s) const { return variance_[s]; }
  const float* mean(SceneId s) const { return row(s); }  // [dim]

  struct Nearest {
    SceneId scene = kNone;
    float distance = 0;  // squared, between unit vectors
  };
  Nearest nearest(const float* embedding) const;
  // Variance the scene would have with this frame (the rule of UpdateArgs).
  float variance_with(SceneId s, const float* embedding) const;
  // A new scene of one frame; the table must not be full.
  SceneId open(const float* embedding);
  void add(SceneId s, const float* embedding);
  // The two nearest scenes.
  std::pair<SceneId, SceneId> nearest_pair() const;
  void merge(SceneId into, SceneId from);
  void serialize(Snapshot& s);

 private:
  float* row(SceneId s) const { return mean_ + static_cast<size_t>(s) * static_cast<size_t>(dim_); }
  int capacity_;
  int dim_;
  int size_ = 0;
  float* mean_;     // [capacity, dim] mean of unit embeddings' directions, not normalised
  int32_t* count_;  // 0: free
  float* variance_;
};

}  // namespace mosaic
