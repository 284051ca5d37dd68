// encode, encode_row, encode_rows, move_row, decode and gather: a block of threads per head and page, a codec group per
// thread or a record's row per warp. Compiled without fused
// multiply-add, so that the bytes of a page are those of the CPU backend.
#include "backend/cuda/kernels.h"
#include "backend/cuda/record_row.h"
#include "codec/coded_number.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = 128;

// Token `at` of a head's panels of a record codec, by the threads of a block. codes: shared, [warps][kMostHead].
template <class C>
MOSAIC_DEVICE void set_tokens(std::byte* kb, std::byte* vb, int d, int first, int count, const float* k, const float* v,
                              size_t stride, const float* mean, uint8_t* codes) {
  if constexpr (C::kHadamard) {
    const int warp = simt::thread() / simt::kWarp;
    uint8_t* const mine = codes + warp * kMostHead;
    for (int row = warp; row < 2 * count; row += kThreads / simt::kWarp) {  // keys and values in turn
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
    for (int i = simt::thread(); i < count * d; i += kThreads) {
      const int token = i / d, channel = i % d;
      const size_t from = static_cast<size_t>(token) * stride + channel;
      C::set_k(kb + static_cast<size_t>(channel) * C::k_bytes(1), 1, first + token, k + from);
      if (v != nullptr) C::encode_v(vb + (static_cast<size_t>(first + token) * d + channel) * number, 1, 0, v + from);
    }
  } else if constexpr (C::kRecord) {
    for (int token = simt::thread(); token < count; token += kThreads) {
      C::set_k(kb, d, first + token, k + static_cast<size_t>(token) * stride);
      if (v != nullptr) C::encode_v(vb, d, first + token, v + static_cast<size_t>(token) * stride);
    }
  }
}

// Grid: a block a head.
MOSAIC_KERNEL(kThreads, 1)
encode_kernel(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count, std::byte* page,
              const float* key_mean) {
  const int d = shape.head_dim, head = simt::block_x();
  std::byte* const kb = page + head_offset(codec, d, head);
  const size_t k_bytes = k_panel(codec, d), words = head_bytes(codec, d) / sizeof(simt::Bytes16);
  for (size_t i = static_cast<size_t>(simt::thread()); i < words; i += kThreads) {
    reinterpret_cast<simt::Bytes16*>(kb)[i] = {};
  }
  simt::barrier();
  if (count == 0) return;
  k += head * d, v += head * d;
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

// Of tokens [begin, end) of a run those in page y, of head x.
struct RunPiece {
  int first, count;  // in the page
  int before;        // of the run
};
MOSAIC_DEVICE RunPiece piece_of_run(int begin, int end) {
  const int at = simt::block_y() * kPageTokens, first = at < begin ? begin - at : 0;
  const int last = end - at < kPageTokens ? end - at : kPageTokens;
  return {first, last - first, at + first - begin};
}

// Grid: x a head, y a page of the run.
MOSAIC_KERNEL(kThreads, 1)
encode_run_kernel(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int begin, int end,
                  std::byte* pages, size_t pitch, const float* key_mean) {
  const int d = shape.head_dim, head = simt::block_x();
  const RunPiece piece = piece_of_run(begin, end);
  if (piece.count <= 0) return;
  const size_t from = static_cast<size_t>(piece.before) * stride + static_cast<size_t>(head) * d;
  std::byte* const kb = pages + static_cast<size_t>(simt::block_y()) * pitch + head_offset(codec, d, head);
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (C::kRecord)
      set_tokens<C>(kb, kb + k_panel_of<C>(d), d, piece.first, piece.count, k + from, v + from, stride,
                    mean_of(key_mean, head, d), simt::shared<uint8_t>());
  });
}

