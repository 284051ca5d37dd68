// Pages and rows written, moved, read and gathered: a block of threads per head and page, a codec group per
// thread or a record's row per warp. Compiled without fused
// multiply-add, so that the bytes of a page are those of the CPU backend.
#include <algorithm>

#include "backend/cuda/kernels.h"
#include "backend/cuda/page_calls.h"
#include "backend/cuda/page_rows.h"
#include "backend/cuda/record_row.h"
#include "codec/coded_number.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = kPageThreads;

// k, v: of the head.
MOSAIC_DEVICE_CALL void encode_head(CodecId codec, int d, int head, const float* k, const float* v, size_t stride,
                                    int count, std::byte* page, const float* key_mean) {
  std::byte* const kb = page + head_offset(codec, d, head);
  const size_t k_bytes = k_panel(codec, d), words = head_bytes(codec, d) / sizeof(simt::Bytes16);
  for (size_t i = static_cast<size_t>(simt::thread()); i < words; i += kThreads) {
    reinterpret_cast<simt::Bytes16*>(kb)[i] = {};
  }
  simt::barrier();
  if (count == 0) return;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kRecord) {
      set_tokens<C>(kb, kb + k_bytes, d, 0, count, k, v, stride, mean_of(key_mean, head, d), simt::shared<uint8_t>());
    } else {
      for (int i = simt::thread(); i < d + count; i += kThreads) {  // channels of K, then tokens of V
        if (i < d) {
          C::encode_k(kb, d, i, k + i, stride, count);
        } else {
          C::encode_v(kb + k_bytes, d, i - d, v + static_cast<size_t>(i - d) * stride);
        }
      }
    }
  });
}

// Grid: x a head, y a page of the run.
MOSAIC_KERNEL(kThreads, 1)
encode_run_kernel(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int begin, int end,
                  std::byte* pages, size_t pitch, const float* key_mean) {
  set_run(codec, shape, simt::block_x(), simt::block_y(), begin, end, k, v, stride, pages, pitch, key_mean);
}

MOSAIC_DEVICE_CALL void set_token(CodecId codec, PageShape shape, int head, std::byte* page, int at, const float* k,
                                  const float* v, const float* key_mean) {
  const int d = shape.head_dim;
  std::byte* const kb = page + head_offset(codec, d, head);
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kRecord)
      set_tokens<C>(kb, kb + k_panel_of<C>(d), d, at, 1, k + head * d, v != nullptr ? v + head * d : nullptr, 0,
                    mean_of(key_mean, head, d), simt::shared<uint8_t>());
  });
}

// Grid: x an item, y a head.
MOSAIC_KERNEL(kThreads, 1)
encode_rows_kernel(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
                   std::byte* const* pages, const int32_t* at, const float* key_mean) {
  const int item = simt::block_x();
  const size_t from = static_cast<size_t>(item) * stride;
  set_token(codec, shape, simt::block_y(), pages[item], at[item], k + from, v != nullptr ? v + from : nullptr,
            key_mean);
}

MOSAIC_DEVICE_CALL void move_token(CodecId codec, int d, int head_index, const std::byte* from, int from_at,
                                   std::byte* to, int to_at) {
  const size_t head = head_offset(codec, d, head_index);
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kRecord) {
      for_pieces<C>(d, [&](size_t offset, size_t size) {
        const std::byte* const source = from + head + offset + static_cast<size_t>(from_at) * size;
        std::byte* const target = to + head + offset + static_cast<size_t>(to_at) * size;
        for (size_t i = static_cast<size_t>(simt::thread()); i < size; i += kThreads) target[i] = source[i];
      });
    }
  });
}

MOSAIC_KERNEL(kThreads, 1)
move_row_kernel(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to, int to_at) {
  move_token(codec, shape.head_dim, simt::block_x(), from, from_at, to, to_at);
}

MOSAIC_KERNEL(kThreads, 1) encode_lane_rows_kernel(const LaneRowsArgs a) {
  const int item = simt::block_x();
  const size_t from = static_cast<size_t>(a.row[item]) * a.stride;
  set_token(a.codec, a.shape, simt::block_y(), a.pages[item], a.at[item], a.k + from,
            a.v != nullptr ? a.v + from : nullptr, a.key_mean + static_cast<size_t>(a.lane[item]) * a.shape.row());
}

