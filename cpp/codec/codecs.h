// Every codec's group functions, and the one switch from a CodecId to them.
#pragma once

#include "codec/codec.h"

#define MOSAIC_CODEC_HEADERS
#include "codec/codecs.def"
#undef MOSAIC_CODEC_HEADERS

namespace mosaic {

// Calls fn with an empty value of the codec's struct: with_codec(id, [&](auto c) { decltype(c)::k(...); }).
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // fn may be of the host alone
#endif
template <class Fn>
MOSAIC_HD inline auto with_codec(CodecId codec, Fn&& fn) {
  switch (codec) {
#define MOSAIC_CODEC(id, name, ...) \
  case CodecId::id:                 \
    return fn(__VA_ARGS__{});
#include "codec/codecs.def"
#undef MOSAIC_CODEC
  }
  return fn(Fp32{});  // not reached: a CodecId is one of the list
}

// Bytes of a head's K panel and V panel in a page. A head takes a multiple of 64; the V panel of a record codec follows at
// a multiple of 32, so that nothing is lost to padding at 64 and 128 channels.
template <class C>
MOSAIC_HD inline constexpr size_t k_panel_of(int head_dim) {
  return C::kRecord && !C::kExact ? (C::k_bytes(head_dim) + 31) / 32 * 32 : pad64(C::k_bytes(head_dim));
}
template <class C>
MOSAIC_HD inline constexpr size_t head_bytes_of(int head_dim) {
  return pad64(k_panel_of<C>(head_dim) + C::v_bytes(head_dim));
}

}  // namespace mosaic
