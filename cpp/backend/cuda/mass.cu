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

MOSAIC_KERNEL(kThreads, 2)
mass_kernel(const AttendArgs a, const RopeTable rope, int first_query, float* page_mass, float* row_mass,
            float* block_mass) {
  const int d = a.shape.head_dim, stride = row_stride(d), group = a.q_heads / a.shape.heads;
  float* const q = simt::shared<float>();
  float* const k = q + kRows * stride;
  float* const sums = k + kTile * stride;  // [128]
  TileKeys* const keys = reinterpret_cast<TileKeys*>(sums + kThreads);
  const Unit unit = unit_at(a, simt::block_x());
  const int key = simt::thread() % kTile;
  // Tokens of the block are seen from themselves on.
  const int from = unit.part == Part::kBlock && unit.index > first_query ? unit.index : first_query;

  clear_padding(kRows + kTile, d, q);
  describe(a, rope, unit, simt::thread(), keys);
  simt::barrier();
  float mass = 0;
  for (int head = 0; head < a.shape.heads; ++head) {
    load_keys(a, rope, unit, head, *keys, k);
    for (int first = from * group; first < a.tokens * group; first += kRows) {
      const int left = a.tokens * group - first;
      load_queries<kRows>(a, rope, head, first, left < kRows ? left : kRows, q);
      simt::barrier();
#pragma unroll
      for (int i = 0; i < kLogits; ++i) {
        const int row = (simt::thread() + i * kThreads) / kTile, token = (first + row) / group;
        if (token >= a.tokens) continue;
        const float lse = a.lse[static_cast<size_t>(token) * a.q_heads + head * group + (first + row) % group];
        const float logit = logit_of(q + row * stride, k + key * stride, d, *keys, key, token);
        if (lse != -INFINITY && logit != -INFINITY) mass += simt::exp2_of(logit - lse * kLog2E);
      }
      simt::barrier();
    }
  }
  sums[simt::thread()] = mass;
  simt::barrier();
  if (simt::thread() >= kTile || keys->bias[key] == -INFINITY) return;
  float sum = 0;
  for (int i = key; i < kThreads; i += kTile) sum += sums[i];
  if (unit.part == Part::kPage) {
    const PageEntry page = a.pages[unit.index];
    page_mass[page.first + key - page.begin] = sum;
  } else if (unit.part == Part::kRows) {
    row_mass[unit.index + key] = sum;
  } else {
    block_mass[unit.index + key] = sum;
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
  clear(on, m.row_mass, a.n_rows);
  clear(on, m.block_mass, a.tokens);
  const int units = a.n_pages + row_units(a) + (m.block_mass != nullptr ? block_units(a, a.tokens) : 0);
  if (units == 0) return;
  const size_t bytes = shared_floats(a.shape.head_dim) * sizeof(float) + sizeof(TileKeys);
  simt::launch(on, "attention_mass", mass_kernel, {static_cast<unsigned>(units)}, kThreads, bytes, a,
               a.rope != nullptr ? *a.rope : RopeTable(), m.first_query < 0 ? a.tokens - 1 : m.first_query, m.page_mass,
               m.row_mass, m.block_mass);
}

}  // namespace mosaic::MOSAIC_SIMT
