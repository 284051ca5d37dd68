// assign: items times centroids on the tensor cores, fused with the arg max over candidates. Centroids are halves as they
// are; an item becomes a unit vector and then the sum of two halves, 22 bits together, so that two products give what
// fp32 gives and near ties fall as they do on the CPU. A block takes 64 items of a lane and a run of candidates, 64 at a time; a
// warp 32 x 32 of them, in fragments of 16 x 8. Each column of warps leaves its best of every item; a second kernel takes
// the best of those. update_centroids: a block per row of the tables, its items in order, the means in shared memory.
#include <algorithm>

#include "backend/cuda/kernels.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kSide = 64, kDepth = 32, kThreads = 128, kWarps = kThreads / simt::kWarp;
constexpr int kPitch = kDepth + 8;        // halves; 20 words, so that the 32 words of a fragment are in 32 banks
constexpr int kVectors = kSide / kWarps;  // of a tile, read by one warp
constexpr float kUnit = 256;              // length of an item: its low half stays a normal number
constexpr size_t kTile = size_t{kSide} * kPitch;  // halves
constexpr size_t kShared = 3 * kTile * sizeof(half_t) + 2 * kSide * sizeof(float);

// cos = ab / (|a| |b|), 0 for a zero vector.
MOSAIC_DEVICE float cosine(float ab, float aa, float bb) {
  return aa > 0 && bb > 0 ? ab / (sqrtf(aa) * sqrtf(bb)) : 0.0f;
}

MOSAIC_DEVICE bool better(float a, int row_a, float b, int row_b) { return a > b || (a == b && row_a < row_b); }

MOSAIC_DEVICE uint32_t pair_at(const half_t* x) { return simt::load<uint32_t>(x); }

// The tiles of a step, and what the vectors' lengths are worth.
struct Tiles {
  half_t* high;    // [64][40] items
  half_t* low;     // [64][40] what `high` leaves of them
  half_t* mean;    // [64][40] centroids
  float* scale;    // [64] an item's unit over its length
  float* inverse;  // [64] 1 / (unit x a centroid's length)
};

// [64 items] x [64 centroids] -> cos of this thread's pairs [2][4][4]: fragments of 16 rows, of 8 columns, their c.
// item(i), mean(j): a vector, or null beyond the edge.
template <class Item, class Mean>
MOSAIC_DEVICE void cosines(int dim, const Item& item, const Mean& mean, const Tiles& to, float (*cos)[4][4]) {
  const int warp = simt::thread() / simt::kWarp, lane = simt::thread() % simt::kWarp, g = lane / 4, t = 2 * (lane % 4);
  for (int i = 0; i < kVectors; ++i) {  // a warp a vector
    const int at = warp + i * kWarps;
    const float* const x = item(at);
    const half_t* const m = mean(at);
    float xx = 0, mm = 0;
    for (int c = lane; c < dim; c += simt::kWarp) {
      if (x != nullptr) xx += x[c] * x[c];
      if (m != nullptr) mm += simt::widen(m[c]) * simt::widen(m[c]);
    }
    xx = simt::sum_lanes(xx, simt::kWarp);
    mm = simt::sum_lanes(mm, simt::kWarp);
    if (lane == 0)
      to.scale[at] = xx > 0 ? kUnit / sqrtf(xx) : 0.0f, to.inverse[at] = mm > 0 ? 1 / (kUnit * sqrtf(mm)) : 0.0f;
  }
  for (int i = 0; i < 2 * 4 * 4; ++i) cos[i / 16][i / 4 % 4][i % 4] = 0;
  for (int first = 0; first < dim; first += kDepth) {
    simt::barrier();  // the last step's tiles have been read; lengths are there
    for (int i = 0; i < kVectors; ++i) {
      const int at = warp + i * kWarps, c = first + lane;
      const float* const x = item(at);
      const half_t* const m = mean(at);
      const float unit = x != nullptr && c < dim ? x[c] * to.scale[at] : 0.0f;
      const half_t high = simt::narrow(unit);
      to.high[at * kPitch + lane] = high;
      to.low[at * kPitch + lane] = simt::narrow(unit - simt::widen(high));
      to.mean[at * kPitch + lane] = m != nullptr && c < dim ? m[c] : half_t{0};
    }
    simt::barrier();
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 16) {
      uint32_t b[4][2];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const half_t* const from = to.mean + (warp % 2 * 32 + n * 8 + g) * kPitch + depth + t;
        b[n][0] = pair_at(from), b[n][1] = pair_at(from + 8);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // the low halves first: small sums before large ones
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const half_t* const from = (half == 0 ? to.low : to.high) + (warp / 2 * 32 + m * 16 + g) * kPitch + depth + t;
          const uint32_t a[4] = {pair_at(from), pair_at(from + 8 * kPitch), pair_at(from + 8),
                                 pair_at(from + 8 * kPitch + 8)};
#pragma unroll
          for (int n = 0; n < 4; ++n) simt::multiply_add(a, b[n], cos[m][n]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) cos[m][n][i] *= to.inverse[warp % 2 * 32 + n * 8 + t + i % 2];
    }
  }
  simt::barrier();  // lengths are written again
}

struct Best {
  float* similarity = nullptr;  // [parts, N]
  int32_t* row = nullptr;       // [parts, N]
};

// What a launch is given: lanes, in how many runs the candidates of each are cut, and where its parts lie.
struct AssignLanes {
  struct Lane {
    AssignArgs args;
    int splits;
    Best best;
  };
  Lane lane[kMostAssignLanes];
};
static_assert(sizeof(AssignLanes) <= 4096);

