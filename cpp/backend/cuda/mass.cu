// attention_mass: a block of threads takes one unit of keys and goes through every query row that counts, 16 at a time:
// column sums need no atomics, and come out the same every time. A unit's keys are loaded once for each KV head.
#include <algorithm>

#include "backend/cuda/attend_join.h"
#include "backend/cuda/attend_tile.h"
#include "backend/cuda/kernels.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kRows = 16, kThreads = 128;
constexpr int kLogits = kRows * kTile / kThreads;
constexpr int kLseLanes = kThreads / kRows;  // that join a row's lse

size_t shared_floats(int d) {
  return static_cast<size_t>(kRows + kTile) * static_cast<size_t>(row_stride(d)) + kThreads + kRows;
}

// What is wanted, as units: pages, then summaries, then the block.
struct Wanted {
  int first_page, pages, rows, block;
  MOSAIC_HD int units() const { return pages + rows + block; }
  MOSAIC_DEVICE Unit unit(const AttendArgs& a, int i) const {
    if (i < pages) return {Part::kPage, first_page + i};
    return unit_at(a, a.n_pages + i - pages + (rows > 0 ? 0 : row_units(a)));
  }
};

struct MassLane {
  AttendArgs attend;
  float *page_mass, *row_mass, *block_mass;
  Wanted wanted;
};
struct MassLanes {
  MassLane lane[kMostLanes];
};

// Where lse of a query row is found: where attend left it, or in parts that are still to be joined.
struct Lse {
  Parts parts;
  int splits = 1;
};

