// Packed keys of a unit: from their planes to logits, in registers (attend_packed.h has the layout).
#pragma once

#include "backend/cuda/packed_lane.h"

namespace mosaic::MOSAIC_SIMT {

// Token g or g + 8 of a unit.
struct PackedToken {
  bool exists;
  int t, h, w;
  MOSAIC_DEVICE int on(int axis) const { return axis == 0 ? t : axis == 1 ? h : w; }
};
MOSAIC_DEVICE PackedToken token_of(const AttendArgs& a, const RopeTable& rope, const PageEntry& page, int i) {
  PackedToken token{page.has(i), 0, 0, 0};
  const int slot = page.first + i - page.begin();
  const RopeSpec& spec = rope.spec();
  if (token.exists) token.t = a.positions[slot];
  if (a.places != nullptr && spec.is_multi() && token.exists) {
    token.h = spec.place_at(token.t, a.places[2 * slot]);
    token.w = spec.place_at(token.t, a.places[2 * slot + 1]);
  }
  return token;
}

// Coarse rows of the three axes in one word.
MOSAIC_DEVICE unsigned coarse_of(const RopeTable& rope, const PackedToken& token) {
  const int bits = rope.fine_bits();
  return static_cast<unsigned>(token.t >> bits | token.h >> bits << 10 | token.w >> bits << 20);
}

// The lane's codes of the keys of token g + 8 `half`. Offsets are what a lane has, unsigned, then what is the same for all: one
// address of 64 bits serves both tokens and two planes.
template <class Panel, int kD>
MOSAIC_DEVICE void load_key_codes(const std::byte* panel, int g, int half, int t,
                                  Codes<PackedLane<kD>::kWords>* codes) {
  constexpr int kBytes = PackedLane<kD>::kBytes;
  const std::byte* const high = panel + static_cast<unsigned>(g * (kD / 4) + t * kBytes) + half * (2 * kD);
  const std::byte* const low = high + Panel::plane_at(kD, 1);
  if constexpr (kD == 128) {
    const auto raw = simt::load<simt::Bytes8>(high);
    codes->high[0] = raw.word[0], codes->high[1] = raw.word[1];
    if constexpr (Panel::kBits >= 4) {
      const auto other = simt::load<simt::Bytes8>(low);
      codes->low[0] = other.word[0], codes->low[1] = other.word[1];
    }
  } else {
    codes->high[0] = simt::load<uint32_t>(high);
    if constexpr (Panel::kBits >= 4) codes->low[0] = simt::load<uint32_t>(low);
  }
  if constexpr (Panel::kBits % 2 == 1) {
    const std::byte* const last =
        panel + static_cast<unsigned>(g * (kD / 8)) + (half * kD + Panel::plane_at(kD, Panel::kPlanes - 1));
    if constexpr (kD == 128) {
      codes->last = byte_row(simt::load<simt::Bytes16>(last), t);
    } else {
      codes->last = byte_row(simt::load<simt::Bytes8>(last), t / 2) >> 4 * (t % 2);
    }
  }
}

// The keys of a unit -> left side of the product with queries: [pair][token g or g + 8][channel f or f + D / 2].
template <class Panel, int kD>
MOSAIC_DEVICE void transform_keys(const std::byte* panel, const PackedLane<kD>& lane,
                                  uint32_t (&key)[PackedLane<kD>::kPairs][2][2]) {
  constexpr int kWords = PackedLane<kD>::kWords, kHalf = PackedLane<kD>::kPairs / 2;
  Codes<kWords> codes[2];
  Nibbles nibbles[2][kWords];
#pragma unroll
  for (int token = 0; token < 2; ++token) {
    load_key_codes<Panel, kD>(panel, lane.g, token, lane.t, &codes[token]);
#pragma unroll
    for (int w = 0; w < kWords; ++w) nibbles[token][w] = nibbles_of<Panel>(codes[token].high[w], codes[token].low[w]);
  }
  // Codes are taken as 1152 + level; what that adds to the sums of all 32 codes stands only in channel bits that are zero.
  const float bias = lane.t == 0 ? -32 * (1024 + kLevelOffset) * kPackedKeys : 0.0f;
  const float less[4] = {bias, 0, bias, 0}, kNothing[4] = {};
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {  // word i / 2, half i % 2: the upper bits of b
    uint32_t left[2][4];
#pragma unroll
    for (int q = 0; q < 2; ++q) {
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        const uint32_t levels = levels_of<Panel>(codes[token], nibbles[token], i / 2, i % 2, q);
        left[q][token] = widen_bytes(levels, 0, 1), left[q][2 + token] = widen_bytes(levels, 2, 3);
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint32_t (&plus)[2] = lane.signs[n];
      const uint32_t minus[2] = {plus[0] ^ 0x80008000u, plus[1] ^ 0x80008000u};
      float both[4], apart[4];
      simt::multiply_add(left[0], plus, n == 0 ? less : kNothing, both);
      simt::multiply_add(left[0], plus, kNothing, apart);
      simt::multiply_add(left[1], plus, both);
      simt::multiply_add(left[1], minus, apart);
#pragma unroll
      for (int token = 0; token < 2; ++token) {
        key[i][token][n] = simt::pack(both[2 * token], both[2 * token + 1]);
        key[kHalf + i][token][n] = simt::pack(apart[2 * token], apart[2 * token + 1]);
      }
    }
  }
#pragma unroll
  for (int step = 1; step < kHalf; step *= 2) {
#pragma unroll
    for (int j = 0; j < 2 * kHalf; ++j) {
      if ((j & step) != 0) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t x = key[j][i / 2][i % 2], y = key[j + step][i / 2][i % 2];
        key[j][i / 2][i % 2] = simt::add_halves(x, y);
        key[j + step][i / 2][i % 2] = simt::subtract_halves(x, y);
      }
    }
  }
}