// Grid: x a tile of items, y a run of candidates, z a lane.
MOSAIC_KERNEL(kThreads, 4) assign_kernel(MOSAIC_PARAMETER AssignLanes all) {
  const AssignArgs& a = all.lane[simt::block_z()].args;
  const Best best = all.lane[simt::block_z()].best;
  const int splits = all.lane[simt::block_z()].splits;
  if (simt::block_y() >= splits || simt::block_x() * kSide >= a.items) return;
  Tiles tiles;
  tiles.high = simt::shared<half_t>();
  tiles.low = tiles.high + kTile;
  tiles.mean = tiles.low + kTile;
  tiles.scale = reinterpret_cast<float*>(tiles.mean + kTile);
  tiles.inverse = tiles.scale + kSide;
  const int first_item = simt::block_x() * kSide, split = simt::block_y(), runs = (a.n_rows + kSide - 1) / kSide;
  const int begin = static_cast<int>(static_cast<int64_t>(runs) * split / splits);
  const int end = static_cast<int>(static_cast<int64_t>(runs) * (split + 1) / splits);
  const int warp = simt::thread() / simt::kWarp, lane = simt::thread() % simt::kWarp;
  float found[4];  // of rows g, g + 8, g + 16, g + 24 of the warp's
  int found_row[4];
  for (int i = 0; i < 4; ++i) found[i] = -INFINITY, found_row[i] = kNone;

  for (int run = begin; run < end; ++run) {
    const auto candidate = [&](int j) {
      const int at = run * kSide + j;
      return at >= a.n_rows ? kNone : a.rows != nullptr ? a.rows[at] : at;
    };
    const auto product = [&](const float* items, const half_t* means, float (*cos)[4][4]) {
      cosines(
          a.dim, [&](int i) { return first_item + i < a.items ? items + (first_item + i) * a.stride : nullptr; },
          [&](int j) {
            const int at = candidate(j);
            return at != kNone ? means + static_cast<size_t>(at) * a.dim : nullptr;
          },
          tiles, cos);
    };
    float similarity[2][4][4];
    product(a.k, a.mean_k, similarity);
    if (a.value_weight != 0) {
      float values[2][4][4];
      product(a.v, a.mean_v, values);
#pragma unroll
      for (int i = 0; i < 2 * 4 * 4; ++i) {
        float& s = similarity[i / 16][i / 4 % 4][i % 4];
        s = (s + a.value_weight * values[i / 16][i / 4 % 4][i % 4]) / (1.0f + a.value_weight);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int at = candidate(warp % 2 * 32 + n * 8 + 2 * (lane % 4) + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float s = similarity[i / 2][n][i % 2 * 2 + column];
          if (at != kNone && better(s, at, found[i], found_row[i])) found[i] = s, found_row[i] = at;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {  // four lanes share a row
    for (int step = 2; step > 0; step /= 2) {
      const float other = simt::shuffle_xor(found[i], step);
      const int other_row = simt::shuffle_xor(found_row[i], step);
      if (other_row != kNone && better(other, other_row, found[i], found_row[i]))
        found[i] = other, found_row[i] = other_row;
    }
    const int item = first_item + warp / 2 * 32 + i * 8 + lane / 4;
    if (lane % 4 == 0 && item < a.items) {
      const size_t at = static_cast<size_t>(2 * split + warp % 2) * a.items + item;
      best.similarity[at] = found[i];
      best.row[at] = found_row[i];
    }
  }
}

// Grid: x items, y a lane.
MOSAIC_KERNEL(kThreads, 1) best_kernel(MOSAIC_PARAMETER AssignLanes all) {
  const AssignArgs& a = all.lane[simt::block_y()].args;
  const Best best = all.lane[simt::block_y()].best;
  const int parts = 2 * all.lane[simt::block_y()].splits;
  const int item = simt::block_x() * kThreads + simt::thread();
  if (item >= a.items) return;
  float found = -INFINITY;
  int row = kNone;
  for (int part = 0; part < parts; ++part) {
    const size_t at = static_cast<size_t>(part) * a.items + item;
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
  return 2 * static_cast<size_t>(kMostAssignParts) * static_cast<size_t>(limits.tokens);
}

// Lanes share the parts that there is scratch for: with as many lanes as a launch takes, two each.
void assign(const simt::Queue& on, std::span<const AssignArgs> lanes, float* scratch, size_t room) {
  AssignLanes all{};
  unsigned n = 0, most_items = 0, most_splits = 0;
  int32_t* const rows = reinterpret_cast<int32_t*>(scratch + room);
  size_t taken = 0;
  const int each = static_cast<int>(lanes.size());
  for (const AssignArgs& a : lanes) {
    if (a.items == 0) continue;
    const int tiles = (a.items + kSide - 1) / kSide, runs = (a.n_rows + kSide - 1) / kSide;
    const int most = std::min({kMostAssignParts / 2 / each, runs, 4 * on.processors / (tiles * each)});
    AssignLanes::Lane& lane = all.lane[n++];
    lane.args = a;
    lane.splits = std::max(1, most);
    lane.best = {scratch + taken, rows + taken};
    taken += 2 * static_cast<size_t>(lane.splits) * static_cast<size_t>(a.items);
    most_items = std::max(most_items, static_cast<unsigned>(a.items));
    most_splits = std::max(most_splits, static_cast<unsigned>(lane.splits));
  }
  if (n == 0) return;
  simt::launch(on, "assign", assign_kernel, {(most_items + kSide - 1) / kSide, most_splits, n}, kThreads, kShared, all);
  simt::launch(on, "assign", best_kernel, {(most_items + kThreads - 1) / kThreads, n}, kThreads, 0, all);
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
