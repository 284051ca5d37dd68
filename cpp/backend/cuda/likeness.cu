// likeness: a block of threads takes 16 tokens - of a page, or of the new ones - and goes through all items, 8 at a time: a
// thread has a pair of item and token and sums over the heads. What is raised is never negative, and which block comes first
// does not show in a maximum.
#include <algorithm>

#include "backend/cuda/kernels.h"
#include "backend/cuda/record_row.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / simt::kWarp;
constexpr int kChunk = kThreads / kPageTokens;  // items at a time

// What a thread has summed of its pair: products of keys (0) and values (1).
struct Pair {
  float dot[2], item[2], token[2];
  MOSAIC_DEVICE float cosine(int which) const {
    const float square = item[which] * token[which];
    return square > 0 ? dot[which] / sqrtf(square) : 0.0f;
  }
};

MOSAIC_DEVICE float less_mean(float x, const float* mean, int c) { return mean != nullptr ? x - mean[c] : x; }

// Keys and values of a head of 16 tokens, centred -> rows [2][16][d]. Tokens that do not exist are zero.
MOSAIC_DEVICE void load_tokens(const LikenessArgs& a, const PageEntry& page, int first_item, int head, float* rows) {
  const int d = a.shape.head_dim, warp = simt::thread() / simt::kWarp;
  const float *const k_mean = mean_of(a.key_mean, head, d), *const v_mean = mean_of(a.value_mean, head, d);
  for (int i = warp; i < 2 * kPageTokens; i += kWarps) {
    const int token = i % kPageTokens, item = first_item + token;
    const bool keys = i < kPageTokens;
    const float* const mean = keys ? k_mean : v_mean;
    float* const to = rows + i * d;
    if (page.data == nullptr) {
      const float* const from = (keys ? a.k : a.v) + static_cast<size_t>(item) * a.stride + head * d;
      for (int c = lane(); c < d; c += simt::kWarp) to[c] = item < a.items ? less_mean(from[c], mean, c) : 0.0f;
      continue;
    }
    with_codec(page.codec, [&](auto codec) {
      using C = decltype(codec);
      const std::byte* const kb = page.data + head_offset(page.codec, d, head);
      const std::byte* const vb = kb + k_panel_of<C>(d);
      if constexpr (C::kHadamard) {
        WarpRow row;
        if (keys) {
          decode_record<typename C::K>(kb, d, token, page.has(token), nullptr, &row);  // the mean is off already
        } else {
          decode_record<typename C::V>(vb, d, token, page.has(token), nullptr, &row);
        }
        put_row(row, d, to);
        if (!keys && mean != nullptr) {
          for (int c = lane(); c < d; c += simt::kWarp) to[c] -= mean[c];
        }
      } else {
        for (int c = lane(); c < d; c += simt::kWarp) {
          const float x = !page.has(token) ? 0.0f : keys ? C::k(kb, d, c, token) : C::v(vb, d, token, c);
          to[c] = less_mean(x, mean, c);
        }
      }
    });
  }
}

struct LikenessLanes {
  LikenessArgs lane[kMostLikeLanes];
};

// Grid: x a page, then 16 items at a time; y a lane. Shared: rows [2][16][d], and [128] what the threads found.
MOSAIC_KERNEL(kThreads, 1) likeness_kernel(MOSAIC_PARAMETER LikenessLanes all) {
  const LikenessArgs& a = all.lane[simt::block_y()];
  if (simt::block_x() >= a.n_pages + (a.items + kPageTokens - 1) / kPageTokens) return;
  const int d = a.shape.head_dim, token = simt::thread() % kPageTokens;
  float* const rows = simt::shared<float>();
  float* const found = rows + 2 * kPageTokens * d;
  const bool stored = simt::block_x() < a.n_pages;
  const int first_item = stored ? 0 : (simt::block_x() - a.n_pages) * kPageTokens;
  const PageEntry page = stored ? a.pages[simt::block_x()] : PageEntry{nullptr, 0, 0, CodecId{}};
  const bool exists = stored ? page.has(token) : first_item + token < a.items;
  const int at = stored ? page.first + token - page.begin() : first_item + token;
  const float token_score = !exists ? 0.0f : stored ? simt::widen(a.token_score[at]) : a.item_score[at];
  float token_like = 0;
  for (int first = 0; first < a.items; first += kChunk) {
    const int item = first + simt::thread() / kPageTokens;
    Pair pair = {};
    for (int head = 0; head < a.shape.heads; ++head) {
      if (first == 0 || a.shape.heads > 1) {  // one head's rows stay
        simt::barrier();
        load_tokens(a, page, first_item, head, rows);
        simt::barrier();
      }
      for (int which = 0; which < 2 && item < a.items; ++which) {
        const float* const mean = mean_of(which == 0 ? a.key_mean : a.value_mean, head, d);
        const float* const x = (which == 0 ? a.k : a.v) + static_cast<size_t>(item) * a.stride + head * d;
        const float* const y = rows + (which * kPageTokens + token) * d;
        for (int c = 0; c < d; ++c) {
          const float p = less_mean(x[c], mean, c), q = y[c];
          pair.dot[which] += p * q, pair.item[which] += p * p, pair.token[which] += q * q;
        }
      }
    }
    if (!exists || item >= a.items) continue;
    const float like = fminf(pair.cosine(0), pair.cosine(1)), score = a.item_score[item];
    if (!(like > 0)) continue;
    if (token_score > score) simt::raise(a.item_like + item, like);
    if (token_score < score) token_like = fmaxf(token_like, like);
  }
  if (!stored) return;
  found[simt::thread()] = token_like;
  simt::barrier();
  if (simt::thread() >= kPageTokens || !exists) return;
  for (int i = token; i < kThreads; i += kPageTokens) token_like = fmaxf(token_like, found[i]);
  const uint8_t code = like_code(token_like);
  if (code > a.token_like[at]) a.token_like[at] = code;
}

}  // namespace

void likeness(const simt::Queue& on, std::span<const LikenessArgs> lanes) {
  LikenessLanes all;
  std::copy(lanes.begin(), lanes.end(), all.lane);
  int blocks = 0;
  for (const LikenessArgs& a : lanes)
    if (a.items > 0) blocks = std::max(blocks, a.n_pages + (a.items + kPageTokens - 1) / kPageTokens);
  if (blocks == 0) return;
  const auto count = static_cast<unsigned>(lanes.size());
  const size_t bytes = (2 * kPageTokens * static_cast<size_t>(lanes[0].shape.head_dim) + kThreads) * sizeof(float);
  simt::launch(on, "likeness", likeness_kernel, {static_cast<unsigned>(blocks), count}, kThreads, bytes, all);
}

}  // namespace mosaic::MOSAIC_SIMT
