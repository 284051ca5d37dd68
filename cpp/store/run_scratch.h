// RunScratch: decoded rows of one cluster's members while the cluster changes shape, in room that is taken once: as many
// members as one may have, a token more, and the two means by which they are cut. Not thread-safe.
#pragma once

#include "memory/region.h"
#include "store/run.h"

namespace mosaic {

class RunScratch {
 public:
  // max_run: most members. dim: numbers of a key. value_weight: of the metric of clusters (AssignArgs). spares: single rows
  // that may be on their way into pages at once.
  RunScratch(Region& region, int max_run, size_t dim, float value_weight, int spares);

  float* k(int i) { return k_ + static_cast<size_t>(i) * dim_; }
  float* v(int i) { return v_ + static_cast<size_t>(i) * dim_; }
  TokenMeta* meta(int i) { return meta_ + i; }
  Run run(int first, int n) { return {k(first), v(first), meta(first), n}; }
  // [n] labels of an Ops::update_centroids by which n tokens join one cluster; n: as many as rows.
  const int32_t* labels(int32_t cluster, int n);
  // Rows that no member takes, each until all are free again.
  bool has_spare() const { return spares_used_ < spares_; }
  int take_spare() { return spares_used_++ == 0 ? max_run_ : max_run_ + kMeans + spares_used_ - 1; }
  void free_spares() { spares_used_ = 0; }
  void put(int i, const Run& token);

  // Cut the first n rows in two by 2-means; how many are on side 1. All on one side: they are not to be cut. The last row,
  // the token that did not fit, opens side 1, what is farthest from it the other.
  int two_means(int n);
  bool is_on_side_1(int i) const { return side_[i] != 0; }
  // Sorts the n rows: side 0 first, the order within a side kept. How many are on side 0.
  int part_sides(int n);

 private:
  static constexpr int kMeans = 2;  // behind the first spare row
  double similarity(int a, int b) const;

  int max_run_;
  int spares_;
  int spares_used_ = 0;
  size_t dim_;
  float value_weight_;
  float* k_;
  float* v_;
  TokenMeta* meta_;
  uint8_t* side_;
  int32_t* labels_;
};

}  // namespace mosaic
