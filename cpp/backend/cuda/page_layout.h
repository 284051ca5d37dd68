// Where a head's panels lie in a page's data, on the device; codec.h has the same for the host.
#pragma once

#include "backend/cuda/simt.h"
#include "codec/codecs.h"

namespace mosaic::MOSAIC_SIMT {

// Bytes of a head's K panel; its V panel follows.
MOSAIC_DEVICE size_t k_panel(CodecId codec, int head_dim) {
  return with_codec(codec, [&](auto c) { return k_panel_of<decltype(c)>(head_dim); });
}
MOSAIC_DEVICE size_t head_bytes(CodecId codec, int head_dim) {
  return with_codec(codec, [&](auto c) { return head_bytes_of<decltype(c)>(head_dim); });
}
MOSAIC_DEVICE size_t head_offset(CodecId codec, int head_dim, int head) {
  return static_cast<size_t>(head) * head_bytes(codec, head_dim);
}

}  // namespace mosaic::MOSAIC_SIMT
