// likeness as plain loops: every pair in double, each stored token decoded again for every item.
#include <algorithm>

#include "backend/cpu/plain_ops.h"
#include "core/cosine.h"

namespace mosaic::cpu {
namespace {

// row - mean (null: zero) -> to.
void centre(const float* row, const float* mean, int dim, float* to) {
  for (int c = 0; c < dim; ++c) to[c] = mean != nullptr ? row[c] - mean[c] : row[c];
}

}  // namespace

void PlainOps::likeness(const LikenessArgs& a) {
  const int dim = a.shape.row();
  const auto size = static_cast<size_t>(dim);
  float *const k = scratch_, *const v = k + dim, *const other_k = v + dim, *const other_v = other_k + dim;
  const auto alike = [&] {
    return static_cast<float>(std::max(0.0, std::min(cosine(k, other_k, size), cosine(v, other_v, size))));
  };
  for (int i = 0; i < a.items; ++i) {
    centre(a.k + i * a.stride, a.key_mean, dim, k);
    centre(a.v + i * a.stride, a.value_mean, dim, v);
    for (int j = 0; j < a.items; ++j) {
      if (!(a.item_score[j] > a.item_score[i])) continue;
      centre(a.k + j * a.stride, a.key_mean, dim, other_k);
      centre(a.v + j * a.stride, a.value_mean, dim, other_v);
      a.item_like[i] = std::max(a.item_like[i], alike());
    }
    for (int p = 0; p < a.n_pages; ++p) {
      const PageEntry& page = a.pages[p];
      for (int t = page.begin(); t < page.end(); ++t) {
        const int at = page.first + t - page.begin();
        const float score = half_to_float(a.token_score[at]);
        const bool better = score > a.item_score[i], worse = score < a.item_score[i];
        if (!page.has(t) || (!better && !worse)) continue;
        decode(page.codec, a.shape, page.data, t, t + 1, other_k, other_v, size, a.key_mean);
        centre(other_k, a.key_mean, dim, other_k);
        centre(other_v, a.value_mean, dim, other_v);
        if (better) {
          a.item_like[i] = std::max(a.item_like[i], alike());
        } else {
          a.token_like[at] = std::max(a.token_like[at], like_code(alike()));
        }
      }
    }
  }
}

}  // namespace mosaic::cpu
