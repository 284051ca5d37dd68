// Rows of record codecs in the Hadamard basis, a warp a row: lane l holds channels l, l + 32, ... in registers. Sums and
// transforms go in the order of codec/rows.h, so a page has the bytes of the CPU's.
#pragma once

#include "backend/cuda/page_layout.h"
#include "backend/cuda/simt.h"
#include "codec/coded_number.h"
#include "codec/rows.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kMostHead = 256;  // channels of a head
inline constexpr int kRowParts = kMostHead / simt::kWarp;

// Channels lane + 32 i, of a head of at most 32 x kParts; those beyond the head are zero.
template <int kParts>
struct RowOf {
  float x[kParts];
};
using WarpRow = RowOf<kRowParts>;

MOSAIC_DEVICE int lane() { return simt::thread() % simt::kWarp; }

template <int kParts>
MOSAIC_DEVICE void hadamard(RowOf<kParts>* row, int d) {
  const int order = hadamard_order(d);
  for (int step = 1; step < simt::kWarp && step < order; step *= 2) {
    const bool second = (lane() & step) != 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (simt::kWarp * i >= d) break;
      const float other = simt::shuffle_xor(row->x[i], step);
      row->x[i] = second ? other - row->x[i] : row->x[i] + other;
    }
  }
#pragma unroll
  for (int step = 1; step < kParts; step *= 2) {
    if (simt::kWarp * step >= order) break;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if ((i & step) != 0) continue;
      const float a = row->x[i], b = row->x[i + step];
      row->x[i] = a + b;
      row->x[i + step] = a - b;
    }
  }
}

// Writes x - mean as token `at` of a panel. codes [d]: shared memory of the warp's own.
template <class Panel>
MOSAIC_DEVICE void encode_record(std::byte* panel, int d, int at, const float* x, const float* mean, uint8_t* codes) {
  WarpRow row;
  float rr = 0, ry = 0, yy = 0;
#pragma unroll
  for (int i = 0; i < kRowParts; ++i) {
    const int c = lane() + simt::kWarp * i;
    row.x[i] = c < d ? coded_number(mean != nullptr ? x[c] - mean[c] : x[c]) * hadamard_sign(c) : 0.0f;
  }
  hadamard(&row, d);
#pragma unroll
  for (int i = 0; i < kRowParts; ++i) rr += row.x[i] * row.x[i];
  const float square = simt::sum_lanes(rr, simt::kWarp);
  const float inverse = square > 0 ? Panel::kUnit / sqrtf(square / static_cast<float>(d)) : 0.0f;
#pragma unroll
  for (int i = 0; i < kRowParts; ++i) {
    const int c = lane() + simt::kWarp * i;
    if (c >= d) break;
    const int code = Panel::code(row.x[i] * inverse);
    const auto level = static_cast<float>(Panel::level(code));
    codes[c] = static_cast<uint8_t>(code);
    ry += row.x[i] * level;
    yy += level * level;
  }
  ry = simt::sum_lanes(ry, simt::kWarp), yy = simt::sum_lanes(yy, simt::kWarp);
  if (lane() == 0) Panel::scales(panel, d)[at] = Panel::scale_of(ry, yy, d);
  simt::meet_warp();  // the codes are there
  for (int p = 0; p < Panel::kPlanes; ++p) {
    const int bytes = Panel::plane_bytes(d, p);
    auto* const to = reinterpret_cast<uint8_t*>(panel) + Panel::plane_at(d, p) + at * bytes;
    for (int j = lane(); j < bytes; j += simt::kWarp) to[j] = Panel::plane_byte(codes, d, p, j);
  }
  simt::meet_warp();  // and read
}

// Token `at` of a panel as numbers, mean (or null) added; zeros where it does not exist.
template <class Panel, int kParts>
MOSAIC_DEVICE void decode_record(const std::byte* panel, int d, int at, bool exists, const float* mean,
                                 RowOf<kParts>* row) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int c = lane() + simt::kWarp * i;
    row->x[i] = exists && c < d ? static_cast<float>(Panel::level(Panel::code_at(panel, d, at, c))) : 0.0f;
  }
  hadamard(row, d);
  const float scale = exists ? Panel::scale(panel, d, at) : 0.0f;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int c = lane() + simt::kWarp * i;
    if (c >= d) break;
    row->x[i] = row->x[i] * (scale * hadamard_sign(c));
    if (mean != nullptr && exists) row->x[i] += mean[c];
  }
}

// The keys, or values, of token `at` of a head's panels of any codec, as decode() gives them.
template <class C, bool kKeys>
MOSAIC_DEVICE void read_row(const std::byte* kb, int d, int at, WarpRow* row) {
  const std::byte* const panel = kKeys ? kb : kb + k_panel_of<C>(d);
  if constexpr (C::kHadamard) {
    if constexpr (kKeys) {
      decode_record<typename C::K>(panel, d, at, true, nullptr, row);
    } else {
      decode_record<typename C::V>(panel, d, at, true, nullptr, row);
    }
    for (float& number : row->x) number = coded_number(number);  // as keep_to_half() does
  } else {
#pragma unroll
    for (int i = 0; i < kRowParts; ++i) {
      const int c = lane() + simt::kWarp * i;
      row->x[i] = c >= d ? 0.0f : kKeys ? C::k(panel, d, c, at) : C::v(panel, d, at, c);
    }
  }
}

// to[c] = the row's channel c.
template <int kParts>
MOSAIC_DEVICE void put_row(const RowOf<kParts>& row, int d, float* to) {
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int c = lane() + simt::kWarp * i;
    if (c < d) to[c] = row.x[i];
  }
}

MOSAIC_DEVICE const float* mean_of(const float* key_mean, int head, int d) {
  return key_mean != nullptr ? key_mean + head * d : nullptr;
}

}  // namespace mosaic::MOSAIC_SIMT
