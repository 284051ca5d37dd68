#include "store/run_scratch.h"

#include <algorithm>

#include "core/cosine.h"

namespace mosaic {

namespace {

constexpr int kRounds = 4;  // of 2-means

}  // namespace

RunScratch::RunScratch(Region& region, int max_run, size_t dim, float value_weight, int spares)
    : max_run_(max_run), spares_(spares), dim_(dim), value_weight_(value_weight) {
  const Size rows = Size(max_run) + kMeans + spares;
  k_ = region.take<float>("scratch", rows * dim);
  v_ = region.take<float>("scratch", rows * dim);
  meta_ = region.take<TokenMeta>("scratch", rows);
  side_ = region.take<uint8_t>("scratch", rows);
  labels_ = region.take<int32_t>("scratch", rows);
}

const int32_t* RunScratch::labels(int32_t cluster, int n) {
  std::fill_n(labels_, n, cluster);
  return labels_;
}

void RunScratch::put(int i, const Run& token) {
  std::copy_n(token.k, dim_, k(i));
  std::copy_n(token.v, dim_, v(i));
  *meta(i) = *token.meta;
}

double RunScratch::similarity(int a, int b) const {
  const auto x = static_cast<size_t>(a) * dim_, y = static_cast<size_t>(b) * dim_;
  const double w = value_weight_, keys = cosine(k_ + x, k_ + y, dim_);
  return w > 0 ? (keys + w * cosine(v_ + x, v_ + y, dim_)) / (1 + w) : keys;
}

int RunScratch::two_means(int n) {
  int far = 0;
  for (int i = 1; i + 1 < n; ++i)
    if (similarity(n - 1, i) < similarity(n - 1, far)) far = i;
  const int mean[2] = {max_run_ + 1, max_run_ + 2};
  put(mean[0], run(far, 1));
  put(mean[1], run(n - 1, 1));
  int ones = -1;
  for (int round = 0; round < kRounds; ++round) {
    int count = 0;
    bool changed = false;
    for (int i = 0; i < n; ++i) {
      const uint8_t side = similarity(i, mean[1]) > similarity(i, mean[0]) ? 1 : 0;
      changed |= side != side_[i];
      side_[i] = side;
      count += side;
    }
    if (count == 0 || count == n || (ones == count && !changed)) return count;
    ones = count;
    for (int s = 0; s < 2; ++s) {
      std::fill_n(k(mean[s]), dim_, 0.0f);
      std::fill_n(v(mean[s]), dim_, 0.0f);
      for (int i = 0; i < n; ++i) {
        if (side_[i] != s) continue;
        for (size_t e = 0; e < dim_; ++e) {  // a direction: the sum serves as the mean
          k(mean[s])[e] += k(i)[e];
          v(mean[s])[e] += v(i)[e];
        }
      }
    }
  }
  return ones;
}

int RunScratch::part_sides(int n) {
  int zeros = 0;
  for (int i = 0; i < n; ++i) {
    if (side_[i] != 0) continue;
    std::rotate(side_ + zeros, side_ + i, side_ + i + 1);
    std::rotate(meta(zeros), meta(i), meta(i + 1));
    std::rotate(k(zeros), k(i), k(i + 1));
    std::rotate(v(zeros), v(i), v(i + 1));
    ++zeros;
  }
  return zeros;
}

}  // namespace mosaic
