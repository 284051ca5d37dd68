// encode, encode_row, decode and gather: a block of threads per head and page, a codec group per thread. Compiled without fused
// multiply-add, so that the bytes of a page are those of the CPU backend.
#include "backend/cuda/kernels.h"
#include "backend/cuda/page_layout.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = 128;

// Grid: x a head, y a page of the run.
MOSAIC_KERNEL(kThreads, 1)
encode_kernel(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int tokens,
              std::byte* pages, size_t pitch) {
  const int d = shape.head_dim, head = simt::block_x(), first = simt::block_y() * kPageTokens;
  const int count = tokens - first < kPageTokens ? tokens - first : kPageTokens;
  std::byte* const kb = pages + static_cast<size_t>(simt::block_y()) * pitch + head_offset(codec, d, head);
  const size_t k_bytes = k_block(codec, d), words = head_bytes(codec, d) / sizeof(simt::Bytes16);
  for (size_t i = static_cast<size_t>(simt::thread()); i < words; i += kThreads) {
    reinterpret_cast<simt::Bytes16*>(kb)[i] = {};
  }
  simt::barrier();
  if (count == 0) return;
  k += static_cast<size_t>(first) * stride, v += static_cast<size_t>(first) * stride;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    for (int i = simt::thread(); i < d + count; i += kThreads) {  // channels of K, then tokens of V
      if (i < d) {
        C::encode_k(kb, d, i, k + head * d + i, stride, count);
      } else {
        C::encode_v(kb + k_bytes, d, i - d, v + static_cast<size_t>(i - d) * stride + head * d);
      }
    }
  });
}

// One number of an exact block at a time: a block of one channel lies where a wider one has that channel.
template <class C>
MOSAIC_DEVICE void set_number(std::byte* kb, std::byte* vb, int d, int at, int channel, const float* k,
                              const float* v) {
  if constexpr (C::kExact) {
    const size_t number = C::k_bytes(1) / kPageTokens;
    C::set_k(kb + static_cast<size_t>(channel) * C::k_bytes(1), 1, at, k + channel);
    C::encode_v(vb + (static_cast<size_t>(at) * d + channel) * number, 1, 0, v + channel);
  }
}

MOSAIC_KERNEL(kThreads, 1)
encode_row_kernel(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* page) {
  const int d = shape.head_dim, head = simt::block_x();
  std::byte* const kb = page + head_offset(codec, d, head);
  std::byte* const vb = kb + k_block(codec, d);
  with_codec(codec, [&](auto c) {
    for (int ch = simt::thread(); ch < d; ch += kThreads) {
      set_number<decltype(c)>(kb, vb, d, at, ch, k + head * d, v + head * d);
    }
  });
}

// Tokens [begin, begin + count) of one head -> rows of k, v.
MOSAIC_DEVICE void decode_head(CodecId codec, int d, const std::byte* kb, int begin, int count, float* k, float* v,
                               size_t stride) {
  const std::byte* const vb = kb + k_block(codec, d);
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    for (int i = simt::thread(); i < count * d; i += kThreads) {
      const int token = i / d, ch = i % d;
      k[static_cast<size_t>(token) * stride + ch] = C::k(kb, d, ch, begin + token);
      v[static_cast<size_t>(token) * stride + ch] = C::v(vb, d, begin + token, ch);
    }
  });
}

// Tokens [begin, end) of a page, or with begin = 0 of a run. Grid as encode_kernel's.
MOSAIC_KERNEL(kThreads, 1)
decode_kernel(CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int begin, int end, float* k,
              float* v, size_t stride) {
  const int d = shape.head_dim, head = simt::block_x(), first = simt::block_y() * kPageTokens;
  const int last = end - first < kPageTokens ? end - first : kPageTokens;
  const size_t to = static_cast<size_t>(first) * stride + static_cast<size_t>(head) * d;
  const std::byte* const page = pages + static_cast<size_t>(simt::block_y()) * pitch;
  decode_head(codec, d, page + head_offset(codec, d, head), begin, last - begin, k + to, v + to, stride);
}

MOSAIC_KERNEL(kThreads, 1)
gather_kernel(const PageEntry* pages, const int32_t* at, PageShape shape, float* k, float* v, size_t stride) {
  const int d = shape.head_dim, item = simt::block_x(), head = simt::block_y();
  const PageEntry page = pages[item];
  const size_t to = static_cast<size_t>(item) * stride + static_cast<size_t>(head) * d;
  decode_head(page.codec, d, page.data + head_offset(page.codec, d, head), at[item], 1, k + to, v + to, stride);
}

simt::Grid heads_of(PageShape shape, int tokens = 1) {
  const int pages = tokens <= kPageTokens ? 1 : (tokens + kPageTokens - 1) / kPageTokens;
  return {static_cast<unsigned>(shape.heads), static_cast<unsigned>(pages)};
}

}  // namespace

void encode(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
            int count, std::byte* pages, size_t pitch) {
  simt::launch(on, "encode", encode_kernel, heads_of(shape, count), kThreads, 0, codec, shape, k, v, stride, count,
               pages, pitch);
}

void encode_row(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, int at,
                std::byte* page) {
  simt::launch(on, "encode_row", encode_row_kernel, heads_of(shape), kThreads, 0, codec, shape, k, v, at, page);
}

void decode(const simt::Queue& on, CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int begin,
            int end, float* k, float* v, size_t stride) {
  if (end <= begin) return;
  simt::launch(on, "decode", decode_kernel, heads_of(shape, end), kThreads, 0, codec, shape, pages, pitch, begin, end,
               k, v, stride);
}

void gather(const simt::Queue& on, const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k,
            float* v, size_t stride) {
  if (items == 0) return;
  const simt::Grid grid{static_cast<unsigned>(items), static_cast<unsigned>(shape.heads)};
  simt::launch(on, "gather", gather_kernel, grid, kThreads, 0, pages, at, shape, k, v, stride);
}

}  // namespace mosaic::MOSAIC_SIMT
