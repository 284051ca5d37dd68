// score. Attention mass over summaries is attention without values and its column sums, so it runs the kernels of
// attend.cu and mass.cu.
#include <algorithm>

#include "backend/cuda/attend_tile.h"
#include "backend/cuda/kernels.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = 128;

// The mean query over tokens and group of each KV head -> mean [Hkv, D].
MOSAIC_KERNEL(kThreads, 1) mean_query_kernel(const ScoreArgs a, float* mean) {
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads;
  const int i = simt::block_x() * kThreads + simt::thread();
  if (i >= a.shape.row()) return;
  const int head = i / d, c = i % d;
  float sum = 0;
  for (int t = 0; t < a.tokens; ++t) {
    for (int g = 0; g < group; ++g) sum += a.q[static_cast<size_t>(t) * a.q_stride + (head * group + g) * d + c];
  }
  mean[i] = a.tokens > 0 ? sum / static_cast<float>(a.tokens * group) : 0.0f;
}

// A warp a row.
MOSAIC_KERNEL(kThreads, 1) dot_kernel(const ScoreArgs a, const float* mean) {
  const int i = (simt::block_x() * kThreads + simt::thread()) / simt::kWarp, lane = simt::thread() % simt::kWarp;
  const int width = a.shape.row();
  const bool is_row = i < a.n_rows;
  const half_t* const k = a.mean_k + static_cast<size_t>(!is_row ? 0 : a.rows != nullptr ? a.rows[i] : i) * width;
  float sum = 0;
  for (int c = lane; c < width && is_row; c += simt::kWarp) sum += mean[c] * simt::widen(k[c]);
  sum = simt::sum_lanes(sum, simt::kWarp);
  if (is_row && lane == 0) a.score[i] = sum;
}

unsigned blocks_for(int n, int each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace

size_t score_scratch(const simt::Queue& on, const Ops::Limits& limits) {
  const size_t mean = static_cast<size_t>(limits.shape.row());
  const size_t lse = static_cast<size_t>(limits.tokens) * static_cast<size_t>(limits.q_heads);
  return std::max(mean, lse + attend_scratch(on, limits));
}

void score(const simt::Queue& on, const ScoreArgs& s, float* scratch) {
  if (s.n_rows == 0) return;
  if (s.mode == ScoreMode::kDot || s.tokens == 0) {  // no query: zeros either way
    simt::launch(on, "score", mean_query_kernel, {blocks_for(s.shape.row(), kThreads)}, kThreads, 0, s, scratch);
    simt::launch(on, "score", dot_kernel, {blocks_for(s.n_rows, kThreads / simt::kWarp)}, kThreads, 0, s, scratch);
    return;
  }
  AttendArgs a;  // the summaries alone, without positions
  a.q = s.q, a.tokens = s.tokens, a.q_heads = s.q_heads, a.q_stride = s.q_stride, a.shape = s.shape, a.scale = s.scale;
  a.mean_k = s.mean_k, a.rows = s.rows, a.row_bias = s.row_bias, a.n_rows = s.n_rows;
  a.lse = scratch;
  attend_lse(on, a, scratch + static_cast<size_t>(s.tokens) * static_cast<size_t>(s.q_heads));
  MassArgs mass;
  mass.attend = &a, mass.row_mass = s.score, mass.first_query = 0;
  attention_mass(on, {&mass, 1});
}

}  // namespace mosaic::MOSAIC_SIMT
