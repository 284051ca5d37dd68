// assign and update_centroids as plain loops.
#include <cmath>
#include <limits>

#include "backend/cpu/plain_ops.h"

namespace mosaic::cpu {
namespace {

float float_cosine(const float* a, const float* b, int n) {
  float ab = 0, aa = 0, bb = 0;
  for (int i = 0; i < n; ++i) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return aa > 0 && bb > 0 ? ab / (std::sqrt(aa) * std::sqrt(bb)) : 0.0f;
}

void widen(const half_t* from, int n, float* to) {
  for (int i = 0; i < n; ++i) to[i] = half_to_float(from[i]);
}

}  // namespace

float similarity(const float* xk, const float* xv, const float* ck, const float* cv, int dim, float value_weight) {
  const float key = float_cosine(xk, ck, dim);
  return value_weight == 0 ? key : (key + value_weight * float_cosine(xv, cv, dim)) / (1.0f + value_weight);
}

void PlainOps::assign(const AssignArgs& a) {
  float* const ck = scratch_;
  float* const cv = ck + a.dim;
  const bool with_values = a.value_weight != 0;
  for (int i = 0; i < a.items; ++i) {
    a.best[i] = kNone;
    a.similarity[i] = -std::numeric_limits<float>::infinity();
  }
  for (int c = 0; c < a.n_rows; ++c) {
    const int row = a.rows != nullptr ? a.rows[c] : c;
    widen(a.mean_k + static_cast<size_t>(row) * a.dim, a.dim, ck);
    if (with_values) widen(a.mean_v + static_cast<size_t>(row) * a.dim, a.dim, cv);
    for (int i = 0; i < a.items; ++i) {
      const float* const xv = with_values ? a.v + i * a.stride : nullptr;
      const float s = similarity(a.k + i * a.stride, xv, ck, cv, a.dim, a.value_weight);
      if (s > a.similarity[i] || (s == a.similarity[i] && row < a.best[i])) {
        a.similarity[i] = s;
        a.best[i] = row;
      }
    }
  }
}

void PlainOps::update_centroids(const UpdateArgs& u) {
  float* const ck = scratch_;
  float* const cv = ck + u.dim;
  for (int i = 0; i < u.items; ++i) {
    const int row = u.labels[i];
    bool done = row == kNone;  // the first item of a row takes all later items of that row with it
    for (int j = 0; j < i && !done; ++j) done = u.labels[j] == row;
    if (done) continue;
    half_t* const mean_k = u.mean_k + static_cast<size_t>(row) * u.dim;
    half_t* const mean_v = u.mean_v + static_cast<size_t>(row) * u.dim;
    widen(mean_k, u.dim, ck);
    widen(mean_v, u.dim, cv);
    for (int j = i; j < u.items; ++j) {
      if (u.labels[j] != row) continue;
      const float n = static_cast<float>(u.count[row]);
      const float* const xk = u.k + j * u.stride;
      const float* const xv = u.v + j * u.stride;
      for (int c = 0; c < u.dim; ++c) {
        ck[c] = (n * ck[c] + xk[c]) / (n + 1);
        cv[c] = (n * cv[c] + xv[c]) / (n + 1);
      }
      const float distance = 2.0f - 2.0f * similarity(xk, xv, ck, cv, u.dim, u.value_weight);
      u.variance[row] = (n * u.variance[row] + (distance > 0 ? distance : 0)) / (n + 1);
      u.count[row] += 1;
    }
    for (int c = 0; c < u.dim; ++c) {
      mean_k[c] = float_to_half(ck[c]);
      mean_v[c] = float_to_half(cv[c]);
    }
  }
}

}  // namespace mosaic::cpu
