// edge: ours. Every KV head keeps the tokens that trained decoders will want again, whole and packed, and everything kept
// is read - by questions, and by frames too, for what a token did not see when it was made no later reading brings back.
//   worth    the attention a token receives from its own frame and the next ones, times the norm of its value: what the
//            model itself makes of it says best what it will ask for, and carries over between families of models.
//            A token that comes while memory is not full has fewer rivals for attention: what it receives counts times
//            the keys that shared it, to the power of key_power
//   likeness a token nearly the same as one that is worth more (centred keys and centred values) is missed less:
//            its worth is taken by 1 - c^4
//   give up  the least, one by one; what is left is never averaged
//   most_tokens  a model that gets worse the more it reads (one trained on short streams) keeps no more than this
//   recall   with a disk, a question reads the share of what was given up that it attends most, beside all that is kept;
//            and so does a frame (frames_recall): no question finds what the frames after a token did not see
//   rest     what is looked through there and not read counts with the attention it would have had, and a mean value
// What it does on trained decoders stands in docs/results/decoders.md. unit="summaries" is the earlier edge (edge_summaries.cc).
#include <algorithm>
#include <bit>
#include <cmath>

#include "policy/edge_summaries.h"
#include "policy/policy.h"
#include "policy/retention.h"

namespace mosaic {

namespace {

enum class Score : uint8_t {
  kReceived,
  kNorm,
  kBoth,
  kNewest,  // all alike, so that the oldest goes: StreamingLLM's window (arXiv 2309.17453), a token at a time
};

struct EdgeSettings {
  int listen = 16;  // frames
  double key_power = 0.5;
  Score score = Score::kBoth;
  bool likeness = true;
  double recall = 0.1;         // of what was given up and is on disk
  double frames_recall = 0.1;  // the same, by a frame
  bool rest = false;
  int most_tokens = 0;
};

class Edge final : public Policy, public Retention {
 public:
  explicit Edge(const EdgeSettings& settings) : s_(settings) {}
  const char* name() const override { return "edge"; }
  PolicyNeeds needs() const override {
    return {.group = {.records = true}, .share = {.index = 0.15, .most_tokens = s_.most_tokens}};
  }
  Retention* retention() override { return this; }
  void admit(const ClusterStore&, const AdmitBatch&, Placement*) override {}
  int evict(const ClusterStore&, const Need&, Eviction*, int) override { return 0; }
  void serialize(Snapshot&, const ClusterStore&) override {}

  int listen_frames() const override { return s_.listen; }
  float attention_weight(int keys) const override {  // about 1, so that sums fit a half
    return static_cast<float>(std::pow(keys / 1024.0, s_.key_power));
  }
  bool compares() const override { return s_.likeness; }
  double recall_share() const override { return s_.recall; }
  double frames_recall_share() const override { return s_.frames_recall; }
  bool counts_rest() const override { return s_.rest; }
  float worth(float received, float value_norm) const override {
    if (s_.score == Score::kNewest) return 1;
    return s_.score == Score::kReceived ? received : s_.score == Score::kNorm ? value_norm : received * value_norm;
  }
  int pick_victims(const TokenLog& log, const Listening& heard, int lane, int need, Victim* out) override;

 private:
  // Settled or heard, in one scale: what a half holds.
  static float rank(float worth, float like) {
    return std::min(worth, 65504.0f) * std::max(1 - like * like * like * like, 1e-4f);
  }
  EdgeSettings s_;
};

int Edge::pick_victims(const TokenLog& log, const Listening& heard, int lane, int need, Victim* out) {
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

}  // namespace

MOSAIC_POLICY("edge", make_edge) {
  PolicySettings left = settings;
  const auto unit = std::find_if(left.begin(), left.end(), [](const auto& s) { return s.first == "unit"; });
  if (unit != left.end() && unit->second.word() != nullptr && *unit->second.word() == "summaries") {
    left.erase(unit);
    return make_edge_of_summaries(left);
  }
  EdgeSettings s;
  int unit_chosen = 0, score = static_cast<int>(s.score);
  SettingReader("edge", settings)
      .choice("unit", &unit_chosen, {"tokens", "summaries"})
      .choice("score", &score, {"received", "value_norm", "both", "newest"})
      .number("listen", &s.listen, 1, 256)
      .number("key_power", &s.key_power, 0, 2)
      .flag("likeness", &s.likeness)
      .number("recall", &s.recall, 0, 1)
      .number("frames_recall", &s.frames_recall, 0, 1)
      .flag("rest", &s.rest)
      .number("most_tokens", &s.most_tokens, 0, 1 << 24)
      .finish();
  s.score = static_cast<Score>(score);
  return std::make_unique<Edge>(s);
}

}  // namespace mosaic
