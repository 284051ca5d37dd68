#include "backend/cpu/top_k.h"

#include <algorithm>
#include <bit>

namespace mosaic::cpu {
namespace {

// Unsigned numbers in the order of the floats; -0 equals +0.
uint32_t ordered(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f + 0.0f);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

}  // namespace

int select_top_k(const float* score, int n, int k, int32_t* index) {
  const int kept = std::max(0, std::min(k, n));
  if (kept == 0) return 0;
  // `prefix` grows by 11, 11 and 10 bits to the k-th largest key; `left` is how many of the equal ones are taken.
  uint32_t prefix = 0, mask = 0;
  int left = kept;
  for (const int shift : {21, 10, 0}) {
    const uint32_t digits = shift == 0 ? 0x3ffu : 0x7ffu;
    int32_t count[2048] = {};
    for (int i = 0; i < n; ++i) {
      const uint32_t key = ordered(score[i]);
      if ((key & mask) == prefix) ++count[key >> shift & digits];
    }
    uint32_t digit = digits;
    while (count[digit] < left) left -= count[digit--];
    prefix |= digit << shift;
    mask |= digits << shift;
  }
  int at = 0;
  for (int i = 0; i < n && at < kept; ++i) {
    const uint32_t key = ordered(score[i]);
    if (key > prefix || (key == prefix && left-- > 0)) index[at++] = i;
  }
  std::sort(index, index + kept,
            [&](int32_t a, int32_t b) { return score[a] != score[b] ? score[a] > score[b] : a < b; });
  return kept;
}

}  // namespace mosaic::cpu
