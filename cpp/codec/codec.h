// What a codec provides, and how a page is laid out. A page holds kPageTokens tokens of one lane:
//
//   meta   [TokenMeta x 16]                                                              read by the host alone
//   data   [head 0: K panel | V panel] [head 1: K panel | V panel] ...                   read by kernels alone
//
// A panel is one head's keys, or values, of the page: 16 tokens x D numbers. A head's two take a multiple of 64 bytes;
// where the second begins, k_panel_of() says. In host memory and on disk the data follows the meta, one piece of
// page_bytes(); on a card the data lies apart, where only kernels reach. PageView is where the two parts of a page
// are.
// Keys are kept before rotation. Two kinds of codecs:
// - Group codecs (int8, int4): keys with one scale per channel over the page (outlier channels are what keys have), values
//   with one scale per token. Numbers that share a scale are contiguous: a K panel goes channel by channel (16 tokens
//   each), a V panel token by token. That is also the order attention wants: a vector of 16 tokens for the logits, a
//   vector of channels for the output, and no transpose. A page is written whole.
// - Record codecs (planes, and the exact fp32 and fp16): nothing in a token is shared with its neighbours. One can be
//   written, moved and given up alone. Packed ones take one mean key a lane off first (key_mean of the ops; ones that are
//   exact, or of groups, do not need it and do not look at it).
//
// Each codec is a header with group functions that a backend's page loop calls; codecs.def is the only list. A codec is a
// struct of static functions, host and device:
//
//   kExact                                      decode(encode(x)) is x to the precision a session calls exact
//   kRecord                                     a token is a record of its own
//   kHadamard                                   k and v give numbers of the Hadamard basis, before scale and transform
//   k_bytes(head_dim)  v_bytes(head_dim)        bytes of a panel before padding
//   k(panel, head_dim, channel, token)  v(panel, head_dim, token, channel)      one decoded number
//   encode_v(panel, head_dim, token, x)         x[head_dim]: the token's values                 (not in Hadamard basis)
//   encode_k(panel, head_dim, channel, x, stride, count)   x[i * stride]: the channel's value of token i < count  (groups)
//   set_k(panel, head_dim, token, x)            x[head_dim]: the token's keys                   (records, not Hadamard)
//   K, V                                        the two kinds of panel, as PlanePanel has it    (Hadamard)
//   pieces(head_dim, visit)                     where a token's bytes lie, as for_pieces() says (records, not exact or Hadamard)
//
// Exact codecs lie as fp16 does: K panel [D][16], V panel [16][D], a number where it stands.
//
// rows.h makes rows of that for any codec; every backend reads a codec that it has no quicker way for through k and v.
// Panels are zero before encoding, and what is not encoded stays zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/ids.h"

namespace mosaic {

enum class CodecId : uint8_t {
#define MOSAIC_CODEC(id, name, ...) id,
#include "codec/codecs.def"
#undef MOSAIC_CODEC
};
inline constexpr int kCodecs = 0
#define MOSAIC_CODEC(id, name, ...) +1
#include "codec/codecs.def"
#undef MOSAIC_CODEC
    ;

// Heads and channels of the tokens a page holds.
struct PageShape {
  int heads = 0;
  int head_dim = 0;
  MOSAIC_HD int row() const { return heads * head_dim; }  // elements of one token's keys (or values)
};

const char* codec_name(CodecId codec);
// Throws InvalidInput naming the codecs there are.
CodecId codec_from_name(const char* name);
// True when decode(encode(x)) is x to the precision the session calls exact (fp32, fp16).
bool codec_is_exact(CodecId codec);
// True when a token can be written, moved and given up alone.
bool codec_is_record(CodecId codec);
// Bytes of one K or V panel of kPageTokens x head_dim, padding counted; their sum is a multiple of 64.
size_t k_panel_bytes(CodecId codec, int head_dim);
size_t v_panel_bytes(CodecId codec, int head_dim);
// Bytes of a page's data, a multiple of 64; and of a whole page, meta first.
size_t data_bytes(CodecId codec, PageShape shape);
inline constexpr size_t kPageMetaBytes = kPageTokens * sizeof(TokenMeta);
static_assert(kPageMetaBytes % 64 == 0);
inline size_t page_bytes(CodecId codec, PageShape shape) { return kPageMetaBytes + data_bytes(codec, shape); }

struct PageView {
  TokenMeta* meta = nullptr;  // [kPageTokens]
  std::byte* data = nullptr;  // [data_bytes]
};
// A page in one piece.
inline PageView whole_page(std::byte* page) { return {reinterpret_cast<TokenMeta*>(page), page + kPageMetaBytes}; }

MOSAIC_HD inline constexpr size_t pad64(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace mosaic
