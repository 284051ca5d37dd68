// A token's row of any codec, number by number: what the plain loops do, and what a backend does where it has no path of
// its own for a codec. Rows of record codecs are written alone; those of group codecs only with their page.
#pragma once

#include <cmath>
#include <cstring>

#include "codec/codecs.h"
#include "codec/coded_number.h"

namespace mosaic {

// Sums of 32 strands, number i into strand i % 32, joined by halves: an order that a loop, vectors and a warp can all keep,
// so that they write the same bytes.
inline constexpr int kStrands = 32;
inline float join_strands(float* strand) {
  for (int half = kStrands / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) strand[i] += strand[i + half];
  return strand[0];
}

// Writes x - mean (mean null: zero) as token `token` of a panel of a record codec in the Hadamard basis.
template <class Panel>
inline void encode_record(std::byte* panel, int d, int token, const float* x, const float* mean) {
  float r[kMostRecordHead];
  uint8_t codes[kMostRecordHead];
  for (int c = 0; c < d; ++c) r[c] = coded_number(mean != nullptr ? x[c] - mean[c] : x[c]) * hadamard_sign(c);
  hadamard(r, d);
  float rr[kStrands] = {}, ry[kStrands] = {}, yy[kStrands] = {};
  for (int c = 0; c < d; ++c) rr[c % kStrands] += r[c] * r[c];
  const float square = join_strands(rr);
  // A row of nothing, or too small to be squared, has the codes of zeros and no scale.
  const float inverse = square > 0 ? Panel::kUnit / std::sqrt(square / static_cast<float>(d)) : 0.0f;
  for (int c = 0; c < d; ++c) {
    const int code = Panel::code(r[c] * inverse);
    const auto level = static_cast<float>(Panel::level(code));
    codes[c] = static_cast<uint8_t>(code);
    ry[c % kStrands] += r[c] * level;
    yy[c % kStrands] += level * level;
  }
  Panel::scales(panel, d)[token] = Panel::scale_of(join_strands(ry), join_strands(yy), d);
  for (int p = 0; p < Panel::kPlanes; ++p) {
    const int bytes = Panel::plane_bytes(d, p);
    auto* const to = reinterpret_cast<uint8_t*>(panel) + Panel::plane_at(d, p) + token * bytes;
    for (int j = 0; j < bytes; ++j) to[j] = Panel::plane_byte(codes, d, p, j);
  }
}

// Token `at` of a head's panels, of a codec whose tokens are records. mean [head_dim], or null, is that of the keys. v null:
// the keys alone.
template <class C>
inline void set_row(std::byte* k_panel, std::byte* v_panel, int d, int at, const float* k, const float* v,
                    const float* mean) {
  static_assert(C::kRecord);
  if constexpr (C::kHadamard) {
    encode_record<typename C::K>(k_panel, d, at, k, mean);
    if (v != nullptr) encode_record<typename C::V>(v_panel, d, at, v, nullptr);
  } else {
    C::set_k(k_panel, d, at, k);
    if (v != nullptr) C::encode_v(v_panel, d, at, v);
  }
}

// A transformed row of levels -> numbers.
inline void leave_hadamard(float* x, int d, float scale, const float* mean) {
  hadamard(x, d);
  for (int c = 0; c < d; ++c) {
    x[c] = x[c] * (scale * hadamard_sign(c));
    if (mean != nullptr) x[c] += mean[c];
  }
}

template <class C>
inline void get_k_row(const std::byte* panel, int d, int token, const float* mean, float* to) {
  for (int c = 0; c < d; ++c) to[c] = C::k(panel, d, c, token);
  if constexpr (C::kHadamard) leave_hadamard(to, d, C::K::scale(panel, d, token), mean);
}
template <class C>
inline void get_v_row(const std::byte* panel, int d, int token, float* to) {
  for (int c = 0; c < d; ++c) to[c] = C::v(panel, d, token, c);
  if constexpr (C::kHadamard) leave_hadamard(to, d, C::V::scale(panel, d, token), nullptr);
}

// What is decoded may be coded again, exactly, in half precision: a code in the Hadamard basis may err past its range.
template <class C>
inline void keep_to_half(float* row, int d) {
  if constexpr (C::kHadamard)
    for (int c = 0; c < d; ++c) row[c] = coded_number(row[c]);
}

// The bytes that are one token's in a head's panels of a record codec: visit(offset, size) for pieces that lie at
// offset + token x size.
template <class C, class Visit>
MOSAIC_HD inline void for_pieces(int d, Visit&& visit) {
  static_assert(C::kRecord);
  const size_t v_panel = k_panel_of<C>(d);
  if constexpr (C::kHadamard) {
    size_t offset, size;
    for (int p = 0; p < C::K::kPieces; ++p) C::K::piece(d, p, &offset, &size), visit(offset, size);
    for (int p = 0; p < C::V::kPieces; ++p) C::V::piece(d, p, &offset, &size), visit(v_panel + offset, size);
  } else if constexpr (!C::kExact) {
    C::pieces(d, visit);
  } else {  // a channel's tokens lie in a row, then a token's values
    const size_t number = C::k_bytes(1) / kPageTokens;
    for (int c = 0; c < d; ++c) visit(static_cast<size_t>(c) * kPageTokens * number, number);
    visit(v_panel, static_cast<size_t>(d) * number);
  }
}

// Token `from_at` of a head's panels to token `to_at` of another head's, bit for bit.
template <class C>
inline void copy_row(const std::byte* from, int from_at, std::byte* to, int to_at, int d) {
  for_pieces<C>(d, [&](size_t offset, size_t size) {
    std::memcpy(to + offset + static_cast<size_t>(to_at) * size, from + offset + static_cast<size_t>(from_at) * size,
                size);
  });
}

}  // namespace mosaic
