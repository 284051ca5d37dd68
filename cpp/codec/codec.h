// What a codec provides, and how a page is laid out. A page holds kPageTokens tokens of one lane:
//
//   [TokenMeta x 16] [head 0: K block | V block] [head 1: K block | V block] ...     every block padded to 64 bytes
//
// Keys are kept before rotation with one scale per channel over the page (outlier channels are what keys have), values
// with one scale per token. Inside a block the numbers that share a scale are contiguous: a K block goes channel by
// channel (16 tokens each), a V block token by token. That is also the order attention wants: a vector of 16 tokens for
// the logits, a vector of channels for the output, and no transpose. Each codec is a header with group functions that a
// backend's page loop calls; codecs.def is the only list. A codec is a struct of static functions, host and device:
//
//   kExact                                      decode(encode(x)) is x to the precision a session calls exact
//   k_bytes(head_dim)  v_bytes(head_dim)        bytes of a block before padding
//   encode_k(block, head_dim, channel, x, stride, count)   x[i * stride]: the channel's value of token i < count
//   encode_v(block, head_dim, token, x)                    x[head_dim]: the token's values
//   k(block, head_dim, channel, token)  v(block, head_dim, token, channel)      one decoded number
//
// Blocks are zero before encoding, and what is not encoded stays zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/ids.h"

namespace mosaic {

enum class CodecId : uint8_t {
#define MOSAIC_CODEC(id, name, type) id,
#include "codec/codecs.def"
#undef MOSAIC_CODEC
};

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
// Bytes of one K or V block of kPageTokens x head_dim, a multiple of 64.
size_t k_block_bytes(CodecId codec, int head_dim);
size_t v_block_bytes(CodecId codec, int head_dim);
// Bytes of one page, a multiple of 64.
size_t page_bytes(CodecId codec, PageShape shape);

MOSAIC_HD inline TokenMeta* page_meta(std::byte* page) { return reinterpret_cast<TokenMeta*>(page); }
MOSAIC_HD inline const TokenMeta* page_meta(const std::byte* page) { return reinterpret_cast<const TokenMeta*>(page); }
inline constexpr size_t kPageMetaBytes = kPageTokens * sizeof(TokenMeta);
static_assert(kPageMetaBytes % 64 == 0);

MOSAIC_HD inline constexpr size_t pad64(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace mosaic
