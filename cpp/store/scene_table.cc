#include "store/scene_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/cosine.h"

namespace mosaic {

namespace {

float unit_distance(const float* a, const float* b, int dim) {
  return static_cast<float>(2 - 2 * cosine(a, b, static_cast<size_t>(dim)));
}

}  // namespace

SceneTable::SceneTable(Region& region, int capacity, int dim) : capacity_(capacity), dim_(dim) {
  mean_ = region.take<float>("scenes", Size(capacity) * dim);
  count_ = region.take<int32_t>("scenes", capacity);
  variance_ = region.take<float>("scenes", capacity);
}

SceneTable::Nearest SceneTable::nearest(const float* embedding) const {
  Nearest best{kNone, std::numeric_limits<float>::infinity()};
  for (SceneId s = 0; s < capacity_; ++s) {
    if (count_[s] == 0) continue;
    const float distance = unit_distance(row(s), embedding, dim_);
    if (distance < best.distance) best = {s, distance};
  }
  return best;
}

float SceneTable::variance_with(SceneId s, const float* embedding) const {
  // Distance to the updated mean without writing it: mean' = (n mean + x)/(n + 1).
  const double n = count_[s];
  const float* m = row(s);
  double dot = 0, aa = 0, bb = 0;
  for (int i = 0; i < dim_; ++i) {
    const double mean = (n * m[i] + embedding[i]) / (n + 1);
    dot += mean * embedding[i];
    aa += mean * mean;
    bb += static_cast<double>(embedding[i]) * embedding[i];
  }
  const double distance = aa > 0 && bb > 0 ? 2 - 2 * dot / std::sqrt(aa * bb) : 2.0;
  return static_cast<float>((n * variance_[s] + distance) / (n + 1));
}

SceneId SceneTable::open(const float* embedding) {
  for (SceneId s = 0; s < capacity_; ++s) {
    if (count_[s] != 0) continue;
    std::copy_n(embedding, dim_, row(s));
    count_[s] = 1;
    variance_[s] = 0;
    ++size_;
    return s;
  }
  return kNone;
}

void SceneTable::add(SceneId s, const float* embedding) {
  variance_[s] = variance_with(s, embedding);
  const float share = 1.0f / static_cast<float>(count_[s] + 1);
  float* m = row(s);
  for (int i = 0; i < dim_; ++i) m[i] += (embedding[i] - m[i]) * share;
  ++count_[s];
}

std::pair<SceneId, SceneId> SceneTable::nearest_pair() const {
  std::pair<SceneId, SceneId> best{kNone, kNone};
  float least = std::numeric_limits<float>::infinity();
  for (SceneId a = 0; a < capacity_; ++a) {
    if (count_[a] == 0) continue;
    for (SceneId b = a + 1; b < capacity_; ++b) {
      if (count_[b] == 0) continue;
      const float distance = unit_distance(row(a), row(b), dim_);
      if (distance < least) {
        least = distance;
        best = {a, b};
      }
    }
  }
  return best;
}

void SceneTable::merge(SceneId into, SceneId from) {
  const double na = count_[into], nb = count_[from], n = na + nb;
  variance_[into] = static_cast<float>((na * variance_[into] + nb * variance_[from]) / n +
                                       na * nb / (n * n) * unit_distance(row(into), row(from), dim_));
  float* a = row(into);
  const float* b = row(from);
  for (int i = 0; i < dim_; ++i) a[i] += static_cast<float>((b[i] - a[i]) * nb / n);
  count_[into] += count_[from];
  count_[from] = 0;
  --size_;
}

void SceneTable::serialize(Snapshot& s) {
  const auto n = static_cast<size_t>(capacity_);
  s.all_in_range(count_, n, 0, 1 << 30, "a scene has frames, or is free");
  s.finite(variance_, n, "a variance is a number");
  s.finite(mean_, n * static_cast<size_t>(dim_), "a mean is of numbers");
  if (s.is_reading()) size_ = static_cast<int>(n) - static_cast<int>(std::count(count_, count_ + n, 0));
}

}  // namespace mosaic
