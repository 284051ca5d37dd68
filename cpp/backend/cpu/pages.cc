// encode, encode_row, decode and gather: the page loops around the codecs' group functions; copy and check_finite.
#include <cstring>

#include "backend/cpu/plain_ops.h"
#include "codec/codecs.h"
#include "core/error.h"
#include "core/finite.h"

namespace mosaic::cpu {
namespace {

// K block of a head; its V block follows.
template <class Byte>
Byte* k_block(CodecId codec, PageShape shape, int head, Byte* data) {
  const size_t bytes = k_block_bytes(codec, shape.head_dim) + v_block_bytes(codec, shape.head_dim);
  return data + static_cast<size_t>(head) * bytes;
}

}  // namespace

void PlainOps::copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

void PlainOps::check_finite(const float* x, size_t n, int32_t* bad) {
  if (!all_finite(x, n)) *bad = 1;
}

void PlainOps::encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count,
                      std::byte* data) {
  const int d = shape.head_dim;
  std::memset(data, 0, data_bytes(codec, shape));
  if (count == 0) return;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    for (int head = 0; head < shape.heads; ++head) {
      std::byte* const kb = k_block(codec, shape, head, data);
      std::byte* const vb = kb + k_block_bytes(codec, d);
      for (int ch = 0; ch < d; ++ch) C::encode_k(kb, d, ch, k + head * d + ch, stride, count);
      for (int t = 0; t < count; ++t) C::encode_v(vb, d, t, v + t * stride + head * d);
    }
  });
}

void PlainOps::encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* data) {
  const int d = shape.head_dim;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (!C::kExact) {
      throw InvariantError("encode_row needs an exact codec, not " + std::string(codec_name(codec)) + ".");
    } else {
      for (int head = 0; head < shape.heads; ++head) {
        std::byte* const kb = k_block(codec, shape, head, data);
        C::set_k(kb, d, at, k + head * d);
        C::encode_v(kb + k_block_bytes(codec, d), d, at, v + head * d);
      }
    }
  });
}

void PlainOps::decode(CodecId codec, PageShape shape, const std::byte* data, int begin, int end, float* k, float* v,
                      size_t stride) {
  const int d = shape.head_dim;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    for (int head = 0; head < shape.heads; ++head) {
      const std::byte* const kb = k_block(codec, shape, head, data);
      const std::byte* const vb = kb + k_block_bytes(codec, d);
      for (int t = begin; t < end; ++t) {
        float* const to_k = k + (t - begin) * stride + head * d;
        float* const to_v = v + (t - begin) * stride + head * d;
        for (int ch = 0; ch < d; ++ch) {
          to_k[ch] = C::k(kb, d, ch, t);
          to_v[ch] = C::v(vb, d, t, ch);
        }
      }
    }
  });
}

void PlainOps::gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v,
                      size_t stride) {
  for (int i = 0; i < items; ++i) {
    decode(pages[i].codec, shape, pages[i].data, at[i], at[i] + 1, k + i * stride, v + i * stride, stride);
  }
}

}  // namespace mosaic::cpu
