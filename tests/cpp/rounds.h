// How long long tests are: in full, or an eighth in slow builds - sanitizers, and builds with asserts - which look for
// what a single round does wrong. On an emulated CPU (tools/aarch64) a sixteenth, and a third of seeds and steps of random
// sessions. No test case is ever left out.
#pragma once

namespace mosaic::testing {

#if defined(MOSAIC_EMULATED)
inline constexpr int kRoundsPart = 16;
inline constexpr int kRandomPart = 3;
#elif !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kRoundsPart = 8;
inline constexpr int kRandomPart = 1;
#else
inline constexpr int kRoundsPart = 1;
inline constexpr int kRandomPart = 1;
#endif

constexpr int rounds(int full) { return (full + kRoundsPart - 1) / kRoundsPart; }
// Of seeds, and of steps of each.
constexpr int random_rounds(int full) { return (full + kRandomPart - 1) / kRandomPart; }

}  // namespace mosaic::testing
