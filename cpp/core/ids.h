// Small integers with a name, and the one record every stored token carries.
#pragma once

#include <bit>
#include <cstdint>

#include "core/dtype.h"

namespace mosaic {

using PageId = int32_t;     // row of the page table
using ClusterId = int32_t;  // row of one lane's cluster index
using SceneId = int32_t;    // row of the scene table
using SlotId = int32_t;     // slot of one arena or of the spill file
inline constexpr int32_t kNone = -1;

// Tokens of one page. Every codec lays out the same number, so a page can change codec in place of its record.
inline constexpr int kPageTokens = 16;
// Of a mask of a page's tokens that is not zero.
MOSAIC_HD inline int lowest_bit(unsigned rows) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(rows)) - 1;
#else
  return std::countr_zero(rows);
#endif
}
MOSAIC_HD inline int highest_bit(unsigned rows) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(static_cast<int>(rows));
#else
  return 31 - std::countl_zero(rows);
#endif
}
inline constexpr int pages_for(int tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// h and w of a token of text: it stands in no grid, and under M-RoPE it stands at its position on every axis.
inline constexpr uint16_t kText = 0xffff;

// Where a token comes from. `position` is its original index in the sequence (the temporal index for M-RoPE), never
// reused; h and w are its row and column (M-RoPE and policies read them); time_low is of the frame's pts in milliseconds
// (core/clock.h has the rest).
struct TokenMeta {
  int32_t position;
  int32_t time_low;
  uint16_t h;
  uint16_t w;
};
static_assert(sizeof(TokenMeta) == 12);
// time_low of what is no frame's: the prefix, a dialogue, a question. No pts has it.
inline constexpr int32_t kNoTime = INT32_MIN;

}  // namespace mosaic
