// How attend's work is cut: a run of units for each split, and where a split leaves what it found of a query row.
#pragma once

#include "backend/cuda/attend_unit.h"
#include "backend/cuda/kernels.h"

namespace mosaic::MOSAIC_SIMT {

// Lanes that are attended together: alike but for pointers and for how many pages and summaries there are.
struct AttendLanes {
  AttendArgs lane[kMostLanes];
};

struct Parts {
  float* out = nullptr;  // [splits, lanes, T, Hq, D], or null: one split, straight to the caller's
  float* lse = nullptr;  // [splits, lanes, T, Hq]
  size_t rows = 0;       // of all lanes

  MOSAIC_DEVICE Parts of_lane(const AttendArgs& a, int lane) const {
    if (lse == nullptr) return *this;
    const size_t before = static_cast<size_t>(lane) * a.tokens * a.q_heads;
    return {out + before * a.shape.head_dim, lse + before, rows};
  }
};

// What attend left: with more than one split, parts that are to be joined.
struct Cut {
  int splits;
  Parts parts;
};
Cut queue_parts(const simt::Queue& on, std::span<const AttendArgs> lanes, float* scratch);

// Units [begin, end) of this block's split, of all that the first `tokens` query tokens see, cut evenly.
struct Run {
  int begin, end;
};
MOSAIC_DEVICE Run run_of(const AttendArgs& a, int tokens) {
  const int units = a.n_pages + row_units(a) + block_units(a, tokens);
  const int splits = simt::blocks_x(), split = simt::block_x();
  return {static_cast<int>(static_cast<int64_t>(units) * split / splits),
          static_cast<int>(static_cast<int64_t>(units) * (split + 1) / splits)};
}

// Where this block's out [D] and lse of a row of its KV head go.
struct Result {
  float* out;
  float* lse;
};
MOSAIC_DEVICE Result result_of(const AttendArgs& a, const Parts& parts, int kv_head, int row) {
  const int group = a.q_heads / a.shape.heads, token = row / group, head = kv_head * group + row % group;
  const size_t at = static_cast<size_t>(token) * a.q_heads + head, d = static_cast<size_t>(a.shape.head_dim);
  if (parts.lse == nullptr) return {a.out + static_cast<size_t>(token) * a.q_stride + head * d, a.lse + at};
  const size_t part = simt::block_x() * parts.rows + at;
  return {parts.out + part * d, parts.lse + part};
}
// Natural logarithm of `total` x 2^top.
MOSAIC_DEVICE float lse_of(float top, float total) {
  return total > 0 ? (top + simt::log2_of(total)) * kLn2 : -INFINITY;
}

// attend_tensor.h: heads of kMostTensorHead channels at most. A file a kernel, so that none takes long to compile: query
// rows of one tile of kDecodeRows, or of tiles of kPrefillRows; heads whose packed pages are read from their planes.
inline constexpr int kMostTensorHead = 128;
inline constexpr int kDecodeRows = 16, kPrefillRows = 128;
using QueueAttend = void(const simt::Queue& on, const AttendLanes& all, int lanes, const RopeTable& rope, int splits,
                         const Parts& parts);
QueueAttend queue_prefill, queue_decode, queue_decode_64, queue_decode_128;

// attend_exact.h: wider heads, and log-sum-exp alone, by tiles of as many query rows.
MOSAIC_HD inline int exact_rows(int query_rows) { return query_rows <= 8 ? 8 : 16; }
QueueAttend queue_wide, queue_lse;

}  // namespace mosaic::MOSAIC_SIMT
