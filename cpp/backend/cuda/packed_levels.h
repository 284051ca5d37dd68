// Levels of planes (codec/planes.h) without memory: codes stay in the registers they were loaded into, nibbles of them
// choose bytes of a table of eight. A byte is level + 128. Four codes a word: of byte b of a plane and of b + 1, fields q
// and q + 2:  (b, q), (b, q + 2), (b + 1, q), (b + 1, q + 2).
#pragma once

#include "backend/cuda/packed_words.h"
#include "codec/planes.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kLevelOffset = 128;

// Four bytes of a plane whose codes begin with `first`, `apart` from each other.
template <class Panel>
constexpr uint32_t level_table(int first, int apart) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(Panel::level(first + i * apart) + kLevelOffset) << 8 * i;
  return word;
}

// The upper bits of eight codes as nibbles, of four bytes of the planes: even fields, and odd ones.
struct Nibbles {
  uint32_t even, odd;
};
template <class Panel>
MOSAIC_DEVICE Nibbles nibbles_of(uint32_t high, uint32_t low) {
  if constexpr (Panel::kBits >= 4) {  // the second plane's two bits above the first one's
    return {simt::choose(0x33333333u, high, low << 2), simt::choose(0x33333333u, high >> 2, low)};
  } else {  // of the upper word of a table: the lower is zero, and neither has to lie in a register
    return {simt::choose(0x33333333u, high, 0x44444444u), simt::choose(0x33333333u, high >> 2, 0x44444444u)};
  }
}

// Levels of the four codes whose nibbles are the lower half of the word, their last bit (where it has a plane of its own)
// being kLast. others: nibbles with the upper bit the other way.
template <class Panel, int kLast>
MOSAIC_DEVICE uint32_t levels_with(uint32_t nibbles, uint32_t others) {
  constexpr int kOne = 1 << Panel::kBits % 2;  // the lowest bit of a nibble, in the code
  if constexpr (Panel::kBits >= 4) {
    // By the upper bit of a nibble, which is not the sign: where it is set, a table gives the sign of its byte, ones
    // above zero, where `and` leaves the other table's byte, else zeros.
    const uint32_t clear =
        simt::permute_signs(level_table<Panel>(kLast, 4 * kOne), level_table<Panel>(kLast + kOne, 4 * kOne), nibbles);
    const uint32_t set = simt::permute_signs(level_table<Panel>(kLast + 2 * kOne, 4 * kOne),
                                             level_table<Panel>(kLast + 3 * kOne, 4 * kOne), others);
    return simt::majority(clear, set, simt::permute_signs(0x0000ffffu, 0x0000ffffu, nibbles));
  } else {
    return simt::permute_signs(0u, level_table<Panel>(kLast, kOne), nibbles);
  }
}
// set: all ones in the bytes of codes whose last bit is set.
template <class Panel>
MOSAIC_DEVICE uint32_t levels_at(uint32_t nibbles, uint32_t set) {
  const uint32_t others = nibbles ^ 0x8888u;
  if constexpr (Panel::kBits % 2 == 0) {
    return levels_with<Panel, 0>(nibbles, others);
  } else {
    return simt::choose(set, levels_with<Panel, 1>(nibbles, others), levels_with<Panel, 0>(nibbles, others));
  }
}

// A token's codes in a lane's part of its planes.
template <int kWords>
struct Codes {
  uint32_t high[kWords], low[kWords];
  uint32_t last;  // byte q, bit b: the last bit of field q of byte b
};
template <class Panel, int kWords>
MOSAIC_DEVICE uint32_t levels_of(const Codes<kWords>& codes, const Nibbles (&nibbles)[kWords], int word, int half,
                                 int q) {
  uint32_t set = 0;
  if constexpr (Panel::kBits % 2 == 1) {
    const int b = 4 * word + 2 * half;
    const auto of = static_cast<uint32_t>(0xeca8 + 0x1111 * q);
    set = simt::permute_signs(codes.last << (7 - b), codes.last << (6 - b), of);
  }
  return levels_at<Panel>((q == 0 ? nibbles[word].even : nibbles[word].odd) >> 16 * half, set);
}

// Bytes `byte` of each word of four, a plane's row of last bits.
MOSAIC_DEVICE uint32_t byte_row(const simt::Bytes16& row, int byte) {
  const auto at = static_cast<uint32_t>(byte);
  const uint32_t of = at | (4 + at) << 4;
  return simt::permute(simt::permute(row.word[0], row.word[1], of), simt::permute(row.word[2], row.word[3], of),
                       0x5410);
}
// The same of each half of two words: bytes 0 and 2, or 1 and 3.
MOSAIC_DEVICE uint32_t byte_row(const simt::Bytes8& row, int byte) {
  return simt::permute(row.word[0], row.word[1], static_cast<uint32_t>(byte) * 0x1111u + 0x6420u);
}

// What, added to two halves of 1024 + level + kLevelOffset, leaves the levels.
inline constexpr uint32_t kLevelsBack = 0xe480e480u;

// Bytes i and j of four as two halves, 1024 + byte each.
MOSAIC_DEVICE uint32_t widen_bytes(uint32_t bytes, int i, int j) {
  return simt::permute(bytes, 0x64u, static_cast<uint32_t>(0x4040 | i | j << 8));
}

}  // namespace mosaic::MOSAIC_SIMT
