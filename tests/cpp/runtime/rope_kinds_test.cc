// Where tokens stand under M-RoPE, against positions written out by hand: Qwen2.5-VL's absolute time, Qwen3-VL's pictures
// between lines of text. Everything is read, in fp32, and compared with attention in double.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "support/played_stream.h"
#include "support/reference_attention.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::SeenToken;
using mosaic::testing::small_config;

struct Position {
  int t, h, w;
};
using Positions = std::vector<Position>;

MemoryConfig config_of(bool follows, bool original) {
  MemoryConfig c = small_config(16 << 20);
  c.exact = CodecId::kFp32;
  c.packed = CodecId::kFp32;
  c.prefix_tokens = 5;
  c.branch_tokens = 40;
  c.model.context = 4096;
  c.positions = original ? mosaic::Positions::kOriginal : mosaic::Positions::kContiguous;
  c.model.rope.sections[0] = 4;
  c.model.rope.sections[1] = c.model.rope.sections[2] = 2;
  c.model.rope.sections_interleaved = follows;
  c.model.rope.grid_follows_time = follows;
  c.model.frame_tokens = 16;
  return c;
}

// Plays blocks and keeps all keys and values, so that any block can be judged with positions the test names.
struct Judge {
  PlayedStream stream;
  std::vector<std::vector<float>> k, v;  // of each block, [layers, T, row]
  std::vector<int> tokens;

  explicit Judge(const MemoryConfig& config, const char* policy = "full") : stream(config, policy) {}

  // Largest difference of the block just played to attention over the blocks `seen` and itself, all at `positions`.
  double block(std::vector<int> seen, const Positions& positions) {
    const ModelShape& m = stream.config.model;
    k.push_back(stream.k), v.push_back(stream.v), tokens.push_back(stream.block_tokens);
    seen.push_back(static_cast<int>(k.size()) - 1);
    const size_t row = stream.row(), q_row = stream.q_row();
    double worst = 0;
    for (int l = 0; l < m.layers; ++l) {
      std::vector<SeenToken> all;
      for (const int b : seen) {
        const auto at = static_cast<size_t>(b);
        for (int i = 0; i < tokens[at]; ++i) {
          const size_t from = static_cast<size_t>(l * tokens[at] + i) * row;
          const Position& p = positions[all.size()];
          all.push_back({&k[at][from], &v[at][from], {p.t, p.h, p.w}});
        }
      }
      REQUIRE(all.size() == positions.size());
      const auto keys = mosaic::testing::rotated_keys(m.rope, m.kv_heads, m.head_dim, all);
      const size_t before = all.size() - static_cast<size_t>(stream.block_tokens);
      std::vector<double> truth(q_row);
      for (int i = 0; i < stream.block_tokens; ++i) {
        const size_t here = static_cast<size_t>(l * stream.block_tokens + i) * q_row;
        const size_t last = before + static_cast<size_t>(i);
        mosaic::testing::attend_in_double(m.rope, m.q_heads, m.kv_heads, m.head_dim, 0.25, &stream.q[here],
                                          all[last].at, all.data(), keys.data(), last + 1, truth.data());
        for (size_t e = 0; e < q_row; ++e)
          worst = std::max(worst, std::abs(truth[e] - static_cast<double>(stream.out[here + e])));
      }
    }
    return worst;
  }
  void run(int n) {
    stream.imagine(n);
    stream.memory->begin_text(n);
    finish();
  }
  void finish() {
    stream.attend_layers(stream.config.model.layers);
    stream.memory->commit();
  }
  void frame(int n, int grid_w, int lead, int trail, int t_position) {
    stream.imagine(n);
    stream.embedding = stream.rooms[0];
    stream.memory->begin_frame({stream.now_ms, stream.embedding.data(), n, grid_w, lead, trail, t_position});
    stream.now_ms += 500;
    finish();
  }
};

void text(Positions* to, int first, int n) {
  for (int i = 0; i < n; ++i) to->push_back({first + i, first + i, first + i});
}
void picture(Positions* to, int t, int corner, int rows, int columns) {
  for (int y = 0; y < rows; ++y)
    for (int x = 0; x < columns; ++x) to->push_back({t, corner + y, corner + x});
}

TEST_CASE("frames at absolute time stand where Qwen2.5-VL puts them, and text behind the furthest axis") {
  for (const char* policy : {"full", "mosaic"}) {
    Judge judge(config_of(false, true), policy);
    Positions at;
    text(&at, 0, 5);
    judge.run(5);
    CHECK(judge.block({}, at) < 1e-5);
    std::vector<int> seen = {0};
    for (const int t_position : {0, 2, 2, 5, 11, 12, 17, 18}) {  // 3 x 5 pictures
      judge.frame(15, 5, 0, 0, t_position);
      picture(&at, 5 + t_position, 5, 3, 5);
      CHECK(judge.block(seen, at) < 1e-5);
      seen.push_back(static_cast<int>(seen.size()));
    }
    judge.stream.memory->open_question();
    judge.run(3);
    text(&at, 5 + 18 + 1, 3);
    CHECK(judge.block(seen, at) < 1e-5);
    judge.stream.memory->close_question(false);
  }
}

