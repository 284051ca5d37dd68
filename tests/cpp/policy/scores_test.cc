// The scores of policies by records: each gives up what is worth least by its own rule, judged in float64 on what the heads
// attended and on keys and values as they came.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "policy/by_worth.h"
#include "support/shim_backend.h"
#include "support/worth_oracle.h"

namespace {

using namespace mosaic;
using mosaic::testing::Lane;
using mosaic::testing::Oracle;
using mosaic::testing::plain_config;
using mosaic::testing::PlayedStream;

constexpr int kWindow = 2, kListen = 4;

struct Played {
  int first, tokens, grid_w, trail;
};

// What a token is worth by each rule, in plain loops.
struct Rules {
  Oracle& oracle;
  std::vector<Played>& frames;

  const Played& frame_of(int position) const { return frames[static_cast<size_t>(oracle.frames[position])]; }
  const float* key(const Lane& lane, int position) const {
    return oracle.row(oracle.stream.video[static_cast<size_t>(position)].k, lane.layer, lane.head);
  }
  double cosine(const float* a, const float* b) const {
    double ab = 0, aa = 0, bb = 0;
    for (int c = 0; c < oracle.stream.config.model.head_dim; ++c)
      ab += static_cast<double>(a[c]) * b[c], aa += static_cast<double>(a[c]) * a[c],
          bb += static_cast<double>(b[c]) * b[c];
    return ab / std::sqrt(aa * bb);
  }
  // Against the two frames that were in the window when it left.
  double change(const Lane& lane, int position) const {
    const Played& own = frame_of(position);
    const int i = position - own.first, frame = oracle.frames[position];
    double sum = 0;
    int count = 0;
    for (int f = frame + 1; f <= frame + kWindow && i < own.tokens - own.trail; ++f) {
      const Played& next = frames[static_cast<size_t>(f)];
      for (int j = 0; j < next.tokens - next.trail; ++j)
        if (j / next.grid_w == i / own.grid_w && j % next.grid_w == i % own.grid_w) {
          sum += cosine(key(lane, position), key(lane, next.first + j));
          ++count;
        }
    }
    return count > 0 ? 1 - sum / count : 1;
  }
  double worth(const std::string& score, const Lane& lane, int position, double received, int oldest,
               int newest) const {
    if (score == "both") return received * oracle.norm(lane, position);
    if (score == "value_norm") return oracle.norm(lane, position);
    if (score == "tar") return change(lane, position);
    if (score == "decayed")
      return received * std::pow(0.25, static_cast<double>(newest - position) / (newest - oldest));
    return received;
  }
};

}  // namespace

TEST_CASE("what is worth least by the score that was asked for is given up, head by head") {
  for (const Score& rule : Score::all()) {
    const std::string score = rule.name;
    if (score == "newest") continue;  // edge_test.cc
    for (const int trail : {0, 3}) {
      CAPTURE(score);
      CAPTURE(trail);
      MemoryConfig config = plain_config(190 << 10, CodecId::kFp32);
      config.window_codec = CodecId::kFp32;
      PlayedStream stream(config, "edge", {{"score", score}, {"listen", kListen}, {"likeness", 0}, {"key_power", 0.5}},
                          5);
      stream.noise = 0.6f;
      stream.trail = trail;
      Oracle oracle(stream);
      std::vector<Played> frames;
      const Rules rules{oracle, frames};
      int given_up = 0;
      for (int i = 0; i < 50; ++i) {
        const Played played{static_cast<int>(stream.video.size()), 9 + i % 8, 3 + i % 2, trail};
        stream.frame(played.tokens, false, played.grid_w);
        frames.push_back(played);
        const int first_query = score == "template" ? played.tokens - std::max(trail, 1) : 0;
        oracle.hear(played.first, played.tokens, kListen, 0.5, first_query);
        stream.memory->check_invariants();
        given_up += oracle.check_given_up([&](const Lane& lane, int position, double received, int oldest, int newest) {
          return rules.worth(score, lane, position, received, oldest, newest);
        });
      }
      CHECK(given_up > 500);
      CHECK(stream.memory->stats().tokens.dropped == given_up);
    }
  }
}

TEST_CASE("a score that does not look at attention has none measured while frames come, and no room is taken for it") {
  const auto room_for = [](const Plan& plan, const char* name) {
    return std::ranges::find(plan.parts, name, &Plan::Part::name)->bytes;
  };
  const auto play = [](const char* score, mosaic::testing::ShimControl* control) {
    return PlayedStream(plain_config(300 << 10, CodecId::kFp16),
                        make_policy("edge", {{"score", score}, {"listen", kListen}, {"most_tokens", 64}}),
                        mosaic::testing::make_shim(3, control));
  };
  mosaic::testing::ShimControl unused;
  const Plan both = play("both", &unused).memory->plan();
  const uint64_t heard = room_for(both, "attention received"), scratch = room_for(both, "record scratch");
  for (const Score& score : Score::all()) {
    CAPTURE(std::string(score.name));
    mosaic::testing::ShimControl control;
    PlayedStream stream = play(score.name, &control);
    const auto launched = [&](const char* kernel) { return control.calls.launches_of[kernel]; };
    for (int i = 0; i < 6; ++i) stream.frame(16);
    CHECK((launched("attention_mass") + launched("attend_and_measure") > 0) == score.listens);
    // Where its tokens are is known of a frame in any case, by as many bytes.
    CHECK(room_for(stream.memory->plan(), "attention received") <= (score.listens ? heard : heard * 5 / 8));
    // One that compares frames goes lane by lane, and has no lists of all lanes.
    CHECK((room_for(stream.memory->plan(), "record scratch") < scratch) == (score.merit == Merit::kChange));
    stream.ask(3, 1, false);  // what a question pays is evidence
    CHECK(launched("attention_mass") + launched("attend_and_measure") > 0);
  }
}

TEST_CASE("an unknown score is refused with those there are") {
  CHECK_THROWS_WITH_AS(make_policy("edge", {{"score", "repeat"}}),
                       doctest::Contains("both, received, value_norm, tar, decayed, template, newest"), InvalidInput);
}