// A wanted unit, of a query head (by_head) or of all, by a block. kParts: lse comes of parts.
template <bool kParts>
MOSAIC_DEVICE void measure_unit(const MassLane& m, const RopeTable& rope, int wanted_unit, int head_index,
                                int first_query, bool by_head, size_t mass_stride, const Lse& lse_of_rows) {
  const AttendArgs& a = m.attend;
  const int d = a.shape.head_dim, stride = row_stride(d), per_kv = a.q_heads / a.shape.heads;
  const int group = by_head ? 1 : per_kv, first_head = by_head ? head_index : 0;  // query heads that share a sum
  const int end_head = by_head ? first_head + 1 : a.q_heads;
  float* const q = simt::shared<float>();
  float* const k = q + kRows * stride;
  float* const sums = k + kTile * stride;  // [128]
  float* const row_lse = sums + kThreads;  // [16]
  TileKeys* const keys = reinterpret_cast<TileKeys*>(row_lse + kRows);
  const Unit unit = m.wanted.unit(a, wanted_unit);
  const int key = simt::thread() % kTile;
  if (unit.part == Part::kBlock && a.block_k == nullptr) {  // there is none: nobody pays it anything
    if (simt::thread() < kTile && unit.index + key < a.tokens)
      m.block_mass[static_cast<size_t>(first_head) * a.tokens + unit.index + key] = 0;
    return;
  }
  // Tokens of the block are seen from themselves on.
  const int from = unit.part == Part::kBlock && unit.index > first_query ? unit.index : first_query;

  clear_padding(kRows + kTile, d, q);
  describe(a, rope, unit, simt::thread(), keys);
  simt::barrier();
  float mass = 0;
  for (int head = first_head; head < end_head; head += group) {
    load_keys(a, rope, unit, head / per_kv, *keys, k);
    for (int first = from * group; first < a.tokens * group; first += kRows) {
      const int left = a.tokens * group - first;
      load_queries<kRows>(a, rope, head, group, first, left < kRows ? left : kRows, q);
      if constexpr (kParts) {
        const int row = simt::thread() / kLseLanes, token = (first + row) / group;
        const int read = token < a.tokens ? token : a.tokens - 1;  // all take part
        const float lse =
            joined_lse(lse_of_rows.parts, static_cast<size_t>(read) * a.q_heads + head + (first + row) % group,
                       lse_of_rows.splits, kLseLanes);
        if (simt::thread() % kLseLanes == 0) row_lse[row] = lse;
      }
      simt::barrier();
#pragma unroll
      for (int i = 0; i < kLogits; ++i) {
        const int row = (simt::thread() + i * kThreads) / kTile, token = (first + row) / group;
        if (token >= a.tokens) continue;
        const float lse =
            kParts ? row_lse[row] : a.lse[static_cast<size_t>(token) * a.q_heads + head + (first + row) % group];
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
      m.page_mass[result * mass_stride + page.first + key - page.begin()] = page.has(key) ? sum : 0.0f;
  } else if (unit.part == Part::kRows) {  // 0 where nobody sees it: its bias is -inf, or the queries come before it
    if (unit.index + key < a.n_rows) m.row_mass[result * a.n_rows + unit.index + key] = sum;
  } else {
    if (unit.index + key < a.tokens) m.block_mass[result * a.tokens + unit.index + key] = sum;
  }
}

// Grid: x a wanted unit, y a query head (by_head) or one for all, z a lane.
MOSAIC_KERNEL(kThreads, 2)
mass_kernel(MOSAIC_PARAMETER MassLanes all, MOSAIC_PARAMETER RopeTable rope, int first_query, bool by_head,
            size_t mass_stride) {
  const MassLane& m = all.lane[simt::block_z()];
  if (simt::block_x() < m.wanted.units())
    measure_unit<false>(m, rope, simt::block_x(), simt::block_y(), first_query, by_head, mass_stride, {});
}

// Grid: x a query row that is joined, then a wanted unit, y a lane.
MOSAIC_KERNEL(kThreads, 2)
join_and_measure_kernel(MOSAIC_PARAMETER MassLanes all, MOSAIC_PARAMETER RopeTable rope, int first_query,
                        const Parts parts_of_all, int splits) {
  static_assert(kThreads == kJoinThreads);
  const MassLane& m = all.lane[simt::block_y()];
  const AttendArgs& a = m.attend;
  const int rows = a.tokens * a.q_heads, unit = simt::block_x() - rows;
  const Parts parts = parts_of_all.of_lane(a, simt::block_y());
  if (unit < 0) {
    join_row(a, parts, static_cast<size_t>(simt::block_x()), splits, true);
  } else if (unit < m.wanted.units()) {
    measure_unit<true>(m, rope, unit, 0, first_query, false, 0, {parts, splits});
  }
}

// What is wanted of them, and the most units of one.
int list_lanes(std::span<const MassArgs> lanes, MassLanes* all) {
  int units = 0;
  for (size_t i = 0; i < lanes.size(); ++i) {
    const MassArgs& m = lanes[i];
    const AttendArgs& a = *m.attend;
    const Wanted wanted{m.first_page, m.end_page() - m.first_page, m.row_mass != nullptr ? row_units(a) : 0,
                        m.block_mass != nullptr ? (a.tokens + kTile - 1) / kTile : 0};
    all->lane[i] = {a, m.page_mass, m.row_mass, m.block_mass, wanted};
    units = std::max(units, wanted.units());
  }
  return units;
}

size_t shared_bytes(int d) { return shared_floats(d) * sizeof(float) + sizeof(TileKeys); }
int first_query_of(const MassArgs& m) { return m.first_query < 0 ? m.attend->tokens - 1 : m.first_query; }
RopeTable rope_of(const AttendArgs& a) { return a.rope != nullptr ? *a.rope : RopeTable(); }

}  // namespace

void attention_mass(const simt::Queue& on, std::span<const MassArgs> lanes) {
  MassLanes all;
  const int units = list_lanes(lanes, &all);
  if (units == 0) return;
  const MassArgs& m = lanes[0];
  const AttendArgs& a = *m.attend;
  const simt::Grid grid{static_cast<unsigned>(units), static_cast<unsigned>(m.by_head ? a.q_heads : 1),
                        static_cast<unsigned>(lanes.size())};
  simt::launch(on, "attention_mass", mass_kernel, grid, kThreads, shared_bytes(a.shape.head_dim), all, rope_of(a),
               first_query_of(m), m.by_head, m.mass_stride);
}

void attend_and_measure(const simt::Queue& on, std::span<const AttendArgs> lanes, std::span<const MassArgs> mass,
                        float* scratch) {
  const Cut cut = queue_parts(on, lanes, scratch);
  if (cut.splits == 1) return attention_mass(on, mass);
  MassLanes all;
  const int units = list_lanes(mass, &all);
  const AttendArgs& a = lanes[0];
  const simt::Grid grid{static_cast<unsigned>(a.tokens * a.q_heads + units), static_cast<unsigned>(lanes.size())};
  const size_t bytes = std::max(shared_bytes(a.shape.head_dim), join_bytes(cut.splits, a.shape.head_dim));
  simt::launch(on, "attend_and_measure", join_and_measure_kernel, grid, kThreads, bytes, all, rope_of(a),
               first_query_of(mass[0]), cut.parts, cut.splits);
}

}  // namespace mosaic::MOSAIC_SIMT