TEST_CASE("contiguous positions close the gaps of absolute time") {
  Judge judge(config_of(false, false));
  judge.run(5);
  Positions at;
  text(&at, 0, 5);
  CHECK(judge.block({}, at) < 1e-5);
  std::vector<int> seen = {0};
  for (int i = 0; i < 7; ++i) {
    judge.frame(12, 4, 0, 0, 9 * i);
    picture(&at, 5 + i, 5, 3, 4);
    CHECK(judge.block(seen, at) < 1e-5);
    seen.push_back(i + 1);
  }
  judge.stream.memory->open_question();
  judge.run(4);
  text(&at, 12, 4);
  CHECK(judge.block(seen, at) < 1e-5);
}

TEST_CASE("a picture between lines of text moves what follows by its longer side, as Qwen3-VL has it") {
  for (const bool original : {true, false})
    for (const char* policy : {"full", "mosaic", "edge"}) {
      INFO("original " << original << ", policy " << std::string(policy));
      MemoryConfig config = config_of(true, original);
      config.window_frames = 4;
      config.retrieve_tokens = 1 << 12;
      // Of "edge" what is in the window and the first frame is exact, and no more is played.
      const int frames = std::string(policy) == "edge" ? 4 : 9;
      Judge judge(config, policy);
      judge.run(2);
      Positions at;
      text(&at, 0, 2);
      CHECK(judge.block({}, at) < 1e-5);
      std::vector<int> seen = {0};
      int next = 2;
      for (int i = 0; i < frames; ++i) {
        const int rows = i % 3 == 2 ? 1 : 2, columns = i % 3 == 1 ? 2 : 5, lead = i % 4, trail = i % 2;
        judge.frame(lead + rows * columns + trail, columns, lead, trail, -1);
        text(&at, next, lead);
        picture(&at, next + lead, next + lead, rows, columns);
        next += lead + std::max(rows, columns);
        text(&at, next, trail);
        next += trail;
        CHECK(judge.block(seen, at) < 1e-5);
        seen.push_back(i + 1);
      }
      judge.stream.memory->open_question();
      judge.run(3);
      text(&at, next, 3);
      CHECK(judge.block(seen, at) < 1e-5);
      seen.push_back(frames + 1);
      judge.run(1);
      text(&at, next + 3, 1);
      CHECK(judge.block(seen, at) < 1e-5);
      judge.stream.memory->check_invariants();
    }
}

TEST_CASE("what is read of a stream of pictures and text closes up behind the prefix") {
  Judge judge(config_of(true, false));
  judge.run(5);
  Positions at;
  text(&at, 0, 5);
  CHECK(judge.block({}, at) < 1e-5);
  int next = 5;
  for (int i = 0; i < 3; ++i) {  // half a second each
    judge.frame(10, 4, 1, 1, -1);
    Positions now = at;
    text(&now, next, 1);
    picture(&now, next + 1, next + 1, 2, 4);
    text(&now, next + 5, 1);
    std::vector<int> seen;
    for (int b = 0; b <= i; ++b) seen.push_back(b);
    CHECK(judge.block(seen, now) < 1e-5);
    at = now;
    next += 6;
  }
  judge.stream.memory->open_question(1000);  // the prefix and the last frame
  judge.run(2);
  Positions read;
  text(&read, 0, 6);
  picture(&read, 6, 6, 2, 4);
  text(&read, 10, 3);
  CHECK(judge.block({0, 3}, read) < 1e-5);
}

TEST_CASE("moments that fall, and text that leaves no picture, are refused and change nothing") {
  Judge judge(config_of(false, true));
  judge.run(5);
  judge.frame(8, 4, 0, 0, 7);
  const auto begin = [&](int lead, int trail, int t_position) {
    judge.stream.memory->begin_frame(
        {judge.stream.now_ms, judge.stream.embedding.data(), 8, 4, lead, trail, t_position});
  };
  CHECK_THROWS_AS(begin(0, 0, 6), InvalidInput);
  CHECK_THROWS_AS(begin(0, 0, 2'000'000'000), InvalidInput);
  CHECK_THROWS_AS(begin(0, 0, INT32_MAX), InvalidInput);
  CHECK_THROWS_AS(begin(3, 5, 8), InvalidInput);
  CHECK_THROWS_AS(begin(-1, 0, 8), InvalidInput);
  CHECK(judge.stream.memory->stats().frames == 1);
  judge.frame(8, 4, 0, 0, 7);
  CHECK(judge.stream.memory->stats().frames == 2);
}

TEST_CASE("policies that look at rows and columns take frames that are partly text") {
  for (const std::string& policy : policy_names())
    for (const bool multi : {false, true}) {
      INFO(policy << ", M-RoPE " << multi);
      if (make_policy(policy, {})->needs().share.refuses) continue;  // 150 frames are more than this cap holds
      MemoryConfig config = config_of(true, false);
      config.cap_bytes = 1 << 20;
      if (!multi) config.model.rope = small_config().model.rope;
      Judge judge(config, policy.c_str());
      judge.run(5);
      for (int i = 0; i < 150; ++i) {
        const int lead = i % 5, trail = i % 3;
        if (i % 7 == 3) judge.stream.now_ms -= 500;  // two frames at one time
        judge.frame(lead + 8 + trail, 4, lead, trail, -1);
        judge.stream.memory->check_invariants();
        if (i % 10 == 9) CHECK(std::isfinite(judge.stream.ask(3, 1, false)));
      }
      CHECK(judge.stream.finite());
    }
}

}  // namespace
