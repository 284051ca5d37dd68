// assign: a matrix product of items and centroids fused with the arg max over candidates. A block of threads takes 64
// items and a run of candidates, 64 at a time; a thread 4 x 4 pairs. Norms are sums of the same tiles, so vectors are read
// once. Each block leaves its best of every item; a second kernel takes the best of those. fp32: near ties must fall as
// they do on the CPU; tensor cores would need a second look at the nearest few.
// update_centroids: a block of threads per row of the tables, its items in order, the means in shared memory.
#include <algorithm>

#include "backend/cuda/kernels.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kSide = 64, kDepth = 16, kThreads = 256, kEach = 4;
constexpr int kPitch = kSide + 4;  // keeps the wide loads aligned and spreads the transposed stores over the banks
constexpr int kMostSplits = 32;

struct alignas(16) Float4 {
  float x, y, z, w;
};

// cos = ab / (|a| |b|), 0 for a zero vector.
MOSAIC_DEVICE float cosine(float ab, float aa, float bb) {
  return aa > 0 && bb > 0 ? ab / (sqrtf(aa) * sqrtf(bb)) : 0.0f;
}

MOSAIC_DEVICE bool better(float a, int row_a, float b, int row_b) { return a > b || (a == b && row_a < row_b); }

// [64 x dim] x [64 x dim] -> ab [4][4] of this thread; the squared norms of all 64 + 64 vectors in norms [2][64].
// item(i, c), mean(j, c): 0 beyond the edges. Tiles are laid channel by channel: x [16][68], m [16][68].
template <class Item, class Mean>
MOSAIC_DEVICE void product(int dim, const Item& item, const Mean& mean, float* x, float* m, float* norms,
                           float (*ab)[kEach]) {
  const int row = simt::thread() / 16 * kEach, column = simt::thread() % 16 * kEach;
  float norm = 0;
  for (int a = 0; a < kEach; ++a)
    for (int b = 0; b < kEach; ++b) ab[a][b] = 0;
  for (int first = 0; first < dim; first += kDepth) {
    for (int i = simt::thread(); i < kSide * kDepth; i += kThreads) {
      const int vector = i / kDepth, c = i % kDepth;
      x[c * kPitch + vector] = first + c < dim ? item(vector, first + c) : 0.0f;
      m[c * kPitch + vector] = first + c < dim ? mean(vector, first + c) : 0.0f;
    }
    simt::barrier();
    float part[kEach][kEach] = {};  // summed apart: the error of long sums grows with their number of terms
#pragma unroll
    for (int c = 0; c < kDepth; ++c) {
      const Float4 p = simt::load<Float4>(x + c * kPitch + row), q = simt::load<Float4>(m + c * kPitch + column);
      const float ps[kEach] = {p.x, p.y, p.z, p.w}, qs[kEach] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int a = 0; a < kEach; ++a) {
#pragma unroll
        for (int b = 0; b < kEach; ++b) part[a][b] += ps[a] * qs[b];
      }
    }
#pragma unroll
    for (int a = 0; a < kEach; ++a) {
#pragma unroll
      for (int b = 0; b < kEach; ++b) ab[a][b] += part[a][b];
    }
    if (simt::thread() < 2 * kSide) {
      const float* const from = simt::thread() < kSide ? x + simt::thread() : m + simt::thread() - kSide;
      float sum = 0;
      for (int c = 0; c < kDepth; ++c) sum += from[c * kPitch] * from[c * kPitch];
      norm += sum;
    }
    simt::barrier();
  }
  if (simt::thread() < 2 * kSide) norms[simt::thread()] = norm;
  simt::barrier();
}

struct Best {
  float* similarity = nullptr;  // [splits, N]
  int32_t* row = nullptr;       // [splits, N]
};

constexpr size_t kShared = (2 * kDepth * kPitch + 2 * kSide) * sizeof(float);

