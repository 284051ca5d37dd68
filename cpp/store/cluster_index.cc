#include "store/cluster_index.h"

#include <algorithm>
#include <utility>

namespace mosaic {

namespace {

struct Cosine {
  double dot = 0, aa = 0, bb = 0;
  float value() const { return aa > 0 && bb > 0 ? static_cast<float>(dot / std::sqrt(aa * bb)) : 0.0f; }
};

// Rows and columns are averaged over the tokens that have one: text stands in no grid.
uint16_t mean_cell(uint16_t mean, uint16_t other, double share) {
  if (mean == kText || other == kText) return mean == kText ? other : mean;
  return static_cast<uint16_t>(std::lround(mean + (other - mean) * share));
}

Cosine half_cosine(const half_t* a, const half_t* b, int dim) {
  Cosine c;
  for (int i = 0; i < dim; ++i) {
    const double x = half_to_float(a[i]), y = half_to_float(b[i]);
    c.dot += x * y;
    c.aa += x * x;
    c.bb += y * y;
  }
  return c;
}

void blend(half_t* into, const half_t* from, int dim, float share) {
  for (int i = 0; i < dim; ++i) {
    const float x = half_to_float(into[i]);
    into[i] = float_to_half(x + (half_to_float(from[i]) - x) * share);
  }
}

}  // namespace

ClusterIndex::ClusterIndex(Region& region, Shape shape) : shape_(shape) {
  const Size n = shape.capacity;
  clusters_ = region.take<Cluster>("index", n, Cluster{});
  mean_k_ = region.take<half_t>("index", n * shape.dim);
  mean_v_ = region.take<half_t>("index", n * shape.dim);
  count_ = region.take<int32_t>("index", n);
  variance_ = region.take<float>("index", n);
  live_ = region.take<ClusterId>("index", n);
  free_ = region.take<int32_t>("index", n);
  if (region.is_counting()) return;
  for (int c = shape.capacity - 1; c >= 0; --c) free_[free_count_++] = c;
}

ClusterId ClusterIndex::open(SceneId scene, int32_t frame) {
  if (free_count_ == 0) return kNone;
  const ClusterId c = free_[--free_count_];
  const auto version = static_cast<uint16_t>(clusters_[c].version + 1);
  clusters_[c] = Cluster{};
  clusters_[c].version = version;
  clusters_[c].scene = scene;
  clusters_[c].born = clusters_[c].touched = frame;
  clusters_[c].live_at = live_count_;
  live_[live_count_++] = c;
  count_[c] = 0;
  variance_[c] = 0;
  return c;
}

void ClusterIndex::close(ClusterId c) {
  const Cluster& gone = clusters_[c];
  if (gone.buffer != kNone) clusters_[gone.buffer].buffer_of = kNone;
  if (gone.buffer_of != kNone) clusters_[gone.buffer_of].buffer = kNone;
  const ClusterId last = live_[--live_count_];
  live_[gone.live_at] = last;
  clusters_[last].live_at = gone.live_at;
  const uint16_t version = gone.version;
  clusters_[c] = Cluster{};
  clusters_[c].version = version;
  count_[c] = 0;
  free_[free_count_++] = c;
}

void ClusterIndex::touch(ClusterId c, int nth, const TokenMeta& meta, int64_t time, int32_t frame) {
  Cluster& cluster = clusters_[c];
  const double n = nth;
  if (n <= 1) {
    cluster.first_time = cluster.last_time = time;
    cluster.mean_position = meta.position;
    cluster.h = meta.h;
    cluster.w = meta.w;
  } else {
    cluster.first_time = std::min<int64_t>(cluster.first_time, time);
    cluster.last_time = std::max<int64_t>(cluster.last_time, time);
    cluster.mean_position += (meta.position - cluster.mean_position) / n;
    cluster.h = mean_cell(cluster.h, meta.h, 1 / n);
    cluster.w = mean_cell(cluster.w, meta.w, 1 / n);
  }
  cluster.touched = frame;
  ++cluster.version;
}

float ClusterIndex::distance(ClusterId a, ClusterId b, float value_weight) const {
  const auto d = static_cast<size_t>(shape_.dim);
  const float keys =
      half_cosine(mean_k_ + static_cast<size_t>(a) * d, mean_k_ + static_cast<size_t>(b) * d, shape_.dim).value();
  if (value_weight == 0) return 2 - 2 * keys;
  const float values =
      half_cosine(mean_v_ + static_cast<size_t>(a) * d, mean_v_ + static_cast<size_t>(b) * d, shape_.dim).value();
  return 2 - 2 * (keys + value_weight * values) / (1 + value_weight);
}

float ClusterIndex::merged_variance(ClusterId a, ClusterId b, float value_weight) const {
  // Pooled: within each, plus between the two means (n_a n_b / n^2) d^2.
  const double na = count_[a], nb = count_[b], n = na + nb;
  return static_cast<float>((na * variance_[a] + nb * variance_[b]) / n +
                            na * nb / (n * n) * distance(a, b, value_weight));
}

void ClusterIndex::absorb(ClusterId into, ClusterId from, float value_weight) {
  Cluster& a = clusters_[into];
  const Cluster& b = clusters_[from];
  const double na = count_[into], nb = count_[from];
  const double share = na + nb > 0 ? nb / (na + nb) : 0;
  if (has_means()) {
    variance_[into] = merged_variance(into, from, value_weight);
    const auto d = static_cast<size_t>(shape_.dim);
    blend(mean_k_ + static_cast<size_t>(into) * d, mean_k_ + static_cast<size_t>(from) * d, shape_.dim,
          static_cast<float>(share));
    blend(mean_v_ + static_cast<size_t>(into) * d, mean_v_ + static_cast<size_t>(from) * d, shape_.dim,
          static_cast<float>(share));
  }
  a.mean_position += (b.mean_position - a.mean_position) * share;
  a.h = mean_cell(a.h, b.h, share);
  a.w = mean_cell(a.w, b.w, share);
  a.first_time = std::min<int64_t>(a.first_time, b.first_time);
  a.last_time = std::max<int64_t>(a.last_time, b.last_time);
  a.born = std::min(a.born, b.born);
  a.touched = std::max(a.touched, b.touched);
  count_[into] += count_[from];
  ++a.version;
  close(from);
}

int ClusterIndex::of_scene(SceneId scene, int32_t* out) const {
  int n = 0;
  for (int i = 0; i < live_count_; ++i)
    if (clusters_[live_[i]].scene == scene) out[n++] = live_[i];
  std::sort(out, out + n);
  return n;
}

void ClusterIndex::serialize(Snapshot& s, int scenes, const TokenBounds& bounds) {
  s.in_range(live_count_, 0, shape_.capacity, "clusters of a lane");
  free_count_ = shape_.capacity - live_count_;
  s.all_in_range(live_, static_cast<size_t>(live_count_), 0, shape_.capacity - 1, "a cluster has a row");
  s.all_in_range(free_, static_cast<size_t>(free_count_), 0, shape_.capacity - 1, "a free row is one");
  for (ClusterId c = 0; c < shape_.capacity; ++c) s.item(clusters_[c].version);
  for (int i = 0; i < live_count_ && s.is_reading(); ++i) {
    s.require(clusters_[live_[i]].live_at == kNone, "a row holds one cluster");
    clusters_[live_[i]].live_at = i;
  }
  for (int i = 0; i < free_count_ && s.is_reading(); ++i) {  // marked while they are counted
    Cluster& row = clusters_[free_[i]];
    s.require(row.live_at == kNone && row.tag == 0, "a row is free once, or holds a cluster");
    row.tag = 1;
  }
  for (int i = 0; i < free_count_ && s.is_reading(); ++i) clusters_[free_[i]].tag = 0;
  for (int i = 0; i < live_count_; ++i) serialize_cluster(s, live_[i], scenes, bounds);
  for (int i = 0; i < live_count_ && s.is_reading(); ++i) {
    const Cluster& cluster = clusters_[live_[i]];
    s.require(cluster.buffer == kNone || (is_live(cluster.buffer) && cluster.buffer != live_[i] &&
                                          clusters_[cluster.buffer].buffer_of == live_[i]),
              "a buffer knows its cluster");
    s.require(
        cluster.buffer_of == kNone || (is_live(cluster.buffer_of) && clusters_[cluster.buffer_of].buffer == live_[i]),
        "a cluster knows its buffer");
  }
}

void ClusterIndex::serialize_cluster(Snapshot& s, ClusterId c, int scenes, const TokenBounds& bounds) {
  constexpr int32_t kMostTokens = 1 << 30;
  Cluster& cluster = clusters_[c];
  s.finite(&cluster.mean_position, 1, "a mean position is a number");
  s.require(cluster.mean_position >= 0 && cluster.mean_position <= bounds.last_position, "a position is in the stream");
  s.in_range(cluster.scene, kNone, scenes - 1, "a cluster's scene");
  s.item(cluster.born);
  s.item(cluster.touched);
  s.in_range(cluster.buffer, kNone, shape_.capacity - 1, "a cluster's buffer");
  s.in_range(cluster.buffer_of, kNone, shape_.capacity - 1, "a buffer's cluster");
  s.item(cluster.h);
  s.item(cluster.w);
  s.require(bounds.hold(cluster.h, cluster.w), "a place is in the grid");
  s.item(cluster.first_time);
  s.item(cluster.last_time);
  s.item(cluster.tag);
  s.in_range(count_[c], 0, kMostTokens, "tokens of a cluster");
  s.finite(variance_ + c, 1, "a variance is a number");
  const auto dim = static_cast<size_t>(shape_.dim), at = static_cast<size_t>(c) * dim;
  s.finite(mean_k_ + at, dim, "a mean is of numbers");
  s.finite(mean_v_ + at, dim, "a mean is of numbers");
}

void ClusterIndex::relabel_scene(SceneId from, SceneId to) {
  for (int i = 0; i < live_count_; ++i) {
    Cluster& cluster = clusters_[live_[i]];
    if (cluster.scene != from) continue;
    cluster.scene = to;
    ++cluster.version;
  }
}

}  // namespace mosaic