// Tokens [begin, begin + count) of one head -> rows of k, v.
MOSAIC_DEVICE_CALL void decode_head(CodecId codec, int d, const std::byte* kb, int begin, int count, float* k, float* v,
                                    size_t stride, const float* mean) {
  const std::byte* const vb = kb + k_panel(codec, d);
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kHadamard) {
      for (int i = simt::thread() / simt::kWarp; i < 2 * count; i += kThreads / simt::kWarp) {
        const size_t to = static_cast<size_t>(i / 2) * stride;
        if (i % 2 != 0 && v == nullptr) continue;
        WarpRow row;
        if (i % 2 == 0) {
          decode_record<typename C::K>(kb, d, begin + i / 2, true, mean, &row);
        } else {
          decode_record<typename C::V>(vb, d, begin + i / 2, true, nullptr, &row);
        }
        for (float& number : row.x) number = coded_number(number);  // as keep_to_half() does
        put_row(row, d, (i % 2 == 0 ? k : v) + to);
      }
    } else {
      for (int i = simt::thread(); i < count * d; i += kThreads) {
        const int token = i / d, ch = i % d;
        k[static_cast<size_t>(token) * stride + ch] = C::k(kb, d, ch, begin + token);
        if (v != nullptr) v[static_cast<size_t>(token) * stride + ch] = C::v(vb, d, begin + token, ch);
      }
    }
  });
}

MOSAIC_DEVICE void move_all_heads(const EnterArgs& a, const RowMove& move) {
  for (int head = 0; head < a.shape.heads; ++head)
    move_token(a.codec, a.shape.head_dim, head, move.from, move.from_at, move.to, move.to_at);
}

// Grid: x an item, then a move that no item follows. What stands where an item comes to is moved by the item's block, so
// that no block waits for another one. Shared: codes, a head's row of keys and of values.
MOSAIC_KERNEL(kThreads, 1) enter_kernel(MOSAIC_PARAMETER EnterArgs a) {
  const int item = simt::block_x(), d = a.shape.head_dim;
  if (item >= a.items) {
    if (a.followed[item - a.items] == 0) move_all_heads(a, a.moves[item - a.items]);
    return;
  }
  if (a.leaves[item] != kNone) move_all_heads(a, a.moves[a.leaves[item]]);
  float* const k = reinterpret_cast<float*>(simt::shared<uint8_t>() + kPageCodes);
  float* const v = k + d;
  const size_t lane = static_cast<size_t>(a.lane[item]);
  const int token = a.first + a.row[item];
  const std::byte* const page = a.from + lane * a.lane_pitch + static_cast<size_t>(token / kPageTokens) * a.pitch;
  const float* const mean = a.key_mean + lane * a.shape.row();
  float square = 0;
  for (int head = 0; head < a.shape.heads; ++head) {
    decode_head(a.from_codec, d, page + head_offset(a.from_codec, d, head), token % kPageTokens, 1, k, v, 0, nullptr);
    simt::barrier();
    for (int c = simt::thread() % simt::kWarp; c < d; c += simt::kWarp) square += v[c] * v[c];
    set_token(a.codec, {1, d}, 0, a.pages[item] + head_offset(a.codec, d, head), a.at[item], k, v, mean + head * d);
    simt::barrier();  // the head's rows are written, and their space is free
  }
  square = simt::sum_lanes(square, simt::kWarp);
  if (simt::thread() == 0) a.norm[lane * a.norm_pitch + a.row[item]] = sqrtf(square);
}

// Bit `i` of those that are set, lowest first.
MOSAIC_DEVICE int nth_bit(unsigned bits, int i) {
  for (; i > 0; --i) bits &= bits - 1;
  return lowest_bit(static_cast<uint16_t>(bits));
}

// Tokens of one head, `count` of those that stay from the `skip`th on -> rows of k, v, a warp a row.
MOSAIC_DEVICE_CALL void decode_some(CodecId codec, int d, const std::byte* kb, unsigned stay, int skip, int count,
                                    float* k, float* v) {
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    for (int i = simt::thread() / simt::kWarp; i < 2 * count; i += kThreads / simt::kWarp) {
      const int token = nth_bit(stay, skip + i / 2);
      WarpRow row;
      i % 2 == 0 ? read_row<C, true>(kb, d, token, &row) : read_row<C, false>(kb, d, token, &row);
      put_row(row, d, (i % 2 == 0 ? k : v) + (i / 2) * d);
    }
  });
}