// Grid: x a tile of items, y a run of candidates.
MOSAIC_KERNEL(kThreads, 2) assign_kernel(const AssignArgs a, int splits, const Best best) {
  float* const x = simt::shared<float>();
  float* const m = x + kDepth * kPitch;
  float* const norms = m + kDepth * kPitch;
  const int first_item = simt::block_x() * kSide, split = simt::block_y(), tiles = (a.n_rows + kSide - 1) / kSide;
  const int begin = static_cast<int>(static_cast<int64_t>(tiles) * split / splits);
  const int end = static_cast<int>(static_cast<int64_t>(tiles) * (split + 1) / splits);
  const int row = simt::thread() / 16 * kEach, column = simt::thread() % 16 * kEach;
  float found[kEach];
  int found_row[kEach];
  for (int i = 0; i < kEach; ++i) found[i] = -INFINITY, found_row[i] = kNone;

  for (int tile = begin; tile < end; ++tile) {
    const auto candidate = [&](int j) {
      const int at = tile * kSide + j;
      return at >= a.n_rows ? kNone : a.rows != nullptr ? a.rows[at] : at;
    };
    float similarity[kEach][kEach];
    for (int part = 0; part < (a.value_weight != 0 ? 2 : 1); ++part) {
      const float* const items = part == 0 ? a.k : a.v;
      const half_t* const means = part == 0 ? a.mean_k : a.mean_v;
      float ab[kEach][kEach];
      product(
          a.dim, [&](int i, int c) { return first_item + i < a.items ? items[(first_item + i) * a.stride + c] : 0.0f; },
          [&](int j, int c) {
            const int at = candidate(j);
            return at != kNone ? simt::widen(means[static_cast<size_t>(at) * a.dim + c]) : 0.0f;
          },
          x, m, norms, ab);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          const float cos = cosine(ab[i][j], norms[row + i], norms[kSide + column + j]);
          similarity[i][j] = part == 0 ? cos : (similarity[i][j] + a.value_weight * cos) / (1.0f + a.value_weight);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int at = candidate(column + j);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (at != kNone && better(similarity[i][j], at, found[i], found_row[i]))
          found[i] = similarity[i][j], found_row[i] = at;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {  // the 16 threads of a row are half a warp
    for (int step = 8; step > 0; step /= 2) {
      const float other = simt::shuffle_xor(found[i], step);
      const int other_row = simt::shuffle_xor(found_row[i], step);
      if (other_row != kNone && better(other, other_row, found[i], found_row[i]))
        found[i] = other, found_row[i] = other_row;
    }
    const int item = first_item + row + i;
    if (column == 0 && item < a.items) {
      best.similarity[static_cast<size_t>(split) * a.items + item] = found[i];
      best.row[static_cast<size_t>(split) * a.items + item] = found_row[i];
    }
  }
}

MOSAIC_KERNEL(kThreads, 1) best_kernel(const AssignArgs a, int splits, const Best best) {
  const int item = simt::block_x() * kThreads + simt::thread();
  if (item >= a.items) return;
  float found = -INFINITY;
  int row = kNone;
  for (int split = 0; split < splits; ++split) {
    const size_t at = static_cast<size_t>(split) * a.items + item;
    if (best.row[at] != kNone && better(best.similarity[at], best.row[at], found, row))
      found = best.similarity[at], row = best.row[at];
  }
  a.best[item] = row;
  a.similarity[item] = found;
}

constexpr int kRowThreads = 128;

// Whether `label[i]` stands before i too; every thread of the block has the answer.
MOSAIC_DEVICE bool has_earlier(const int32_t* label, int i, float* space) {
  float seen = 0;
  for (int j = simt::thread(); j < i; j += kRowThreads) seen += label[j] == label[i] ? 1.0f : 0.0f;
  const bool found = simt::sum_block(seen, space) > 0;
  simt::barrier();
  return found;
}

// A block an item; the first item of a row takes all later ones of that row with it. Shared: two means and six sums.
MOSAIC_KERNEL(kRowThreads, 4) update_kernel(const UpdateArgs u) {
  float* const ck = simt::shared<float>();
  float* const cv = ck + u.dim;
  float* const space = cv + u.dim;  // [6][warps]
  const int first = simt::block_x(), row = u.labels[first];
  if (row == kNone || has_earlier(u.labels, first, space)) return;
  half_t* const mean_k = u.mean_k + static_cast<size_t>(row) * u.dim;
  half_t* const mean_v = u.mean_v + static_cast<size_t>(row) * u.dim;
  for (int c = simt::thread(); c < u.dim; c += kRowThreads)
    ck[c] = simt::widen(mean_k[c]), cv[c] = simt::widen(mean_v[c]);
  int count = u.count[row];
  float variance = u.variance[row];
  simt::barrier();  // all have read them
  for (int item = first; item < u.items; ++item) {
    if (u.labels[item] != row) continue;
    const float n = static_cast<float>(count);
    const float* const k = u.k + static_cast<size_t>(item) * u.stride;
    const float* const v = u.v + static_cast<size_t>(item) * u.stride;
    float sum[6] = {};
    for (int c = simt::thread(); c < u.dim; c += kRowThreads) {
      const float mk = (n * ck[c] + k[c]) / (n + 1), mv = (n * cv[c] + v[c]) / (n + 1);
      ck[c] = mk, cv[c] = mv;
      sum[0] += k[c] * mk, sum[1] += k[c] * k[c], sum[2] += mk * mk;
      sum[3] += v[c] * mv, sum[4] += v[c] * v[c], sum[5] += mv * mv;
    }
#pragma unroll
    for (int i = 0; i < 6; ++i) sum[i] = simt::sum_block(sum[i], space + i * (kRowThreads / simt::kWarp));
    float similarity = cosine(sum[0], sum[1], sum[2]);
    if (u.value_weight != 0)
      similarity = (similarity + u.value_weight * cosine(sum[3], sum[4], sum[5])) / (1.0f + u.value_weight);
    const float distance = 2.0f - 2.0f * similarity;
    variance = (n * variance + (distance > 0 ? distance : 0.0f)) / (n + 1);
    ++count;
    simt::barrier();  // the sums' space is free
  }
  for (int c = simt::thread(); c < u.dim; c += kRowThreads) {
    mean_k[c] = float_to_half(ck[c]);
    mean_v[c] = float_to_half(cv[c]);
  }
  if (simt::thread() == 0) u.count[row] = count, u.variance[row] = variance;
}

}  // namespace

size_t assign_scratch(const simt::Queue&, const Ops::Limits& limits) {
  return 2 * static_cast<size_t>(kMostSplits) * static_cast<size_t>(limits.tokens);
}

void assign(const simt::Queue& on, const AssignArgs& a, float* scratch) {
  if (a.items == 0) return;
  const int tiles = (a.items + kSide - 1) / kSide, columns = (a.n_rows + kSide - 1) / kSide;
  const int splits = std::max(1, std::min({kMostSplits, columns, 2 * on.processors / tiles}));
  Best best;
  best.similarity = scratch;
  best.row = reinterpret_cast<int32_t*>(scratch + static_cast<size_t>(splits) * static_cast<size_t>(a.items));
  simt::launch(on, "assign", assign_kernel, {static_cast<unsigned>(tiles), static_cast<unsigned>(splits)}, kThreads,
               kShared, a, splits, best);
  simt::launch(on, "assign", best_kernel, {static_cast<unsigned>((a.items + kThreads - 1) / kThreads)}, kThreads, 0, a,
               splits, best);
}

void update_centroids(const simt::Queue& on, const UpdateArgs& u) {
  if (u.items == 0) return;
  const size_t bytes = (2 * static_cast<size_t>(u.dim) + 6 * (kRowThreads / simt::kWarp)) * sizeof(float);
  if (bytes > (size_t{48} << 10))
    throw InvalidInput("update_centroids: vectors of " + std::to_string(u.dim) +
                       " numbers; at most 6,000 on this device.");
  simt::launch(on, "update_centroids", update_kernel, {static_cast<unsigned>(u.items)}, kRowThreads, bytes, u);
}

}  // namespace mosaic::MOSAIC_SIMT
