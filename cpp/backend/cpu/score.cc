// score and top_k as plain loops, and the scratch of PlainOps.
#include <algorithm>
#include <cmath>

#include "backend/cpu/plain_ops.h"

namespace mosaic::cpu {

size_t PlainOps::scratch_bytes(const Limits& l) const {
  return sizeof(float) * (6 * static_cast<size_t>(std::max(l.shape.row(), l.dim)) + static_cast<size_t>(l.rows));
}

void PlainOps::set_scratch(void* memory, const Limits&) { scratch_ = static_cast<float*>(memory); }

void PlainOps::score(const ScoreArgs& a) {
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads;
  auto mean_of = [&](int i, int head) {
    const size_t row = static_cast<size_t>(a.rows != nullptr ? a.rows[i] : i);
    return a.mean_k + (row * a.shape.heads + head) * d;
  };
  if (a.n_rows == 0) return;
  std::fill_n(a.score, a.n_rows, 0.0f);
  if (a.mode == ScoreMode::kDot) {
    float* const mean_q = scratch_;
    for (int head = 0; head < a.shape.heads && a.tokens > 0; ++head) {
      std::fill_n(mean_q, d, 0.0f);
      for (int t = 0; t < a.tokens; ++t) {
        for (int g = 0; g < group; ++g) {
          const float* const q = a.q + t * a.q_stride + (static_cast<size_t>(head) * group + g) * d;
          for (int c = 0; c < d; ++c) mean_q[c] += q[c];
        }
      }
      for (int i = 0; i < a.n_rows; ++i) {
        float sum = 0;
        for (int c = 0; c < d; ++c) sum += mean_q[c] * half_to_float(mean_of(i, head)[c]);
        a.score[i] += sum / static_cast<float>(a.tokens * group);
      }
    }
    return;
  }
  float* const logit = scratch_;
  for (int t = 0; t < a.tokens; ++t) {
    for (int head = 0; head < a.q_heads; ++head) {
      const float* const q = a.q + t * a.q_stride + static_cast<size_t>(head) * d;
      for (int i = 0; i < a.n_rows; ++i) {
        const half_t* const k = mean_of(i, head / group);
        float sum = 0;
        for (int c = 0; c < d; ++c) sum += q[c] * half_to_float(k[c]);
        logit[i] = sum * a.scale + (a.row_bias != nullptr ? a.row_bias[i] : 0.0f);
      }
      const float top = *std::max_element(logit, logit + a.n_rows);
      float total = 0;
      for (int i = 0; i < a.n_rows; ++i) total += logit[i] = std::exp(logit[i] - top);
      for (int i = 0; i < a.n_rows; ++i) a.score[i] += logit[i] / total;
    }
  }
}

// Keeps the k best so far in order; a newcomer sinks behind what is better and behind equals, which have lower indices.
int PlainOps::top_k(const float* score, int n, int k, int32_t* index) {
  const int kept = std::max(0, std::min(k, n));
  for (int i = 0; i < n && kept > 0; ++i) {
    int at = std::min(i, kept);
    while (at > 0 && score[index[at - 1]] < score[i]) {
      if (at < kept) index[at] = index[at - 1];
      --at;
    }
    if (at < kept) index[at] = i;
  }
  return kept;
}

}  // namespace mosaic::cpu