struct PackRuns {
  PageShape shape;
  PackArgs run[kMostPacked];
};
static_assert(sizeof(PackRuns) <= 4096);

// Grid: x a head, y a run, whose pages a block goes through in order: 16 tokens stand in shared memory before a page is
// written, and what they came from was read by then. Shared: codes, [2][16][d].
MOSAIC_KERNEL(kThreads, 1) pack_kernel(MOSAIC_PARAMETER PackRuns all) {
  const PackArgs& run = all.run[simt::block_y()];
  const int d = all.shape.head_dim, head = simt::block_x();
  float* const k = reinterpret_cast<float*>(simt::shared<uint8_t>() + kPageCodes);
  float* const v = k + kPageTokens * d;
  int held = 0, to = 0;
  for (int p = 0, done = 0; p < run.n_pages;) {
    const PackPage page = run.pages[p];
    const int left = simt::ones(page.stay) - done, room = kPageTokens - held, n = left < room ? left : room;
    if (n > 0)
      decode_some(page.codec, d, page.data + head_offset(page.codec, d, head), page.stay, done, n, k + held * d,
                  v + held * d);
    held += n, done += n;
    if (n == left) ++p, done = 0;
    if (held == 0 || (held < kPageTokens && p < run.n_pages)) continue;
    simt::barrier();  // the rows are there
    encode_head(run.pages[to].codec, d, head, k, v, static_cast<size_t>(d), held, run.pages[to].data, nullptr);
    simt::barrier();  // and free again
    ++to;
    held = 0;
  }
}

// What the page holds, and the rows behind it, stand together in shared memory before it is written.
MOSAIC_DEVICE void grow_head(const PageWrite& to, int d, int head, size_t stride) {
  float* const k = reinterpret_cast<float*>(simt::shared<uint8_t>() + kPageCodes);  // [16, d], and behind it v
  float* const v = k + kPageTokens * d;
  decode_head(to.from_codec, d, to.from + head_offset(to.from_codec, d, head), 0, to.held, k, v, static_cast<size_t>(d),
              mean_of(to.key_mean, head, d));
  for (int i = simt::thread(); i < to.count * d; i += kThreads) {
    const size_t from = static_cast<size_t>(i / d) * stride + static_cast<size_t>(head * d + i % d);
    k[to.held * d + i] = to.k[from];
    v[to.held * d + i] = to.v[from];
  }
  simt::barrier();
  encode_head(to.codec, d, head, k, v, static_cast<size_t>(d), to.held + to.count, to.page, to.key_mean);
}

// Grid: x a head, y a chain of pages.
MOSAIC_KERNEL(kThreads, 1) write_pages_kernel(MOSAIC_PARAMETER PageWrites jobs) {
  const int d = jobs.shape.head_dim, head = simt::block_x();
  for (uint8_t job = jobs.chain[simt::block_y()]; job != PageWrite::kLast; job = jobs.job[job].next) {
    const PageWrite& to = jobs.job[job];
    if (to.held > 0) {
      grow_head(to, d, head, jobs.stride);
    } else if (to.whole) {
      const int at = to.count > 0 ? head * d : 0;  // of none there are no rows
      encode_head(to.codec, d, head, to.k + at, to.v + at, jobs.stride, to.count, to.page, to.key_mean);
    } else {
      set_token(to.codec, jobs.shape, head, to.page, to.first, to.k, to.v, to.key_mean);
    }
    simt::barrier();  // it has been written, and the block's space is free
  }
}

// Grid: x a head, y a page.
MOSAIC_KERNEL(kThreads, 1) read_pages_kernel(MOSAIC_PARAMETER PageJobs<PageRead> jobs) {
  const PageRead& from = jobs.job[simt::block_y()];
  const int d = jobs.shape.head_dim, head = simt::block_x();
  decode_head(from.codec, d, from.page + head_offset(from.codec, d, head), from.first, from.count, from.k + head * d,
              from.v != nullptr ? from.v + head * d : nullptr, jobs.stride, mean_of(from.key_mean, head, d));
}