MOSAIC_DEVICE void set_token(CodecId codec, PageShape shape, int head, std::byte* page, int at, const float* k,
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

MOSAIC_KERNEL(kThreads, 1)
encode_row_kernel(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* page,
                  const float* key_mean) {
  set_token(codec, shape, simt::block_x(), page, at, k, v, key_mean);
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

MOSAIC_KERNEL(kThreads, 1)
move_row_kernel(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to, int to_at) {
  const int d = shape.head_dim;
  const size_t head = head_offset(codec, d, simt::block_x());
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

// Tokens [begin, begin + count) of one head -> rows of k, v.
MOSAIC_DEVICE void decode_head(CodecId codec, int d, const std::byte* kb, int begin, int count, float* k, float* v,
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

// Tokens [begin, end) of a run. Grid as encode_run_kernel's.
MOSAIC_KERNEL(kThreads, 1)
decode_kernel(CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int begin, int end, float* k,
              float* v, size_t stride, const float* key_mean) {
  const int d = shape.head_dim, head = simt::block_x();
  const RunPiece piece = piece_of_run(begin, end);
  if (piece.count <= 0) return;
  const size_t to = static_cast<size_t>(piece.before) * stride + static_cast<size_t>(head) * d;
  const std::byte* const page = pages + static_cast<size_t>(simt::block_y()) * pitch;
  decode_head(codec, d, page + head_offset(codec, d, head), piece.first, piece.count, k + to,
              v != nullptr ? v + to : nullptr, stride, mean_of(key_mean, head, d));
}

MOSAIC_KERNEL(kThreads, 1)
gather_kernel(const PageEntry* pages, const int32_t* at, PageShape shape, float* k, float* v, size_t stride,
              const float* key_mean) {
  const int d = shape.head_dim, item = simt::block_x(), head = simt::block_y();
  const PageEntry page = pages[item];
  const size_t to = static_cast<size_t>(item) * stride + static_cast<size_t>(head) * d;
  decode_head(page.codec, d, page.data + head_offset(page.codec, d, head), at[item], 1, k + to, v + to, stride,
              mean_of(key_mean, head, d));
}

simt::Grid heads_of(PageShape shape, int tokens = 1) {
  const int pages = tokens <= kPageTokens ? 1 : (tokens + kPageTokens - 1) / kPageTokens;
  return {static_cast<unsigned>(shape.heads), static_cast<unsigned>(pages)};
}
simt::Grid items_of(PageShape shape, int items) {
  return {static_cast<unsigned>(items), static_cast<unsigned>(shape.heads)};
}

constexpr size_t kCodes = kThreads / simt::kWarp * kMostHead;  // bytes of the warps' codes

}  // namespace

void encode(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
            int count, std::byte* page, const float* key_mean) {
  simt::launch(on, "encode", encode_kernel, heads_of(shape), kThreads, kCodes, codec, shape, k, v, stride, count, page,
               key_mean);
}

void encode_run(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
                int begin, int end, std::byte* pages, size_t pitch, const float* key_mean) {
  simt::launch(on, "encode_run", encode_run_kernel, heads_of(shape, end), kThreads, kCodes, codec, shape, k, v, stride,
               begin, end, pages, pitch, key_mean);
}

void encode_row(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, int at,
                std::byte* page, const float* key_mean) {
  simt::launch(on, "encode_row", encode_row_kernel, heads_of(shape), kThreads, kCodes, codec, shape, k, v, at, page,
               key_mean);
}

void encode_rows(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
                 int items, std::byte* const* pages, const int32_t* at, const float* key_mean) {
  if (items == 0) return;
  simt::launch(on, "encode_rows", encode_rows_kernel, items_of(shape, items), kThreads, kCodes, codec, shape, k, v,
               stride, pages, at, key_mean);
}

void move_row(const simt::Queue& on, CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to,
              int to_at) {
  simt::launch(on, "move_row", move_row_kernel, heads_of(shape), kThreads, 0, codec, shape, from, from_at, to, to_at);
}

void decode(const simt::Queue& on, CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int begin,
            int end, float* k, float* v, size_t stride, const float* key_mean) {
  if (end <= begin) return;
  simt::launch(on, "decode", decode_kernel, heads_of(shape, end), kThreads, 0, codec, shape, pages, pitch, begin, end,
               k, v, stride, key_mean);
}

void gather(const simt::Queue& on, const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k,
            float* v, size_t stride, const float* key_mean) {
  if (items == 0) return;
  simt::launch(on, "gather", gather_kernel, items_of(shape, items), kThreads, 0, pages, at, shape, k, v, stride,
               key_mean);
}

}  // namespace mosaic::MOSAIC_SIMT
