// How the threads of a block write rows of one head into the panels of a page whose codec has records.
#pragma once

#include "backend/cuda/record_row.h"
#include "backend/cuda/simt.h"
#include "codec/codec.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kPageThreads = 128;
inline constexpr size_t kPageCodes = kPageThreads / simt::kWarp * kMostHead;  // bytes of the warps' codes

// Token `at` of a head's panels of a record codec, by the threads of a block. codes: shared, [warps][kMostHead].
template <class C>
MOSAIC_DEVICE void set_tokens(std::byte* kb, std::byte* vb, int d, int first, int count, const float* k, const float* v,
                              size_t stride, const float* mean, uint8_t* codes) {
  if constexpr (C::kHadamard) {
    const int warp = simt::thread() / simt::kWarp;
    uint8_t* const mine = codes + warp * kMostHead;
    for (int row = warp; row < 2 * count; row += kPageThreads / simt::kWarp) {  // keys and values in turn
      if (row % 2 != 0 && v == nullptr) continue;
      const size_t from = static_cast<size_t>(row / 2) * stride;
      if (row % 2 == 0) {
        encode_record<typename C::K>(kb, d, first + row / 2, k + from, mean, mine);
      } else {
        encode_record<typename C::V>(vb, d, first + row / 2, v + from, nullptr, mine);
      }
    }
  } else if constexpr (C::kExact) {  // number by number: a panel of one channel lies where a wider one has that channel
    const size_t number = C::k_bytes(1) / kPageTokens;
    for (int i = simt::thread(); i < count * d; i += kPageThreads) {
      const int token = i / d, channel = i % d;
      const size_t from = static_cast<size_t>(token) * stride + channel;
      C::set_k(kb + static_cast<size_t>(channel) * C::k_bytes(1), 1, first + token, k + from);
      if (v != nullptr) C::encode_v(vb + (static_cast<size_t>(first + token) * d + channel) * number, 1, 0, v + from);
    }
  } else if constexpr (C::kRecord) {
    for (int token = simt::thread(); token < count; token += kPageThreads) {
      C::set_k(kb, d, first + token, k + static_cast<size_t>(token) * stride);
      if (v != nullptr) C::encode_v(vb, d, first + token, v + static_cast<size_t>(token) * stride);
    }
  }
}

// Of tokens [begin, end) of a run those in one page.
struct RunPiece {
  int first, count;  // in the page
  int before;        // of the run
};
MOSAIC_DEVICE RunPiece piece_of_run(int page, int begin, int end) {
  const int at = page * kPageTokens, first = at < begin ? begin - at : 0;
  const int last = end - at < kPageTokens ? end - at : kPageTokens;
  return {first, last - first, at + first - begin};
}

// One head of one page of a run.
MOSAIC_DEVICE void set_run(CodecId codec, PageShape shape, int head, int page, int begin, int end, const float* k,
                           const float* v, size_t stride, std::byte* pages, size_t pitch, const float* key_mean) {
  const int d = shape.head_dim;
  const RunPiece piece = piece_of_run(page, begin, end);
  if (piece.count <= 0) return;
  const size_t from = static_cast<size_t>(piece.before) * stride + static_cast<size_t>(head) * d;
  std::byte* const kb = pages + static_cast<size_t>(page) * pitch + head_offset(codec, d, head);
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kRecord)
      set_tokens<C>(kb, kb + k_panel_of<C>(d), d, piece.first, piece.count, k + from, v + from, stride,
                    mean_of(key_mean, head, d), simt::shared<uint8_t>());
  });
}

}  // namespace mosaic::MOSAIC_SIMT
