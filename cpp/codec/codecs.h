// Every codec's group functions, and the one switch from a CodecId to them.
#pragma once

#include "codec/codec.h"
#include "codec/fp16.h"
#include "codec/fp32.h"
#include "codec/int4.h"
#include "codec/int8.h"

namespace mosaic {

// Calls fn with an empty value of the codec's struct: with_codec(id, [&](auto c) { decltype(c)::k(...); }).
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // fn may be of the host alone
#endif
template <class Fn>
MOSAIC_HD inline auto with_codec(CodecId codec, Fn&& fn) {
  switch (codec) {
#define MOSAIC_CODEC(id, name, type) \
  case CodecId::id:                  \
    return fn(type{});
#include "codec/codecs.def"
#undef MOSAIC_CODEC
  }
  return fn(Fp32{});  // not reached: a CodecId is one of the list
}

}  // namespace mosaic
