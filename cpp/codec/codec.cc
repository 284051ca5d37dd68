#include "codec/codec.h"

#include <cstring>
#include <string>

#include "codec/codecs.h"
#include "core/error.h"

namespace mosaic {

const char* codec_name(CodecId codec) {
  static const char* const kNames[] = {
#define MOSAIC_CODEC(id, name, ...) name,
#include "codec/codecs.def"
#undef MOSAIC_CODEC
  };
  return kNames[static_cast<int>(codec)];
}

CodecId codec_from_name(const char* name) {
  std::string known;
#define MOSAIC_CODEC(id, text, ...)                     \
  if (std::strcmp(name, text) == 0) return CodecId::id; \
  known += known.empty() ? "" : ", ";                   \
  known += text;
#include "codec/codecs.def"
#undef MOSAIC_CODEC
  throw InvalidInput("no codec is called \"" + std::string(name) + "\". Set codec= to one of: " + known + ".");
}

bool codec_is_exact(CodecId codec) {
  return with_codec(codec, [](auto c) { return decltype(c)::kExact; });
}

bool codec_is_record(CodecId codec) {
  return with_codec(codec, [](auto c) { return decltype(c)::kRecord; });
}

size_t k_panel_bytes(CodecId codec, int head_dim) {
  return with_codec(codec, [&](auto c) { return k_panel_of<decltype(c)>(head_dim); });
}

size_t v_panel_bytes(CodecId codec, int head_dim) {
  return with_codec(codec,
                    [&](auto c) { return head_bytes_of<decltype(c)>(head_dim) - k_panel_of<decltype(c)>(head_dim); });
}

size_t data_bytes(CodecId codec, PageShape shape) {
  const size_t head = k_panel_bytes(codec, shape.head_dim) + v_panel_bytes(codec, shape.head_dim);
  return static_cast<size_t>(shape.heads) * head;
}

}  // namespace mosaic
