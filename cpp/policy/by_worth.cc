#include "policy/by_worth.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace mosaic {

namespace {

// Settled or heard, in one scale: what a half holds.
float rank(float worth, float like) {
  return std::min(worth, 65504.0f) * std::max(1 - like * like * like * like, 1e-4f);
}

float as_received(float received, float) { return received; }
float by_merit(float, float merit) { return merit; }

constexpr Score kScores[] = {
    {"both", [](float received, float value_norm) { return received * value_norm; }},
    {"received", as_received},
    {.name = "value_norm", .worth = by_merit, .listens = false},
    {.name = "tar", .worth = by_merit, .merit = Merit::kChange, .listens = false},
    // Attention weighed by how long ago, as the middle layers of HERMES do (arXiv 2601.14724)
    {.name = "decayed", .worth = as_received, .fades = true},
    // StreamMem (arXiv 2508.15717), of the template's tokens that are in the stream anyway
    {.name = "template", .worth = as_received, .of_template = true},
    // All alike, so that the oldest goes: StreamingLLM's window (arXiv 2309.17453), a token at a time
    {.name = "newest", .worth = [](float, float) { return 1.0f; }, .listens = false},
};

// Half as much with each half of the time that the lane looks back.
void fade(const TokenLog& log, int lane, std::span<Victim> tokens) {
  const int32_t* const positions = log.positions(lane);
  int32_t oldest = std::numeric_limits<int32_t>::max(), newest = 0;
  for (const Victim& token : tokens) {
    oldest = std::min(oldest, positions[token.slot]);
    newest = std::max(newest, positions[token.slot]);
  }
  const float halvings = 2 / static_cast<float>(std::max(newest - oldest, 1));
  for (Victim& token : tokens) token.rank *= std::exp2(-halvings * static_cast<float>(newest - positions[token.slot]));
}

}  // namespace

std::span<const Score> Score::all() { return kScores; }

void WorthSettings::read(SettingReader* reader) {
  std::array<const char*, std::size(kScores)> names;
  std::ranges::transform(kScores, names.begin(), &Score::name);
  reader->choice("score", &score, names)
      .number("listen", &listen, 1, 256)
      .number("key_power", &key_power, 0, 2)
      .flag("likeness", &likeness)
      .number("most_tokens", &most_tokens, 0, 1 << 24);
}

float ByWorth::attention_weight(int keys) const {  // about 1, so that sums fit a half
  return static_cast<float>(std::pow(keys / 1024.0, s_.key_power));
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
    for (int i = 0; i < heard.frame(f).tokens; ++i)
      if (slots[i] != kNone)
        out[n++] = {slots[i], f, i, rank(worth(heard.received(lane, f, i), log.merit(lane, slots[i])), 0)};
  }
  if (score_.fades) fade(log, lane, {out, static_cast<size_t>(n)});
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
