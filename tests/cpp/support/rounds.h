// How long long tests are: in full, or an eighth in slow builds - sanitizers, and builds with asserts - which look for
// what a single round does wrong; a third of what takes some rounds to come to what it is about. On an emulated CPU
// (tools/aarch64) a fifth, and a third of other long loops and seeds.
#pragma once

namespace mosaic::testing {

#if defined(MOSAIC_EMULATED)
inline constexpr int kRoundsPart = 5;
inline constexpr int kEmulatedPart = 3;
#elif !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kRoundsPart = 8;
inline constexpr int kEmulatedPart = 1;
#else
inline constexpr int kRoundsPart = 1;
inline constexpr int kEmulatedPart = 1;
#endif

constexpr int rounds(int full) { return (full + kRoundsPart - 1) / kRoundsPart; }
// Under the pressure of a full memory, which takes a while to come.
constexpr int pressed_rounds(int full) { return kRoundsPart > 1 ? (full + 2) / 3 : full; }
// Of variants that go one way, such as every nth access that fails: all, or in slow builds every `part`th.
constexpr bool is_played(int variant, int part) { return kRoundsPart == 1 || variant % part == 0; }
// In full but on an emulated CPU.
constexpr int emulated_rounds(int full) { return (full + kEmulatedPart - 1) / kEmulatedPart; }

}  // namespace mosaic::testing
