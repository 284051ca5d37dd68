// Rows of planes written by vectors: kLanes rows at a time, a row a lane, so that sums over channels need no shuffles and
// have the order of codec/rows.h. The bytes are those of the plain loops.
#pragma once

#include "backend/cpu/pages_simd.h"
#include "codec/rows.h"

namespace mosaic::cpu {
namespace {

// At most kLanes rows of one head's keys or values, and where each goes.
struct RecordRows {
  const float* x;  // [count][stride]
  size_t stride;
  const float* mean;  // [D] or null
  int count = 0;
  std::byte* panel[kLanes];
  int32_t at[kLanes];
};

struct RecordScratch {
  alignas(64) float rows[kMaxHead * kLanes];     // [kLanes][D], then levels [D][kLanes]
  alignas(64) float columns[kMaxHead * kLanes];  // [D][kLanes]
  uint8_t codes[kMaxHead * kLanes];              // [kLanes][D]
};

// The sum over channels of term(c), strand by strand.
template <class Term>
MOSAIC_INLINE Vec sum_strands(int d, const Term& term) {
  Vec strand[kStrands];
  for (int i = 0; i < kStrands; ++i) strand[i] = i < d ? settle(term(i)) : Vec(0.0f);
  for (int c = kStrands; c < d; ++c) strand[c % kStrands] += settle(term(c));
  for (int half = kStrands / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) strand[i] += strand[i + half];
  }
  return strand[0];
}

// Rows into the Hadamard basis -> s.columns. Lanes beyond the last row repeat it.
inline void transform_rows(const RecordRows& rows, int d, RecordScratch& s) {
  if (rows.count == kLanes) {
    transpose(rows.x, rows.stride, kLanes, d, s.columns, kLanes);
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      copy_row(rows.x + static_cast<size_t>(least(lane, rows.count - 1)) * rows.stride, d,
               s.rows + static_cast<size_t>(lane) * d);
    }
    transpose(s.rows, static_cast<size_t>(d), kLanes, d, s.columns, kLanes);
  }
  for (int c = 0; c < d; ++c) {  // as coded_number()
    Vec x = load(s.columns + c * kLanes);
    if (rows.mean != nullptr) x -= rows.mean[c];
    stdx::where(x != x, x) = Vec(0.0f);
    x = stdx::min(stdx::max(x, Vec(-kMostCoded)), Vec(kMostCoded));
    store(s.columns + c * kLanes, x * hadamard_sign(c));
  }
  hadamard_columns(s.columns, d, kLanes);
}

// A row's codes into its planes.
template <class Panel>
inline void pack_planes(const uint8_t* codes, int d, int at, std::byte* panel) {
  for (int p = 0; p < Panel::kPlanes; ++p) {
    const int bytes = Panel::plane_bytes(d, p), shift = Panel::plane_shift(p);
    auto* const to = reinterpret_cast<uint8_t*>(panel) + Panel::plane_at(d, p) + at * bytes;
    if (d % 8 != 0) {
      for (int j = 0; j < bytes; ++j) to[j] = Panel::plane_byte(codes, d, p, j);
    } else if (Panel::plane_bits(p) == 2) {
      for (int j = 0; j < bytes; ++j) {
        const int a = codes[j] >> shift & 3, b = codes[j + bytes] >> shift & 3;
        const int c = codes[j + 2 * bytes] >> shift & 3, e = codes[j + 3 * bytes] >> shift & 3;
        to[j] = static_cast<uint8_t>(a | b << 2 | c << 4 | e << 6);
      }
    } else {
      for (int j = 0; j < bytes; ++j) {  // the product brings bit 0 of byte i to bit 56 + i
        uint64_t eight;
        std::memcpy(&eight, codes + 8 * j, sizeof eight);
        to[j] = static_cast<uint8_t>((eight & 0x0101010101010101u) * 0x0102040810204080u >> 56);
      }
    }
  }
}

