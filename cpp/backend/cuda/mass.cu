// attention_mass: a block of threads takes one unit of keys and goes through every query row that counts, 16 at a time:
// column sums need no atomics, and come out the same every time. A unit's keys are loaded once for each KV head.
#include "backend/cuda/attend_tile.h"
#include "backend/cuda/kernels.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kRows = 16, kThreads = 128;
constexpr int kLogits = kRows * kTile / kThreads;

size_t shared_floats(int d) {
  return static_cast<size_t>(kRows + kTile) * static_cast<size_t>(row_stride(d)) + kThreads;
}

// What is wanted, as units: pages, then summaries, then the block.
struct Wanted {
  int first_page, pages, rows;
  MOSAIC_DEVICE Unit unit(const AttendArgs& a, int i) const {
    if (i < pages) return {Part::kPage, first_page + i};
    return unit_at(a, a.n_pages + i - pages + (rows > 0 ? 0 : row_units(a)));
  }
};

// Grid: x a wanted unit, y a query head (by_head) or one for all.
MOSAIC_KERNEL(kThreads, 2)
mass_kernel(const AttendArgs a, const RopeTable rope, int first_query, const MassArgs m, const Wanted wanted) {
  const int d = a.shape.head_dim, stride = row_stride(d), all = a.q_heads / a.shape.heads;
  const int group = m.by_head ? 1 : all, first_head = m.by_head ? simt::block_y() : 0;  // query heads that share a sum
  const int end_head = m.by_head ? first_head + 1 : a.q_heads;
  float* const q = simt::shared<float>();
  float* const k = q + kRows * stride;
  float* const sums = k + kTile * stride;  // [128]
  TileKeys* const keys = reinterpret_cast<TileKeys*>(sums + kThreads);
  const Unit unit = wanted.unit(a, simt::block_x());
  const int key = simt::thread() % kTile;
  // Tokens of the block are seen from themselves on.
  const int from = unit.part == Part::kBlock && unit.index > first_query ? unit.index : first_query;

  clear_padding(kRows + kTile, d, q);
  describe(a, rope, unit, simt::thread(), keys);
  simt::barrier();
  float mass = 0;
  for (int head = first_head; head < end_head; head += group) {
    load_keys(a, rope, unit, head / all, *keys, k);
    for (int first = from * group; first < a.tokens * group; first += kRows) {
      const int left = a.tokens * group - first;
      load_queries<kRows>(a, rope, head, group, first, left < kRows ? left : kRows, q);
      simt::barrier();
#pragma unroll
      for (int i = 0; i < kLogits; ++i) {
        const int row = (simt::thread() + i * kThreads) / kTile, token = (first + row) / group;
        if (token >= a.tokens) continue;
        const float lse = a.lse[static_cast<size_t>(token) * a.q_heads + head + (first + row) % group];
        const float logit = logit_of(q + row * stride, k + key * stride, d, *keys, key, token);
        if (lse != -INFINITY && logit != -INFINITY) mass += simt::exp2_of(logit - lse * kLog2E);
      }
      simt::barrier();
    }
  }
  sums[simt::thread()] = mass;
  simt::barrier();
  if (simt::thread() >= kTile) return;
  float sum = 0;
  for (int i = key; i < kThreads; i += kTile) sum += sums[i];
  const size_t result = static_cast<size_t>(first_head);
  if (unit.part == Part::kPage) {  // between attended tokens too: their mass is 0
    const PageEntry page = a.pages[unit.index];
    if (key >= page.begin() && key < page.end())
      m.page_mass[result * m.mass_stride + page.first + key - page.begin()] = page.has(key) ? sum : 0.0f;
  } else if (keys->bias[key] == -INFINITY) {
    return;
  } else if (unit.part == Part::kRows) {
    m.row_mass[result * a.n_rows + unit.index + key] = sum;
  } else {
    m.block_mass[result * a.tokens + unit.index + key] = sum;
  }
}

// A block token that no query sees is written too; so is a summary whose bias is -inf.
MOSAIC_KERNEL(kThreads, 1) clear_kernel(float* x, int n) {
  const int i = simt::block_x() * kThreads + simt::thread();
  if (i < n) x[i] = 0;
}

void clear(const simt::Queue& on, float* x, int n) {
  if (x == nullptr || n == 0) return;
  simt::launch(on, "attention_mass", clear_kernel, {static_cast<unsigned>((n + kThreads - 1) / kThreads)}, kThreads, 0,
               x, n);
}

}  // namespace

void attention_mass(const simt::Queue& on, const MassArgs& m) {
  const AttendArgs& a = *m.attend;
  if (a.tokens == 0) return;
  const int results = m.by_head ? a.q_heads : 1;
  clear(on, m.row_mass, results * a.n_rows);
  clear(on, m.block_mass, results * a.tokens);
  const Wanted wanted{m.first_page, m.end_page() - m.first_page, m.row_mass != nullptr ? row_units(a) : 0};
  const int units = wanted.pages + wanted.rows + (m.block_mass != nullptr ? block_units(a, a.tokens) : 0);
  if (units == 0) return;
  const size_t bytes = shared_floats(a.shape.head_dim) * sizeof(float) + sizeof(TileKeys);
  const simt::Grid grid{static_cast<unsigned>(units), static_cast<unsigned>(results)};
  simt::launch(on, "attention_mass", mass_kernel, grid, kThreads, bytes, a, a.rope != nullptr ? *a.rope : RopeTable(),
               m.first_query < 0 ? a.tokens - 1 : m.first_query, m, wanted);
}

}  // namespace mosaic::MOSAIC_SIMT
