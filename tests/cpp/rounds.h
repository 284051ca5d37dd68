// How long long tests are: in full, or an eighth in slow builds - sanitizers, and builds with asserts - which look for
// what a single round does wrong. No test case is ever left out.
#pragma once

namespace mosaic::testing {

#if !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kRoundsPart = 8;
#else
inline constexpr int kRoundsPart = 1;
#endif

constexpr int rounds(int full) { return (full + kRoundsPart - 1) / kRoundsPart; }

}  // namespace mosaic::testing
