// encode, encode_row, encode_rows, move_row, decode and gather: the page loops around the codecs' group functions; copy
// and check_numbers.
#include <cstring>

#include "backend/cpu/plain_ops.h"
#include "codec/rows.h"
#include "core/error.h"
#include "core/finite.h"

namespace mosaic::cpu {
namespace {

// K panel of a head; its V panel follows.
template <class Byte>
Byte* k_panel(CodecId codec, PageShape shape, int head, Byte* data) {
  const size_t bytes = k_panel_bytes(codec, shape.head_dim) + v_panel_bytes(codec, shape.head_dim);
  return data + static_cast<size_t>(head) * bytes;
}

const float* mean_of(const float* key_mean, int head, int d) {
  return key_mean != nullptr ? key_mean + head * d : nullptr;
}

}  // namespace

void PlainOps::copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

void PlainOps::check_numbers(const float* x, size_t n, NumberFaults* faults, float* cut) {
  const bool good = all_fit_half(x, n);
  for (size_t i = 0; i < n && !good; ++i) {
    if (!all_finite(x + i, 1)) {
      faults->not_finite = 1;
    } else if (!fits_half(x[i])) {
      ++faults->beyond;
    }
  }
  for (size_t i = 0; i < n && cut != nullptr; ++i) cut[i] = cut_to_half(x[i]);
}

void PlainOps::encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count,
                      std::byte* data, const float* key_mean) {
  const int d = shape.head_dim;
  std::memset(data, 0, data_bytes(codec, shape));
  if (count == 0) return;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    for (int head = 0; head < shape.heads; ++head) {
      std::byte* const kb = k_panel(codec, shape, head, data);
      std::byte* const vb = kb + k_panel_of<C>(d);
      if constexpr (C::kRecord) {
        for (int t = 0; t < count; ++t) {
          set_row<C>(kb, vb, d, t, k + t * stride + head * d, v + t * stride + head * d, mean_of(key_mean, head, d));
        }
      } else {
        for (int ch = 0; ch < d; ++ch) C::encode_k(kb, d, ch, k + head * d + ch, stride, count);
        for (int t = 0; t < count; ++t) C::encode_v(vb, d, t, v + t * stride + head * d);
      }
    }
  });
}

void PlainOps::encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* data,
                          const float* key_mean) {
  const int d = shape.head_dim;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (!C::kRecord) {
      throw InvariantError("encode_row needs a codec of records, not " + std::string(codec_name(codec)) + ".");
    } else {
      for (int head = 0; head < shape.heads; ++head) {
        std::byte* const kb = k_panel(codec, shape, head, data);
        set_row<C>(kb, kb + k_panel_of<C>(d), d, at, k + head * d, v != nullptr ? v + head * d : nullptr,
                   mean_of(key_mean, head, d));
      }
    }
  });
}

void PlainOps::encode_rows(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int items,
                           std::byte* const* pages, const int32_t* at, const float* key_mean) {
  for (int i = 0; i < items; ++i)
    encode_row(codec, shape, k + i * stride, v != nullptr ? v + i * stride : nullptr, at[i], pages[i], key_mean);
}

void PlainOps::move_row(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to, int to_at) {
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    if constexpr (!C::kRecord) {
      throw InvariantError("move_row needs a codec of records, not " + std::string(codec_name(codec)) + ".");
    } else {
      for (int head = 0; head < shape.heads; ++head) {
        copy_row<C>(k_panel(codec, shape, head, from), from_at, k_panel(codec, shape, head, to), to_at, shape.head_dim);
      }
    }
  });
}

void PlainOps::decode(CodecId codec, PageShape shape, const std::byte* data, int begin, int end, float* k, float* v,
                      size_t stride, const float* key_mean) {
  const int d = shape.head_dim;
  with_codec(codec, [&](auto c) {
    using C = decltype(c);
    for (int head = 0; head < shape.heads; ++head) {
      const std::byte* const kb = k_panel(codec, shape, head, data);
      for (int t = begin; t < end; ++t) {
        const size_t to = (t - begin) * stride + head * d;
        get_k_row<C>(kb, d, t, mean_of(key_mean, head, d), k + to);
        keep_to_half<C>(k + to, d);
        if (v == nullptr) continue;
        get_v_row<C>(kb + k_panel_of<C>(d), d, t, v + to);
        keep_to_half<C>(v + to, d);
      }
    }
  });
}

void PlainOps::gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v,
                      size_t stride, const float* key_mean) {
  for (int i = 0; i < items; ++i) {
    decode(pages[i].codec, shape, pages[i].data, at[i], at[i] + 1, k + i * stride, v + i * stride, stride, key_mean);
  }
}

}  // namespace mosaic::cpu
