// What an Ops does where it has no quicker way: the calls for one page, row or lane, one after the other. What kernels wrote
// is read by kernels alone, but for rows that are copied here. Part of ops.h.
#pragma once

#include "backend/ops.h"

namespace mosaic {

inline void Ops::stage(const StageArgs& a) {
  for (const StageArgs::Numbers& numbers : a.numbers)
    if (numbers.x != nullptr) check_numbers(numbers.x, numbers.n, a.faults, numbers.cut);
  for (int lane = 0; lane < a.lanes && a.count > 0; ++lane) {
    const size_t from = static_cast<size_t>(lane) * static_cast<size_t>(a.shape.row());
    encode_run(a.codec, a.shape, a.k + from, a.v + from, a.stride, a.first, a.count,
               a.pages + static_cast<size_t>(lane) * a.lane_pitch, a.pitch);
  }
  for (const StageArgs::Piece& piece : a.pieces) copy(piece.to, piece.from, piece.bytes);
}

inline void Ops::grow_page(const GrowArgs& a) {
  decode(a.from_codec, a.shape, a.from, 0, a.held, a.room_k, a.room_v, a.stride);
  const auto row = static_cast<size_t>(a.shape.row());
  if (a.count > 0 && a.room_k + static_cast<size_t>(a.held) * a.stride != a.k) {
    wait();
    for (size_t i = 0; i < static_cast<size_t>(a.count); ++i) {
      const size_t to = (static_cast<size_t>(a.held) + i) * a.stride;
      std::copy_n(a.k + i * a.stride, row, a.room_k + to);
      std::copy_n(a.v + i * a.stride, row, a.room_v + to);
    }
  }
  encode(a.codec, a.shape, a.room_k, a.room_v, a.stride, a.held + a.count, a.to);
}

inline void Ops::encode_lane_rows(const LaneRowsArgs& a) {
  for (int i = 0; i < a.items; ++i) {
    const size_t from = static_cast<size_t>(a.row[i]) * a.stride;
    encode_rows(a.codec, a.shape, a.k + from, a.v != nullptr ? a.v + from : nullptr, a.stride, 1, a.pages + i, a.at + i,
                a.key_mean + static_cast<size_t>(a.lane[i]) * static_cast<size_t>(a.shape.row()));
  }
}

inline void Ops::encode_run(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int first,
                            int count, std::byte* pages, size_t pitch, const float* key_mean) {
  for_pages_of_run(first, count, [&](int page, int begin, int end, int before) {
    const size_t from = static_cast<size_t>(before) * stride;
    std::byte* const data = pages + static_cast<size_t>(page) * pitch;
    if (end - begin == kPageTokens)
      return encode(codec, shape, k + from, v + from, stride, kPageTokens, data, key_mean);
    for (int i = begin; i < end; ++i) {
      const size_t row = from + static_cast<size_t>(i - begin) * stride;
      encode_row(codec, shape, k + row, v + row, i, data, key_mean);
    }
  });
}

inline void Ops::decode_run(CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int first, int count,
                            float* k, float* v, size_t stride, const float* key_mean) {
  for_pages_of_run(first, count, [&](int page, int begin, int end, int before) {
    const size_t to = static_cast<size_t>(before) * stride;
    decode(codec, shape, pages + static_cast<size_t>(page) * pitch, begin, end, k + to, v + to, stride, key_mean);
  });
}

inline void Ops::add_recent_pages(std::span<const PotArgs> lanes) {
  for (const PotArgs& a : lanes) {
    const auto row = static_cast<size_t>(a.shape.row());
    if (a.fresh) {
      wait();  // what was asked for before may read the sums still
      std::fill_n(a.sum, static_cast<size_t>(a.places) * row, 0.0f);
      std::fill_n(a.count, a.places, 0);
    }
    for (int p = 0; p < a.n_pages; ++p) {
      const PageEntry& page = a.pages[p];
      const int begin = std::max(page.begin(), page.begin() + a.recent - page.first), count = page.end() - begin;
      if (count <= 0) continue;
      decode(page.codec, a.shape, page.data, begin, page.end(), a.room_k, a.room_v, row);
      add_recent_keys(
          {a.room_k, a.place + page.first + begin - page.begin(), count, a.shape.row(), row, a.sum, a.count});
    }
  }
}

inline void Ops::page_signals(std::span<const PotArgs> lanes) {
  for (const PotArgs& a : lanes) {
    const int row = a.shape.row();
    const auto stride = static_cast<size_t>(row);
    for (int p = 0; p < a.n_pages; ++p) {
      const PageEntry& page = a.pages[p];
      const int count = page.span(), at = page.first;
      if (count == 0) continue;
      decode(page.codec, a.shape, page.data, page.begin(), page.end(), a.room_k, a.room_v, stride);
      row_norm({a.room_v, count, row, stride, a.norm + at});
      if (a.score != nullptr)
        temporal_redundancy({a.room_k, a.place + at, count, row, stride, a.sum, a.count, a.score + at});
    }
  }
}

inline void Ops::enter_lanes(const EnterArgs& a) {
  for (int i = 0; i < a.n_moves; ++i)
    move_row(a.codec, a.shape, a.moves[i].from, a.moves[i].from_at, a.moves[i].to, a.moves[i].to_at);
  const auto row = static_cast<size_t>(a.shape.row());
  for (int i = 0; i < a.items; ++i) {
    const auto lane = static_cast<size_t>(a.lane[i]);
    decode_run(a.from_codec, a.shape, a.from + lane * a.lane_pitch, a.pitch, a.first + a.row[i], 1, a.room_k, a.room_v,
               row);
    row_norm({a.room_v, 1, a.shape.row(), row, a.norm + lane * a.norm_pitch + a.row[i]});
    encode_row(a.codec, a.shape, a.room_k, a.room_v, a.at[i], a.pages[i], a.key_mean + lane * row);
  }
}

// What stays goes through a ring of two pages of rows: a page is written when as many were read, so never before it was.
inline void Ops::pack_pages(PageShape shape, std::span<const PackArgs> runs, float* room_k, float* room_v) {
  constexpr int kRing = 2 * kPageTokens;
  const auto row = static_cast<size_t>(shape.row());
  for (const PackArgs& run : runs) {
    int kept = 0;
    const auto write = [&](int n) {
      const PackPage& to = run.pages[(kept - n) / kPageTokens];
      const size_t from = static_cast<size_t>((kept - n) % kRing) * row;
      encode(to.codec, shape, room_k + from, room_v + from, row, n, to.data);
    };
    for (int p = 0; p < run.n_pages; ++p) {
      const PackPage& page = run.pages[p];
      for (int i = 0; i < kPageTokens; ++i) {
        if ((page.stay >> i & 1) == 0) continue;
        const size_t to = static_cast<size_t>(kept % kRing) * row;
        decode(page.codec, shape, page.data, i, i + 1, room_k + to, room_v + to, row);
        if (++kept % kPageTokens == 0) write(kPageTokens);
      }
    }
    if (kept % kPageTokens > 0) write(kept % kPageTokens);
  }
}

}  // namespace mosaic
