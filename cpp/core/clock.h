// Clock: when tokens came, in 32 bits a token though a stream runs for decades. A token keeps the low part of its time in
// milliseconds (TokenMeta::time_low); the turn that it counts in follows from its position, for neither times nor positions
// ever fall: a turn begins at a position, and what stands from there on came in it or later. A turn is 2^32 - 1 ms, 50 days;
// turn 0 lies around 0, and in it time_low is the time. Not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include "core/ids.h"

namespace mosaic {

// A time in milliseconds in five bytes, for tables that hold many: one that Clock can tell.
class TimeMs {
 public:
  TimeMs() : TimeMs(0) {}
  TimeMs(int64_t ms) {  // NOLINT: it is that number
    for (int i = 0; i < 5; ++i) bytes_[i] = static_cast<uint8_t>((ms + kBefore) >> 8 * i);
  }
  operator int64_t() const {  // NOLINT
    int64_t ms = -kBefore;
    for (int i = 0; i < 5; ++i) ms += int64_t{bytes_[i]} << 8 * i;
    return ms;
  }

 private:
  static constexpr int64_t kBefore = int64_t{1} << 31;
  uint8_t bytes_[5];
};
static_assert(sizeof(TimeMs) == 5);

class Clock {
 public:
  static constexpr int64_t kFirstMs = -2'000'000'000;    // 23 days before 0
  static constexpr int64_t kLastMs = 1'000'000'000'000;  // 31 years behind it
  static constexpr int64_t kTurnMs = (int64_t{1} << 32) - 1;
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::min();  // of what has no time: before everything

  // What a token of that time keeps: never kNoTime.
  static int32_t low(int64_t ms) { return static_cast<int32_t>(ms - turn_of(ms) * kTurnMs); }
  // A frame of that time begins at a position; neither comes before the last frame's.
  void pass(int32_t position, int64_t ms) {
    const auto turn = static_cast<int32_t>(turn_of(ms));
    if (turns_ > 0 ? turn != begun_[turns_ - 1].turn : turn != 0) begun_[turns_++] = {position, low(ms), turn};
  }
  int64_t time(int32_t position, int32_t low) const {
    if (low == kNoTime) return kNever;
    int i = turns_ - 1;
    while (i >= 0 && !has_begun(begun_[i], position, low)) --i;
    return (i < 0 ? 0 : begun_[i].turn) * kTurnMs + low;
  }
  int64_t time(const TokenMeta& token) const { return time(token.position, token.time_low); }
  // Snapshot is of a layer above.
  template <class Snapshot>
  void serialize(Snapshot& s) {
    s.in_range(turns_, 0, static_cast<int>(begun_.size()), "turns of the clock");
    for (int i = 0; i < turns_; ++i) {
      s.item(begun_[i].position);
      s.item(begun_[i].low);
      s.in_range(begun_[i].turn, turn_of(kFirstMs), turn_of(kLastMs), "a turn of the clock");
      s.require(i == 0 || (begun_[i].turn > begun_[i - 1].turn && begun_[i].position >= begun_[i - 1].position),
                "the clock's turns rise");
    }
  }

 private:
  // A turn is what lies nearest to a multiple of its length.
  static int64_t turn_of(int64_t ms) { return (ms + kTurnMs / 2) / kTurnMs; }
  struct Turn {
    int32_t position;
    int32_t low;  // of its first frame
    int32_t turn;
  };
  // Frames that share a position lie within half a turn: those before its end stand far behind the low of its first one.
  static bool has_begun(const Turn& turn, int32_t position, int32_t low) {
    if (turn.position != position) return turn.position < position;
    return low >= turn.low && int64_t{low} - turn.low < kTurnMs / 2;
  }
  std::array<Turn, kLastMs / kTurnMs + 2> begun_;  // but for turn 0 where the stream begins in it
  int turns_ = 0;
};

// What a question asks for: nothing that came before.
struct Since {
  int64_t ms = Clock::kNever;
  const Clock* clock = nullptr;  // where something is asked for
  bool asks() const { return ms != Clock::kNever; }
  bool wants(int64_t time) const { return time >= ms; }
  bool wants(int32_t position, int32_t time_low) const { return !asks() || wants(clock->time(position, time_low)); }
};

}  // namespace mosaic
