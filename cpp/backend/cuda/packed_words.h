// More words of the kernels (simt.h): bytes looked up by nibbles, pairs of halves, and what lanes of a warp hand each other.
#pragma once

#include "backend/cuda/simt.h"

namespace mosaic::MOSAIC_SIMT::simt {

// Where any bit of `which` is set, that of `x` or `y` is enough; elsewhere both are needed. One instruction.
MOSAIC_DEVICE uint32_t majority(uint32_t x, uint32_t y, uint32_t which) { return (x & y) | (which & (x | y)); }

#if defined(__CUDACC__)

// Bits of x where `which` is set, of y elsewhere. One instruction, which a compiler that knows some of the bits makes two.
MOSAIC_DEVICE uint32_t choose(uint32_t which, uint32_t x, uint32_t y) {
  uint32_t chosen;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(chosen) : "r"(which), "r"(x), "r"(y));
  return chosen;
}
// Byte i of the result is the byte of (low, high) that nibble i of `select` names by its lower three bits; where its upper
// one is set, eight times that byte's top bit.
MOSAIC_DEVICE uint32_t permute(uint32_t low, uint32_t high, uint32_t select) {
  return __byte_perm(low, high, select);  // leaves out the upper bit of a nibble
}
MOSAIC_DEVICE uint32_t permute_signs(uint32_t low, uint32_t high, uint32_t select) {
  uint32_t x;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(x) : "r"(low), "r"(high), "r"(select));
  return x;
}

MOSAIC_DEVICE uint32_t add_halves(uint32_t x, uint32_t y) {
  asm("add.f16x2 %0, %0, %1;" : "+r"(x) : "r"(y));
  return x;
}
MOSAIC_DEVICE uint32_t subtract_halves(uint32_t x, uint32_t y) {
  asm("sub.f16x2 %0, %0, %1;" : "+r"(x) : "r"(y));
  return x;
}
MOSAIC_DEVICE uint32_t multiply_halves(uint32_t x, uint32_t y) {
  asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(x) : "r"(y));
  return x;
}
// x y + z, rounded once.
MOSAIC_DEVICE uint32_t fuse_halves(uint32_t x, uint32_t y, uint32_t z) {
  asm("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x) : "r"(y), "r"(z));
  return x;
}
MOSAIC_DEVICE uint32_t negate_halves(uint32_t x) {
  asm("neg.f16x2 %0, %0;" : "+r"(x));
  return x;
}

// What lane `from` gives.
MOSAIC_DEVICE unsigned shuffle_from(unsigned x, int from) { return __shfl_sync(0xffffffffu, x, from); }
// A matrix [8][8] of halves, row g in lanes 4g to 4g + 3, two columns a lane -> its transpose.
MOSAIC_DEVICE uint32_t transpose_halves(uint32_t x) {
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(x));
  return turned;
}

#else

inline uint32_t choose(uint32_t which, uint32_t x, uint32_t y) { return (x & which) | (y & ~which); }
inline uint32_t permute_signs(uint32_t low, uint32_t high, uint32_t select) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t x = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = select >> 4 * i & 15u, byte = static_cast<uint32_t>(bytes >> 8 * (nibble & 7u)) & 0xffu;
    x |= (nibble < 8 ? byte : byte >= 128 ? 0xffu : 0u) << 8 * i;
  }
  return x;
}
inline uint32_t permute(uint32_t low, uint32_t high, uint32_t select) {
  return permute_signs(low, high, select & 0x7777u);
}

template <class Fn>
uint32_t each_half(const Fn& fn) {
  return static_cast<uint32_t>(narrow(fn(0))) | static_cast<uint32_t>(narrow(fn(16))) << 16;
}
inline float half_at(uint32_t x, int bit) { return widen(static_cast<half_t>(x >> bit)); }
inline uint32_t add_halves(uint32_t x, uint32_t y) {
  return each_half([&](int i) { return half_at(x, i) + half_at(y, i); });
}
inline uint32_t negate_halves(uint32_t x) { return x ^ 0x80008000u; }
inline uint32_t subtract_halves(uint32_t x, uint32_t y) { return add_halves(x, negate_halves(y)); }
inline uint32_t multiply_halves(uint32_t x, uint32_t y) {
  return each_half([&](int i) { return half_at(x, i) * half_at(y, i); });
}
inline uint32_t fuse_halves(uint32_t x, uint32_t y, uint32_t z) {
  return each_half([&](int i) { return half_at(x, i) * half_at(y, i) + half_at(z, i); });
}

inline unsigned shuffle_from(unsigned x, int from, int line = __builtin_LINE()) { return meet_warp(x, line)[from]; }
inline uint32_t transpose_halves(uint32_t x, int line = __builtin_LINE()) {
  const uint32_t* const all = meet_warp(x, line);
  const int row = thread() % kWarp / 4, column = thread() % 4 * 2;  // of the result
  const auto at = [&](int from_row) { return all[4 * from_row + row / 2] >> row % 2 * 16 & 0xffffu; };
  return at(column) | at(column + 1) << 16;
}

#endif

}  // namespace mosaic::MOSAIC_SIMT::simt
