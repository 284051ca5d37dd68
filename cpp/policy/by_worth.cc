#include "policy/by_worth.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace mosaic {

namespace {

// Settled or heard, in one scale: what a half holds.
float rank(float worth, float like) {
  return std::min(worth, 65504.0f) * std::max(1 - like * like * like * like, 1e-4f);
}

}  // namespace

void WorthSettings::read(SettingReader* reader) {
  auto chosen = static_cast<int>(score);
  reader->choice("score", &chosen, {"received", "value_norm", "both", "newest"})
      .number("listen", &listen, 1, 256)
      .number("key_power", &key_power, 0, 2)
      .flag("likeness", &likeness)
      .number("most_tokens", &most_tokens, 0, 1 << 24);
  score = static_cast<Score>(chosen);
}

float ByWorth::attention_weight(int keys) const {  // about 1, so that sums fit a half
  return static_cast<float>(std::pow(keys / 1024.0, s_.key_power));
}

float ByWorth::worth(float received, float value_norm) const {
  using Score = WorthSettings::Score;
  if (s_.score == Score::kNewest) return 1;
  return s_.score == Score::kReceived ? received : s_.score == Score::kNorm ? value_norm : received * value_norm;
}

int ByWorth::pick_victims(const TokenLog& log, const Listening& heard, int lane, int need, Victim* out) {
  const half_t* const scores = log.scores(lane);
  const uint8_t* const likeness = log.likeness(lane);
  int n = 0;
  for (int page = 0; page < log.shape().pages; ++page) {
    auto rows = static_cast<uint16_t>(log.rows(lane, page) & ~log.heard(lane, page));
    for (; rows != 0; rows &= static_cast<uint16_t>(rows - 1)) {
      const TokenSlot slot = page * kPageTokens + std::countr_zero(rows);
      out[n++] = {slot, kNone, kNone, rank(half_to_float(scores[slot]), static_cast<float>(likeness[slot]) / 255.0f)};
    }
  }
  for (int f = 0; f < heard.frames() && heard.frame(f).in_log; ++f) {
    const TokenSlot* const slots = heard.slots(lane, f);
    const half_t* const received = heard.attention_received(lane, f);
    for (int i = 0; i < heard.frame(f).tokens; ++i)
      if (slots[i] != kNone)
        out[n++] = {slots[i], f, i, rank(worth(half_to_float(received[i]), log.value_norm(lane, slots[i])), 0)};
  }
  need = std::min(need, n);
  // Among equals the oldest goes, so that two runs with one history stay the same.
  const int32_t* const positions = log.positions(lane);
  std::nth_element(out, out + need, out + n, [&](const Victim& a, const Victim& b) {
    if (a.rank != b.rank) return a.rank < b.rank;
    return positions[a.slot] != positions[b.slot] ? positions[a.slot] < positions[b.slot] : a.slot < b.slot;
  });
  return need;
}

}  // namespace mosaic