MOSAIC_KERNEL(kThreads, 1)
gather_kernel(const PageEntry* pages, const int32_t* at, PageShape shape, float* k, float* v, size_t stride,
              const float* key_mean, const int32_t* lane) {
  const int d = shape.head_dim, item = simt::block_x(), head = simt::block_y();
  if (lane != nullptr) key_mean += static_cast<size_t>(lane[item]) * shape.row();
  const PageEntry page = pages[item];
  const size_t to = static_cast<size_t>(item) * stride + static_cast<size_t>(head) * d;
  decode_head(page.codec, d, page.data + head_offset(page.codec, d, head), at[item], 1, k + to, v + to, stride,
              mean_of(key_mean, head, d));
}

simt::Grid pages_of(PageShape shape, int pages) {
  return {static_cast<unsigned>(shape.heads), static_cast<unsigned>(pages)};
}
simt::Grid items_of(PageShape shape, int items) {
  return {static_cast<unsigned>(items), static_cast<unsigned>(shape.heads)};
}

}  // namespace

void write_pages(const simt::Queue& on, const PageWrites& jobs) {
  const bool grows = std::any_of(jobs.job, jobs.job + jobs.n, [](const PageWrite& w) { return w.held > 0; });
  const size_t rows = grows ? 2 * sizeof(float) * kPageTokens * static_cast<size_t>(jobs.shape.head_dim) : 0;
  simt::launch(on, "write_pages", write_pages_kernel, pages_of(jobs.shape, jobs.chains), kThreads, kPageCodes + rows,
               jobs);
}

void read_pages(const simt::Queue& on, const PageJobs<PageRead>& jobs) {
  simt::launch(on, "read_pages", read_pages_kernel, pages_of(jobs.shape, jobs.n), kThreads, 0, jobs);
}

void encode_run(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
                int begin, int end, std::byte* pages, size_t pitch, const float* key_mean) {
  simt::launch(on, "encode_run", encode_run_kernel, pages_of(shape, pages_for(end)), kThreads, kPageCodes, codec, shape,
               k, v, stride, begin, end, pages, pitch, key_mean);
}

void encode_rows(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
                 int items, std::byte* const* pages, const int32_t* at, const float* key_mean) {
  if (items == 0) return;
  simt::launch(on, "encode_rows", encode_rows_kernel, items_of(shape, items), kThreads, kPageCodes, codec, shape, k, v,
               stride, pages, at, key_mean);
}

void encode_lane_rows(const simt::Queue& on, const LaneRowsArgs& a) {
  simt::launch(on, "encode_lane_rows", encode_lane_rows_kernel, items_of(a.shape, a.items), kThreads, kPageCodes, a);
}

void enter_lanes(const simt::Queue& on, const EnterArgs& a) {
  const size_t rows = 2 * sizeof(float) * static_cast<size_t>(a.shape.head_dim);
  simt::launch(on, "enter_lanes", enter_kernel, {static_cast<unsigned>(a.items + a.n_moves)}, kThreads,
               kPageCodes + rows, a);
}

void pack_pages(const simt::Queue& on, PageShape shape, std::span<const PackArgs> runs) {
  PackRuns all;
  all.shape = shape;
  std::copy(runs.begin(), runs.end(), all.run);
  const size_t rows = 2 * sizeof(float) * kPageTokens * static_cast<size_t>(shape.head_dim);
  simt::launch(on, "pack_pages", pack_kernel, pages_of(shape, static_cast<int>(runs.size())), kThreads,
               kPageCodes + rows, all);
}

void move_row(const simt::Queue& on, CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to,
              int to_at) {
  simt::launch(on, "move_row", move_row_kernel, pages_of(shape, 1), kThreads, 0, codec, shape, from, from_at, to,
               to_at);
}

void gather(const simt::Queue& on, const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k,
            float* v, size_t stride, const float* key_mean, const int32_t* lane) {
  if (items == 0) return;
  simt::launch(on, "gather", gather_kernel, items_of(shape, items), kThreads, 0, pages, at, shape, k, v, stride,
               key_mean, lane);
}

}  // namespace mosaic::MOSAIC_SIMT
