// Clock: what 32 bits a token and the order of frames say of its time, against the times that were given.
#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "core/clock.h"

namespace {

using namespace mosaic;

constexpr int64_t kDay = 86'400'000;

struct Seen {
  int32_t position;
  int64_t ms;
};

void must_tell(const std::vector<Seen>& frames, int tokens) {
  Clock clock;
  for (const Seen& f : frames) clock.pass(f.position, f.ms);
  for (const Seen& f : frames)
    for (int i = 0; i < tokens; ++i) {
      CAPTURE(f.ms);
      REQUIRE(clock.time(TokenMeta{f.position + i, Clock::low(f.ms), 0, 0}) == f.ms);
    }
}

TEST_CASE("a clock tells every time of decades to the millisecond, however frames come") {
  std::mt19937_64 random(7);
  for (const int64_t longest_gap : {int64_t{40}, kDay, 49 * kDay, 400 * kDay})
    for (const int tokens : {1, 13}) {
      std::vector<Seen> frames;
      int32_t position = 5;
      for (int64_t ms = Clock::kFirstMs; ms <= Clock::kLastMs && frames.size() < 3000;) {
        frames.push_back({position, ms});
        position += tokens;
        ms += static_cast<int64_t>(random() % static_cast<uint64_t>(longest_gap + 1));
      }
      frames.push_back({position, Clock::kLastMs});
      must_tell(frames, tokens);
    }
}

TEST_CASE("a stream may begin in any turn, and on either side of its ends") {
  for (const int64_t edge :
       {int64_t{0}, Clock::kTurnMs / 2, Clock::kTurnMs, 3 * Clock::kTurnMs / 2, Clock::kLastMs - 2})
    for (int64_t first = edge - 2; first <= edge + 2; ++first)
      must_tell({{0, first}, {4, first}, {8, first + 1}, {12, Clock::kLastMs}}, 4);
}

TEST_CASE("pictures that share a position are told apart where a turn ends between them") {
  const int64_t end = Clock::kTurnMs / 2;
  must_tell({{3, end - 400}, {3, end + 100}, {3, end + 300}, {4, end + 600}, {4, end + 600 + Clock::kTurnMs - kDay}},
            1);
}

TEST_CASE("no time is kept as that of text, which has none") {
  for (int64_t turn = 0; turn < 3; ++turn)
    for (int64_t off = -3; off <= 3; ++off) {
      const int64_t ms = turn * Clock::kTurnMs + Clock::kTurnMs / 2 + off;
      CHECK(Clock::low(ms) != kNoTime);
    }
  CHECK(Clock().time(7, kNoTime) == Clock::kNever);
  CHECK(Since{}.wants(7, kNoTime));
}

TEST_CASE("five bytes hold every time of a clock") {
  for (const int64_t ms : {Clock::kFirstMs, int64_t{-1}, int64_t{0}, int64_t{1}, Clock::kTurnMs, Clock::kLastMs})
    CHECK(int64_t{TimeMs(ms)} == ms);
}

}  // namespace
