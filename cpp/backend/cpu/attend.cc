// attend, attention_mass and merge as plain loops: one query row at a time, every key decoded again for it.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/plain_ops.h"
#include "codec/rows.h"

namespace mosaic::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// One decoded token of one kv head: rotated key, value, bias on the logit.
struct Token {
  float* k;
  float* v;  // null: not wanted, and there need be none
  float bias = 0;
};

void rotate_at(const RopeTable* rope, int t, int h, int w, float* angles, float* x) {
  if (rope == nullptr || rope->spec().frequencies() == 0) return;
  float* const sin = angles + rope->spec().frequencies();
  rope->row(t, h, w, angles, sin);
  rotate(rope->spec(), angles, sin, x);
}

void load_page_token(const AttendArgs& a, const PageEntry& page, int head, int token, float* angles, Token* to) {
  const int d = a.shape.head_dim;
  const float* const mean = a.key_mean != nullptr ? a.key_mean + head * d : nullptr;
  with_codec(page.codec, [&](auto codec) {
    using C = decltype(codec);
    const std::byte* const k_panel = page.data + static_cast<size_t>(head) * head_bytes_of<C>(d);
    get_k_row<C>(k_panel, d, token, mean, to->k);
    if (to->v != nullptr) get_v_row<C>(k_panel + k_panel_of<C>(d), d, token, to->v);
  });
  to->bias = 0;
  const int at = page.first + token - page.begin(), t = a.positions[at];
  int h = 0, w = 0;
  if (a.places != nullptr && a.rope != nullptr)
    h = a.rope->spec().place_at(t, a.places[2 * at]), w = a.rope->spec().place_at(t, a.places[2 * at + 1]);
  rotate_at(a.rope, t, h, w, angles, to->k);
}

void load_summary(const AttendArgs& a, int i, int head, float* angles, Token* to) {
  const int d = a.shape.head_dim;
  const size_t at = (static_cast<size_t>(a.rows[i]) * a.shape.heads + head) * d;
  for (int c = 0; c < d; ++c) {
    to->k[c] = half_to_float(a.mean_k[at + c]);
    if (to->v != nullptr) to->v[c] = half_to_float(a.mean_v[at + c]);
  }
  const int32_t* p = a.row_positions + 3 * i;
  rotate_at(a.rope, p[0], p[1], p[2], angles, to->k);
  to->bias = a.row_bias[i];
}

void load_block_token(const AttendArgs& a, int j, int head, float* angles, Token* to) {
  const int d = a.shape.head_dim;
  const size_t at = j * a.kv_stride + static_cast<size_t>(head) * d;
  std::copy_n(a.block_k + at, d, to->k);
  if (to->v != nullptr) std::copy_n(a.block_v + at, d, to->v);
  const int32_t* p = a.q_positions + 3 * j;
  rotate_at(a.rope, p[0], p[1], p[2], angles, to->k);
  to->bias = 0;
}

float dot(const float* a, const float* b, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void load_query(const AttendArgs& a, int t, int head, float* angles, float* q) {
  const int d = a.shape.head_dim;
  std::copy_n(a.q + t * a.q_stride + static_cast<size_t>(head) * d, d, q);
  const int32_t* p = a.q_positions + 3 * t;
  rotate_at(a.rope, p[0], p[1], p[2], angles, q);
}

}  // namespace