// Keys, scaled, moved by the mean and turned by the fine rows of their positions.
template <class Panel, int kD>
MOSAIC_DEVICE void turn_keys(const std::byte* panel, const RopeTable& rope, const PackedChannels<kD>& channels,
                             const PackedLane<kD>& lane, const PackedToken (&tokens)[2],
                             uint32_t (&key)[PackedLane<kD>::kPairs][2][2]) {
  constexpr int kPairs = PackedLane<kD>::kPairs, kRun = 2;  // pairs of a wide load
  const half_t* const scales = Panel::scales(panel, kD) + static_cast<unsigned>(lane.g);
  const unsigned fine = (1u << rope.fine_bits()) - 1;
  const float* const angles = rope.fine(0) + static_cast<unsigned>(lane.frequency(0));
  const uint32_t scale[2] = {scales[0] * 0x10001u, scales[8] * 0x10001u};
#pragma unroll
  for (int j = 0; j < kPairs; j += kRun) {
    const auto mean = simt::load<simt::Bytes16>(channels.mean[j]);
    const auto flip = simt::load<simt::Bytes8>(&channels.flip[j]);
    const int axis = lane.axis[j / (kPairs / 2)];
#pragma unroll
    for (int token = 0; token < 2; ++token) {
      const float* const angle = angles + (static_cast<unsigned>(tokens[token].on(axis)) & fine) * size_t{kD} +
                                 PackedLane<kD>::frequency_of(0, j);
      const auto cosines = simt::load<simt::Bytes16>(angle), sines = simt::load<simt::Bytes16>(angle + kD / 2);
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const auto of = [&](const simt::Bytes16& x) {
          return simt::pack(std::bit_cast<float>(x.word[2 * i]), std::bit_cast<float>(x.word[2 * i + 1]));
        };
        const uint32_t cos = of(cosines), sin = of(sines);
        uint32_t (&k)[2] = key[j + i][token];
        const uint32_t x = simt::fuse_halves(k[0], scale[token], mean.word[2 * i]);
        const uint32_t y = simt::fuse_halves(k[1], scale[token] ^ flip.word[i], mean.word[2 * i + 1]);
        k[0] = simt::fuse_halves(x, cos, simt::negate_halves(simt::multiply_halves(y, sin)));
        k[1] = simt::fuse_halves(y, cos, simt::multiply_halves(x, sin));
      }
    }
  }
}

// Logits of tokens g, g + 8 by rows 2t, 2t + 1, for those of them that are `asked` for.
template <int kD>
MOSAIC_DEVICE void multiply_queries(const uint32_t (&key)[PackedLane<kD>::kPairs][2][2], const PackedLane<kD>& lane,
                                    const bool (&asked)[2], float (&logit)[2][2]) {
  float product[2][4] = {};  // two, so that a product seldom waits for the one before
#pragma unroll
  for (int j = 0; j < PackedLane<kD>::kPairs; ++j) {
    const uint32_t keys[4] = {key[j][0][0], key[j][1][0], key[j][0][1], key[j][1][1]};
    simt::multiply_add(keys, lane.query[j], product[j % 2]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = (product[0][i] + product[1][i]) * lane.scale[i % 2];
    logit[i / 2][i % 2] = asked[i / 2] ? x : logit[i / 2][i % 2];
  }
}

// The same of all that exist, -inf where there is no token. The queries are turned by the coarse row that most units share;
// for tokens of others once more for each of those.
template <int kD>
MOSAIC_DEVICE void packed_logits(const RopeTable& rope, const PackedSpace<kD>& space, const PackedToken (&tokens)[2],
                                 const uint32_t (&key)[PackedLane<kD>::kPairs][2][2], PackedLane<kD>* lane,
                                 float (&logit)[2][2]) {
  const unsigned coarse[2] = {coarse_of(rope, tokens[0]), coarse_of(rope, tokens[1])};
  const bool exists[2] = {tokens[0].exists, tokens[1].exists};
#pragma unroll
  for (int i = 0; i < 4; ++i) logit[i / 2][i % 2] = -INFINITY;
  bool left[2] = {exists[0] && coarse[0] != lane->base, exists[1] && coarse[1] != lane->base};
  multiply_queries(key, *lane, exists, logit);
  for (;;) {
    const unsigned others = simt::ballot(left[0] || left[1]);
    if (others == 0) return;
    const unsigned first = simt::ballot(left[0]);
    const unsigned next = first != 0 ? simt::shuffle_from(coarse[0], lowest_bit(first))
                                     : simt::shuffle_from(coarse[1], lowest_bit(others));
    turn_queries(rope, space, next, lane);
    multiply_queries(key, *lane, left, logit);
    left[0] = left[0] && coarse[0] != next, left[1] = left[1] && coarse[1] != next;
  }
}

}  // namespace mosaic::MOSAIC_SIMT
