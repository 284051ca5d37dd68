// likeness by tiles: items are made unit vectors once, 16 stored tokens at a time are decoded, centred and turned into
// columns, and cosines are two matrix products. A task owns a range of pages, or of new tokens, and what is written for
// them; what items learn is kept by worker, and the largest of those does not depend on who was fast.
#pragma once

#include "backend/cpu/tile_simd.h"

namespace mosaic::cpu {
namespace {

constexpr int kLikenessRows = 16;  // items at a time

struct LikenessState {
  Tile tile;
  float* columns = nullptr;  // [2][row][kUnit] keys and values of 16 tokens
  float* dots = nullptr;     // [2][kLikenessRows][kUnit]
  float* like = nullptr;     // [N]

  void carve(Carver& carver, PageShape shape, int items) {
    tile.carve_decoding(carver, shape.head_dim);
    columns = carver.take<float>(2 * static_cast<size_t>(shape.row()) * kUnit);
    dots = carver.take<float>(2 * kLikenessRows * kUnit);
    like = carver.take<float>(static_cast<size_t>(items));
  }
};

// row - mean, of unit length; zeros stay zeros. -> to [dim]
inline void unit_row(const float* row, const float* mean, int dim, float* to) {
  Vec sum(0.0f);
  float rest = 0;
  int c = 0;
  for (; c + kLanes <= dim; c += kLanes) {
    const Vec x = mean != nullptr ? load(row + c) - load(mean + c) : load(row + c);
    store(to + c, x);
    sum += x * x;
  }
  for (; c < dim; ++c) {
    to[c] = mean != nullptr ? row[c] - mean[c] : row[c];
    rest += to[c] * to[c];
  }
  const float square = stdx::reduce(sum) + rest, scale = square > 0 ? 1.0f / sqrtf(square) : 0.0f;
  for (c = 0; c + kLanes <= dim; c += kLanes) store(to + c, load(to + c) * scale);
  for (; c < dim; ++c) to[c] *= scale;
}

// Columns [dim][kUnit] to unit length.
inline void unit_columns(int dim, float* x) {
  for (int at = 0; at < kUnit; at += kLanes) {
    Vec square(0.0f);
    for (int c = 0; c < dim; ++c) square += load(x + c * kUnit + at) * load(x + c * kUnit + at);
    Vec scale = 1.0f / square_root(square);
    stdx::where(!(square > 0.0f), scale) = Vec(0.0f);
    for (int c = 0; c < dim; ++c) store(x + c * kUnit + at, load(x + c * kUnit + at) * scale);
  }
}

// A page's tokens, centred, as unit columns. Rows of the page that do not live may be anything: nobody looks at them.
inline void page_columns(const LikenessArgs& a, const PageEntry& page, LikenessState& s) {
  const int d = a.shape.head_dim, row = a.shape.row();
  Tile& tile = s.tile;
  with_codec(page.codec, [&](auto codec) {
    using C = decltype(codec);
    for (int head = 0; head < a.shape.heads; ++head) {
      const std::byte* const panel = page.data + static_cast<size_t>(head) * head_bytes_of<C>(d);
      float *const k = s.columns + head * d * kUnit, *const v = k + row * kUnit;
      // Record codecs have the mean off already.
      const float* const off = C::kHadamard || a.key_mean == nullptr ? nullptr : a.key_mean + head * d;
      {
        const KeyPanel<C> keys(panel, tile, nullptr);
        for (int c = 0; c < d; ++c) {
          for (int part = 0; part < kParts; ++part) {
            const Vec x = keys(c, part);
            store(k + c * kUnit + part * kLanes, off != nullptr ? x - off[c] : x);
          }
        }
      }
      const ValuePanel<C> values(panel + k_panel_of<C>(d), d);
      for (int t = 0; t < kUnit; ++t) {
        float* const to = tile.v + static_cast<size_t>(t) * tile.v_stride;
        clear_row(tile.v_stride, to);
        if (!page.has(t)) continue;
        values(t, to);
        if constexpr (C::kHadamard) leave_hadamard(tile, to);
      }
      transpose(tile.v, static_cast<size_t>(tile.v_stride), kUnit, d, v, kUnit);
      if (a.value_mean == nullptr) continue;
      for (int c = 0; c < d; ++c) {
        for (int at = 0; at < kUnit; at += kLanes)
          store(v + c * kUnit + at, load(v + c * kUnit + at) - a.value_mean[head * d + c]);
      }
    }
  });
  unit_columns(row, s.columns);
  unit_columns(row, s.columns + row * kUnit);
}

// New tokens [first, first + 16) from their unit rows [N][2 row].
inline void item_columns(const LikenessArgs& a, const float* items, int first, LikenessState& s) {
  const int row = a.shape.row();
  for (int t = 0; t < kUnit; ++t) {
    const float* const from = items + static_cast<size_t>(least(first + t, a.items - 1)) * 2 * row;
    for (int c = 0; c < 2 * row; ++c) s.columns[c * kUnit + t] = from[c];
  }
}

// All items against the 16 tokens in s.columns. score: of the tokens, NaN where there is none; token_like [16], or null.
inline void like_columns(const LikenessArgs& a, const float* items, const float* score, float* token_like,
                         LikenessState& s) {
  const int row = a.shape.row();
  const size_t stride = 2 * static_cast<size_t>(row);
  for (int first = 0; first < a.items; first += kLikenessRows) {
    const int count = least(kLikenessRows, a.items - first);
    for (int which = 0; which < 2; ++which) {
      gemm({items + static_cast<size_t>(first) * stride + which * row, stride, s.columns + which * row * kUnit, kUnit,
            s.dots + which * kLikenessRows * kUnit, kUnit, row, nullptr},
           count, kUnit);
    }
    for (int r = 0; r < count; ++r) {
      const float mine = a.item_score[first + r];
      Vec best(s.like[first + r]);
      for (int at = 0; at < kUnit; at += kLanes) {
        const Vec other = load(score + at);
        const Vec like = stdx::min(load(s.dots + r * kUnit + at), load(s.dots + (kLikenessRows + r) * kUnit + at));
        Vec from_better = like;
        stdx::where(!(other > mine), from_better) = Vec(0.0f);
        best = stdx::max(best, from_better);
        if (token_like == nullptr) continue;
        Vec to_worse = like;
        stdx::where(!(other < mine), to_worse) = Vec(0.0f);
        store(token_like + at, stdx::max(load(token_like + at), to_worse));
      }
      s.like[first + r] = stdx::hmax(best);
    }
  }
}

// Units [begin, end): pages, then new tokens by 16. items: [N][2 row] of unit length.
inline void likeness_range(const LikenessArgs& a, const float* items, int begin, int end, LikenessState& s) {
  s.tile.fill_signs();
  for (int unit = begin; unit < end; ++unit) {
    alignas(64) float score[kUnit], like[kUnit] = {};
    if (unit >= a.n_pages) {
      const int first = (unit - a.n_pages) * kUnit;
      item_columns(a, items, first, s);
      for (int t = 0; t < kUnit; ++t) score[t] = first + t < a.items ? a.item_score[first + t] : NAN;
      like_columns(a, items, score, nullptr, s);
      continue;
    }
    const PageEntry& page = a.pages[unit];
    if (page.rows == 0) continue;
    page_columns(a, page, s);
    const int base = page.first - page.begin();
    for (int t = 0; t < kUnit; ++t) score[t] = page.has(t) ? half_to_float(a.token_score[base + t]) : NAN;
    like_columns(a, items, score, like, s);
    for (int t = page.begin(); t < page.end(); ++t) {
      if (page.has(t) && like_code(like[t]) > a.token_like[base + t]) a.token_like[base + t] = like_code(like[t]);
    }
  }
}

}  // namespace
}  // namespace mosaic::cpu
