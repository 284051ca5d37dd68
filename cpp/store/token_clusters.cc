#include "store/token_clusters.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>

#include "core/size.h"

namespace mosaic {

namespace {

constexpr int kMeansRounds = 4;  // of 2-means

}  // namespace

TokenClusters::TokenClusters(Region& region, const ClusterShape& s, Ops& ops)
    : shape_(s), ops_(ops), page_bytes_(k_panel_bytes(kCodec, s.page.head_dim)) {
  const char* const name = "archive";
  if (!any()) return;
  const Size lanes = s.lanes, both = Size(s.page.row()) * 2, clusters = s.stretch / kPageTokens;
  data_ = region.take_for_kernels(name, lanes * pages() * page_bytes_);
  members_ = region.take<uint32_t>(name, lanes * s.pages * (s.stretch / 32));
  order_ = region.take<uint8_t>(name, s.stretch);
  x_ = region.take<float>(name, both * s.stretch);
  means_ = region.take<float>(name, clusters * s.page.row());
  mean_ = region.take<float>(name, both);
  halves_ = region.take<float>(name, both * 2);
  between_ = region.take<float>(name, both);
  along_ = region.take<float>(name, s.stretch);
  to_ = region.take<std::byte*>(name, clusters);
  at_ = region.take<int32_t>(name, clusters);
}

// Keys, and values, less their mean and over the root of the sum of their squares, so that neither outweighs the other.
// mean [2 row]; the factor of the keys is returned, 0 where they are all alike.
float TokenClusters::centre(float* mean) {
  const size_t both = 2 * row(), n = static_cast<size_t>(shape_.stretch);
  std::fill_n(mean, both, 0.0f);
  for (size_t i = 0; i < n; ++i)
    for (size_t c = 0; c < both; ++c) mean[c] += x_[i * both + c] / static_cast<float>(n);
  double squares[2] = {0, 0};
  for (size_t i = 0; i < n; ++i)
    for (size_t c = 0; c < both; ++c) {
      float& x = x_[i * both + c];
      x -= mean[c];
      squares[c / row()] += static_cast<double>(x) * x;
    }
  const auto factor = [](double wanted, double sum) {
    return sum > 1e-60 ? static_cast<float>(std::sqrt(wanted / sum)) : 0;  // else it is more than a float holds
  };
  const float of_keys = factor(1, squares[0]), of_values = factor(shape_.of_values, squares[1]);
  for (size_t i = 0; i < n; ++i)
    for (size_t c = 0; c < both; ++c) x_[i * both + c] *= c < row() ? of_keys : of_values;
  return of_keys;
}

void TokenClusters::cut(int lane, int stretch, const float* key_mean) {
  cut(lane, stretch, means_, to_, at_);
  ops_.encode_rows(kCodec, shape_.page, means_, nullptr, row(), shape_.stretch / kPageTokens, to_, at_, key_mean);
  ops_.wait();
}

void TokenClusters::cut(int lane, int stretch, float* keys, std::byte** pages, int32_t* at) {
  std::iota(order_, order_ + shape_.stretch, uint8_t{0});
  const float factor = centre(mean_);
  for (int part = shape_.stretch; part > kPageTokens; part /= 2)
    for (int first = 0; first < shape_.stretch; first += part) halve(order_ + first, part);
  const int clusters = shape_.stretch / kPageTokens;
  for (int i = 0; i < clusters; ++i) {
    float* const to = keys + static_cast<size_t>(i) * row();
    std::copy_n(mean_, row(), to);
    const float part = factor > 0 ? 1 / factor / kPageTokens : 0;
    const int page_of_archive = stretch * clusters + i;
    uint32_t* const members = members_ + at_members(lane, page_of_archive);
    std::fill_n(members, shape_.stretch / 32, 0u);
    for (int r = i * kPageTokens; r < (i + 1) * kPageTokens; ++r) {
      members[order_[r] / 32] |= 1u << (order_[r] % 32);
      for (size_t c = 0; c < row(); ++c) to[c] += part * x_[2 * row() * order_[r] + c];
    }
    pages[i] = page(lane, page_of_archive / kPageTokens);
    at[i] = page_of_archive % kPageTokens;
  }
}

// The centre of some of the stretch's tokens.
void TokenClusters::mean_of(const uint8_t* tokens, int n, float* to) const {
  const size_t both = 2 * row();
  std::fill_n(to, both, 0.0f);
  for (int i = 0; i < n; ++i)
    for (size_t c = 0; c < both; ++c) to[c] += x_[both * tokens[i] + c];
  for (size_t c = 0; c < both; ++c) to[c] /= static_cast<float>(n);
}

// Of some tokens the one that is farthest from a point, the first of them.
const float* TokenClusters::farthest(const uint8_t* tokens, int n, const float* from) const {
  const size_t both = 2 * row();
  const float* best = x_ + both * tokens[0];
  float most = -1;
  for (int i = 0; i < n; ++i) {
    const float* const x = x_ + both * tokens[i];
    float apart = 0;
    for (size_t c = 0; c < both; ++c) apart += (x[c] - from[c]) * (x[c] - from[c]);
    if (apart > most) most = apart, best = x;
  }
  return best;
}

// Leaves in between_ where some of the stretch's tokens fall apart: 2-means, begun at two that are far from each other.
void TokenClusters::point_apart(const uint8_t* tokens, int n) {
  const size_t both = 2 * row();
  float *const left = halves_, *const right = halves_ + both;
  mean_of(tokens, n, left);
  std::copy_n(farthest(tokens, n, left), both, right);
  std::copy_n(farthest(tokens, n, right), both, left);
  for (int round = 0; round < kMeansRounds; ++round) {
    float middle = 0;
    for (size_t c = 0; c < both; ++c) {
      between_[c] = right[c] - left[c];
      middle += between_[c] * (right[c] + left[c]) / 2;
    }
    std::array<uint8_t, 256> sorted;
    int lefts = 0, rights = 0;
    for (int i = 0; i < n; ++i) {
      float along = 0;
      for (size_t c = 0; c < both; ++c) along += between_[c] * x_[both * tokens[i] + c];
      sorted[static_cast<size_t>(along > middle ? n - ++rights : lefts++)] = tokens[i];
    }
    if (lefts == 0 || rights == 0) return;
    mean_of(sorted.data(), lefts, left);
    mean_of(sorted.data() + lefts, rights, right);
  }
}

// Those that lie least along go first; both halves in the order in which they came.
void TokenClusters::halve(uint8_t* tokens, int n) {
  const size_t both = 2 * row();
  point_apart(tokens, n);
  for (int i = 0; i < n; ++i) {
    float& along = along_[tokens[i]];
    along = 0;
    for (size_t c = 0; c < both; ++c) along += between_[c] * x_[both * tokens[i] + c];
  }
  std::sort(tokens, tokens + n,
            [&](uint8_t a, uint8_t b) { return along_[a] != along_[b] ? along_[a] < along_[b] : a < b; });
  std::sort(tokens, tokens + n / 2);
  std::sort(tokens + n / 2, tokens + n);
}

void TokenClusters::serialize(Snapshot& s, int stretches, const float* key_means, RestoredPage* room) {
  if (!any()) return;
  const int clusters = shape_.stretch / kPageTokens;
  s.items(members_, at_members(shape_.lanes, 0));
  for (int lane = 0; lane < shape_.lanes && s.is_reading(); ++lane)
    for (int stretch = 0; stretch < stretches; ++stretch) {
      uint64_t all = 0;
      for (int page = stretch * clusters; page < (stretch + 1) * clusters; ++page) {
        s.require(std::popcount(members(lane, page)) == kPageTokens && (all & members(lane, page)) == 0,
                  "clusters share the tokens of a stretch, a page each");
        all |= members(lane, page);
      }
    }
  const auto key_page = [&](int lane, int i) { return page(lane, i); };
  room->serialize_keys(s, kCodec, shape_.lanes, pages(), key_page, page_bytes_, key_means,
                       "the key of a cluster is of numbers");
}

}  // namespace mosaic
