// attend and merge: which kernel takes how many rows, how its work is cut, and how parts are joined.
#include <algorithm>

#include "backend/cuda/attend_join.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/packed_lane.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

// Split-KV fills the processors once, with the blocks they hold side by side, and gives a split a unit a warp where there are
// as many. No more query rows a processor than this, for each of which there is scratch.
constexpr int kBlocksAProcessor = 2, kUnitsASplit = 4, kRowsAProcessor = 128;

constexpr int kMergeThreads = 64;

// Grid: x a row, y a lane of the layer.
MOSAIC_KERNEL(kJoinThreads, 1)
combine_kernel(MOSAIC_PARAMETER AttendLanes all, const Parts parts_of_all, int splits, bool values) {
  const AttendArgs& a = all.lane[simt::block_y()];
  join_row(a, parts_of_all.of_lane(a, simt::block_y()), static_cast<size_t>(simt::block_x()), splits, values);
}

MOSAIC_KERNEL(kMergeThreads, 1)
merge_kernel(MOSAIC_PARAMETER MergeArgs m) {
  const int row = simt::block_x(), token = row / m.q_heads, head = row % m.q_heads;
  const float a = m.lse[row], b = m.other_lse_of(token, head), top = fmaxf(a, b);
  simt::barrier();  // all have read lse[row]
  if (top == -INFINITY) return;
  const float mine = simt::exp2_of((a - top) * kLog2E), theirs = simt::exp2_of((b - top) * kLog2E);
  const float inverse = 1.0f / (mine + theirs);
  float* const to = m.out + token * m.q_stride + static_cast<size_t>(head) * m.head_dim;
  const float* const from = m.other_row(token, head);
  for (int c = simt::thread(); c < m.head_dim; c += kMergeThreads) to[c] = (to[c] * mine + from[c] * theirs) * inverse;
  if (simt::thread() == 0) m.lse[row] = top + simt::log2_of(mine + theirs) * kLn2;
}

template <bool kValues>
Cut queue_any(const simt::Queue& on, std::span<const AttendArgs> given, float* scratch) {
  const AttendArgs& a = given[0];
  const auto lanes = static_cast<int>(given.size());
  AttendLanes all;
  std::copy(given.begin(), given.end(), all.lane);
  if (a.shape.head_dim > kMostHead)
    throw InvalidInput("attend: heads of " + std::to_string(a.shape.head_dim) +
                       " channels; at most 256 on this device.");
  const bool on_tensor_cores = kValues && a.shape.head_dim <= kMostTensorHead;
  const int query_rows = a.tokens * (a.q_heads / a.shape.heads);
  const int tensor_rows = query_rows <= kDecodeRows ? kDecodeRows : kPrefillRows;
  const int rows = on_tensor_cores ? tensor_rows : exact_rows(query_rows);
  const int tiles = (query_rows + rows - 1) / rows;
  int units = 0;  // of the longest
  for (const AttendArgs& lane : given)
    units = std::max(units, lane.n_pages + row_units(lane) + block_units(lane, lane.tokens));
  const int wave =
      std::min(kBlocksAProcessor, kRowsAProcessor / rows) * on.processors / (tiles * lanes * a.shape.heads);
  const int splits = std::max(1, std::min(wave, (units + kUnitsASplit - 1) / kUnitsASplit));
  const size_t lane_rows = static_cast<size_t>(a.tokens) * static_cast<size_t>(a.q_heads);
  const size_t all_rows = given.size() * lane_rows;
  Parts parts;
  parts.rows = all_rows;
  if (splits > 1) parts.lse = scratch, parts.out = scratch + static_cast<size_t>(splits) * all_rows;
  const RopeTable rope = a.rope != nullptr ? *a.rope : RopeTable();
  QueueAttend& on_cuda_cores = *(kValues ? &queue_wide : &queue_lse);
  QueueAttend& queue = !on_tensor_cores         ? on_cuda_cores
                       : rows == kPrefillRows   ? queue_prefill
                       : !packs(a, rope)        ? queue_decode
                       : a.shape.head_dim == 64 ? queue_decode_64
                                                : queue_decode_128;
  queue(on, all, lanes, rope, splits, parts);
  return {splits, parts};
}

template <bool kValues>
void attend_any(const simt::Queue& on, std::span<const AttendArgs> given, float* scratch) {
  const Cut cut = queue_any<kValues>(on, given, scratch);
  if (cut.splits == 1) return;
  const AttendArgs& a = given[0];
  AttendLanes all;
  std::copy(given.begin(), given.end(), all.lane);
  const auto rows = static_cast<unsigned>(a.tokens * a.q_heads), lanes = static_cast<unsigned>(given.size());
  simt::launch(on, "attend", combine_kernel, {rows, lanes}, kJoinThreads, join_bytes(cut.splits, a.shape.head_dim), all,
               cut.parts, cut.splits, kValues);
}

}  // namespace

// splits x tiles x heads x rows of a tile <= kRowsAProcessor x processors, where there is more than one split.
size_t attend_scratch(const simt::Queue& on, const Ops::Limits& limits) {
  return static_cast<size_t>(kRowsAProcessor * on.processors) * static_cast<size_t>(limits.shape.head_dim + 1);
}

Cut queue_parts(const simt::Queue& on, std::span<const AttendArgs> lanes, float* scratch) {
  return queue_any<true>(on, lanes, scratch);
}
void attend(const simt::Queue& on, std::span<const AttendArgs> lanes, float* scratch) {
  attend_any<true>(on, lanes, scratch);
}
void attend_lse(const simt::Queue& on, const AttendArgs& args, float* scratch) {
  attend_any<false>(on, {&args, 1}, scratch);
}

void merge(const simt::Queue& on, const MergeArgs& a) {
  simt::launch(on, "merge", merge_kernel, {static_cast<unsigned>(a.tokens * a.q_heads)}, kMergeThreads, 0, a);
}

}  // namespace mosaic::MOSAIC_SIMT