template <class Panel>
inline void encode_records(const RecordRows& rows, int d, RecordScratch& s) {
  static_assert(Panel::plane_shift(Panel::kPlanes - 1) == 0);
  transform_rows(rows, d, s);
  const auto r = [&](int c) { return load(s.columns + c * kLanes); };
  const Vec square = sum_strands(d, [&](int c) { return r(c) * r(c); });
  Vec inverse = Panel::kUnit / square_root(square / static_cast<float>(d));
  stdx::where(!(square > 0.0f), inverse) = Vec(0.0f);
  for (int c = 0; c < d; ++c) {
    const Vec x = settle(r(c) * inverse), size = stdx::abs(x);
    Vec index(0.0f), level(static_cast<float>(Panel::magnitude(0)));
    for (int i = 0; i + 1 < Panel::kHalf; ++i) {
      const auto above = size > 0.5f * static_cast<float>(Panel::magnitude(i) + Panel::magnitude(i + 1));
      stdx::where(above, index) = Vec(static_cast<float>(i + 1));
      stdx::where(above, level) = Vec(static_cast<float>(Panel::magnitude(i + 1)));
    }
    const auto negative = x < 0.0f;
    Vec code = index + static_cast<float>(Panel::kHalf);
    stdx::where(negative, code) = static_cast<float>(Panel::kHalf - 1) - index;
    stdx::where(negative, level) = -level;
    store(s.rows + c * kLanes, level);
    const IVec whole = stdx::static_simd_cast<IVec>(code);
    for (int lane = 0; lane < kLanes; ++lane)
      s.codes[static_cast<size_t>(lane) * d + c] = static_cast<uint8_t>(whole[lane]);
  }
  const auto level_of = [&](int c) { return load(s.rows + c * kLanes); };
  const Vec ry = sum_strands(d, [&](int c) { return r(c) * level_of(c); });
  const Vec yy = sum_strands(d, [&](int c) { return level_of(c) * level_of(c); });
  for (int lane = 0; lane < rows.count; ++lane) {
    Panel::scales(rows.panel[lane], d)[rows.at[lane]] = Panel::scale_of(ry[lane], yy[lane], d);
    pack_planes<Panel>(s.codes + static_cast<size_t>(lane) * d, d, rows.at[lane], rows.panel[lane]);
  }
}

// Items [begin, end) of k, v as rows at[i] of pages[i].
template <class C>
inline void encode_record_items(PageShape shape, const float* k, const float* v, size_t stride, int begin, int end,
                                std::byte* const* pages, const int32_t* at, const float* key_mean) {
  const int d = shape.head_dim;
  RecordScratch scratch;
  for (int first = begin; first < end; first += kLanes) {
    for (int head = 0; head < shape.heads; ++head) {
      RecordRows rows{k + first * stride + head * d, stride, key_mean != nullptr ? key_mean + head * d : nullptr,
                      least(kLanes, end - first),    {},     {}};
      for (int i = 0; i < rows.count; ++i) {
        rows.panel[i] = pages[first + i] + static_cast<size_t>(head) * head_bytes_of<C>(d);
        rows.at[i] = at[first + i];
      }
      encode_records<typename C::K>(rows, d, scratch);
      if (v == nullptr) continue;
      rows.x = v + first * stride + head * d, rows.mean = nullptr;
      for (int i = 0; i < rows.count; ++i) rows.panel[i] += k_panel_of<C>(d);
      encode_records<typename C::V>(rows, d, scratch);
    }
  }
}

// Calls fn with the codec where its records are planes; else returns false.
template <class Fn>
inline bool with_planes(CodecId codec, Fn&& fn) {
  return with_codec(codec, [&](auto c) {
    if constexpr (kIsPlanes<decltype(c)>) fn(c);
    return kIsPlanes<decltype(c)>;
  });
}

}  // namespace
}  // namespace mosaic::cpu