void PlainOps::attend(const AttendArgs& a) {
  const int d = a.shape.head_dim;
  float* const q = scratch_;
  float* const angles = q + d;
  float* const sum = angles + d;
  Token token{sum + d, sum + 2 * d};
  for (int t = 0; t < a.tokens; ++t) {
    for (int head = 0; head < a.q_heads; ++head) {
      const int kv_head = head / (a.q_heads / a.shape.heads);
      load_query(a, t, head, angles, q);
      // Online softmax: `top` is the largest logit so far; what was summed is rescaled when it grows.
      float top = kMinusInfinity, total = 0;
      std::fill_n(sum, d, 0.0f);
      auto add = [&](const Token& x) {
        const float logit = dot(q, x.k, d) * a.scale + x.bias;
        if (logit == kMinusInfinity) return;
        if (logit > top) {
          const float shrink = std::exp(top - logit);
          for (int c = 0; c < d; ++c) sum[c] *= shrink;
          total *= shrink;
          top = logit;
        }
        const float weight = std::exp(logit - top);
        for (int c = 0; c < d; ++c) sum[c] += weight * x.v[c];
        total += weight;
      };
      for (int p = 0; p < a.n_pages; ++p) {
        for (int i = a.pages[p].begin(); i < a.pages[p].end(); ++i) {
          if (!a.pages[p].has(i)) continue;
          load_page_token(a, a.pages[p], kv_head, i, angles, &token);
          add(token);
        }
      }
      for (int i = 0; i < a.n_rows; ++i) {
        load_summary(a, i, kv_head, angles, &token);
        add(token);
      }
      for (int j = 0; j <= t && a.block_k != nullptr; ++j) {
        load_block_token(a, j, kv_head, angles, &token);
        add(token);
      }
      float* const out = a.out + t * a.q_stride + static_cast<size_t>(head) * d;
      for (int c = 0; c < d; ++c) out[c] = total > 0 ? sum[c] / total : 0.0f;
      a.lse[static_cast<size_t>(t) * a.q_heads + head] = total > 0 ? top + std::log(total) : kMinusInfinity;
    }
  }
}

void PlainOps::attention_mass(const MassArgs& m) {
  const AttendArgs& a = *m.attend;
  if (a.tokens == 0) return;
  const int d = a.shape.head_dim, first_query = m.first_query < 0 ? a.tokens - 1 : m.first_query;
  const int rows = m.by_head ? a.q_heads : 1;
  float* const q = scratch_;
  float* const angles = q + d;
  Token token{angles + d, nullptr};
  for (int row = 0; row < rows; ++row) {
    for (int p = m.first_page; p < m.end_page(); ++p) {
      std::fill_n(m.page_mass + row * m.mass_stride + a.pages[p].first, a.pages[p].span(), 0.0f);
    }
  }
  if (m.row_mass != nullptr) std::fill_n(m.row_mass, rows * a.n_rows, 0.0f);
  if (m.block_mass != nullptr) std::fill_n(m.block_mass, rows * a.tokens, 0.0f);
  for (int at = first_query * a.q_heads; at < a.tokens * a.q_heads; ++at) {
    const int query = at / a.q_heads, head = at % a.q_heads, row = m.by_head ? head : 0;
    const float lse = a.lse[at];
    if (lse == kMinusInfinity) continue;
    const int kv_head = head / (a.q_heads / a.shape.heads);
    load_query(a, query, head, angles, q);
    for (int p = m.first_page; p < m.end_page(); ++p) {
      float* const mass = m.page_mass + row * m.mass_stride + a.pages[p].first - a.pages[p].begin();
      for (int i = a.pages[p].begin(); i < a.pages[p].end(); ++i) {
        if (!a.pages[p].has(i)) continue;
        load_page_token(a, a.pages[p], kv_head, i, angles, &token);
        mass[i] += std::exp(dot(q, token.k, d) * a.scale - lse);
      }
    }
    for (int i = 0; i < a.n_rows && m.row_mass != nullptr; ++i) {
      load_summary(a, i, kv_head, angles, &token);
      m.row_mass[row * a.n_rows + i] += std::exp(dot(q, token.k, d) * a.scale + token.bias - lse);
    }
    for (int j = 0; j <= query && m.block_mass != nullptr && a.block_k != nullptr; ++j) {
      load_block_token(a, j, kv_head, angles, &token);
      m.block_mass[row * a.tokens + j] += std::exp(dot(q, token.k, d) * a.scale - lse);
    }
  }
}

void PlainOps::merge(const MergeArgs& a) {
  for (int t = 0; t < a.tokens; ++t) {
    for (int head = 0; head < a.q_heads; ++head) {
      float& lse = a.lse[static_cast<size_t>(t) * a.q_heads + head];
      const float other = a.other_lse_of(t, head), top = std::max(lse, other);
      if (top == kMinusInfinity) continue;
      const float mine = std::exp(lse - top), theirs = std::exp(other - top);
      const float total = mine + theirs;
      float* const to = a.out + t * a.q_stride + static_cast<size_t>(head) * a.head_dim;
      const float* const from = a.other_row(t, head);
      for (int c = 0; c < a.head_dim; ++c) to[c] = (to[c] * mine + from[c] * theirs) / total;
      lse = top + std::log(total);
    }
  }
}

}  // namespace mosaic::cpu
