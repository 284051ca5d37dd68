// Full attention as the textbook has it, in double: what a KvMemory that holds and reads everything must answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/rope.h"

namespace mosaic::testing {

// A token of one layer, before rotation, and the position it has for this answer.
struct SeenToken {
  const float* k;  // [kv_heads, head_dim]
  const float* v;
  int at[3];  // t, h, w
};

inline void rotate_in_double(const RopeSpec& spec, const int* at, double* x) {
  const int n = spec.frequencies();
  for (int i = 0; i < n; ++i) {
    const double angle = at[spec.axis_of(i)] * std::pow(static_cast<double>(spec.theta), -2.0 * i / spec.rotary_dim);
    double* a = x + (spec.layout == RopeLayout::kHalf ? i : 2 * i);
    double* b = spec.layout == RopeLayout::kHalf ? a + n : a + 1;
    const double re = *a, im = *b;
    *a = re * std::cos(angle) - im * std::sin(angle);
    *b = im * std::cos(angle) + re * std::sin(angle);
  }
}

// Keys of every token, rotated, once for all queries of a layer -> [tokens, kv_heads, head_dim].
inline std::vector<double> rotated_keys(const RopeSpec& spec, int kv_heads, int d,
                                        const std::vector<SeenToken>& tokens) {
  const size_t row = static_cast<size_t>(kv_heads * d);
  std::vector<double> keys(tokens.size() * row);
  for (size_t t = 0; t < tokens.size(); ++t) {
    std::copy_n(tokens[t].k, row, &keys[t * row]);
    for (int g = 0; g < kv_heads; ++g)
      rotate_in_double(spec, tokens[t].at, &keys[t * row + static_cast<size_t>(g * d)]);
  }
  return keys;
}

// One query over the first `n` tokens and their rotated keys -> out [q_heads, head_dim].
inline void attend_in_double(const RopeSpec& spec, int q_heads, int kv_heads, int d, double scale, const float* q,
                             const int* q_at, const SeenToken* tokens, const double* keys, size_t n, double* out) {
  std::vector<double> query(static_cast<size_t>(d)), logit(n);
  for (int h = 0; h < q_heads; ++h) {
    const int g = h / (q_heads / kv_heads);
    std::copy_n(q + h * d, d, query.begin());
    rotate_in_double(spec, q_at, query.data());
    double most = -INFINITY;
    for (size_t t = 0; t < n; ++t) {
      const double* const key =
          keys + (t * static_cast<size_t>(kv_heads) + static_cast<size_t>(g)) * static_cast<size_t>(d);
      logit[t] = 0;
      for (int i = 0; i < d; ++i) logit[t] += query[static_cast<size_t>(i)] * key[i];
      most = std::max(most, logit[t] *= scale);
    }
    double sum = 0;
    std::fill_n(out + h * d, d, 0.0);
    for (size_t t = 0; t < n; ++t) {
      const double weight = std::exp(logit[t] - most);
      sum += weight;
      for (int i = 0; i < d; ++i) out[h * d + i] += weight * tokens[t].v[g * d + i];
    }
    for (int i = 0; i < d; ++i) out[h * d + i] /= sum;
  }
}

}  // namespace mosaic::testing
