// edge: what it keeps is what its rule says, judged in float64 on what the heads really attended.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "memory/faulty_io.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"
#include "support/worth_oracle.h"

namespace {

using namespace mosaic;
using mosaic::testing::kept;
using mosaic::testing::Lane;
using mosaic::testing::Oracle;
using mosaic::testing::plain_config;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

TEST_CASE("most_tokens bounds what a head keeps under any cap, and nothing else of the plan") {
  for (const int most : {16, 40, 500}) {
    MemoryConfig config = small_config(8 << 20);
    PlayedStream bounded(config, "edge", {{"most_tokens", most}}), free(config, "edge");
    CHECK(bounded.memory->records()->log().capacity() == (most + 15) / 16 * 16);
    CHECK(free.memory->records()->log().capacity() > 500);
    CHECK(bounded.memory->plan().total_bytes < free.memory->plan().total_bytes);
    CHECK(bounded.memory->plan().window.codec == free.memory->plan().window.codec);
    for (int i = 0; i < 120; ++i) bounded.frame(6);
    for (int lane = 0; lane < bounded.memory->plan().window.lanes; ++lane)
      CHECK(bounded.memory->records()->log().size(lane) <= bounded.memory->records()->log().capacity());
    bounded.memory->check_invariants();
  }
}

}  // namespace

TEST_CASE("edge whose tokens are all worth the same keeps the newest, in every head") {
  PlayedStream stream(plain_config(300 << 10, CodecId::kFp32), "edge", {{"score", "newest"}}, 5);
  for (int i = 0; i < 60; ++i) {
    stream.frame(9 + i % 8);
    if (i < 50) continue;
    for (int lane = 0; lane < 6; ++lane) {
      const std::set<int> now = kept(*stream.memory, lane);
      REQUIRE(now.size() > 32);
      CHECK(*now.begin() > 0);
      CHECK(*now.rbegin() - *now.begin() + 1 == static_cast<int>(now.size()));
      CHECK(*now.rbegin() == stream.frame_starts[static_cast<size_t>(i - 1)] - 1);  // two frames are in the window
    }
  }
}

TEST_CASE("edge gives up the tokens that received least, weighed by their values, head by head") {
  for (const auto& [listen, key_power] : {std::pair{3, 0.0}, {6, 0.5}, {6, 1.0}}) {
    PlayedStream stream(plain_config(150 << 10, CodecId::kFp32), "edge",
                        {{"listen", listen}, {"likeness", 0}, {"key_power", key_power}}, 5);
    stream.noise = 0.6f;
    Oracle oracle(stream);
    int given_up = 0;
    for (int i = 0; i < 60; ++i) {
      const int first = static_cast<int>(stream.video.size()), tokens = 9 + i % 8;
      stream.frame(tokens);
      oracle.hear(first, tokens, listen, key_power);
      stream.memory->check_invariants();
      given_up += oracle.check_given_up([&](const Lane& lane, int position, double received, int, int) {
        return received * oracle.norm(lane, position);
      });
    }
    CHECK(given_up > 1000);
    const MemoryStats s = stream.memory->stats();
    CHECK(s.tokens.dropped == given_up);
    CHECK(s.tokens.total() == s.tokens.seen);
  }
}

TEST_CASE("edge that holds everything attends as full attention does, frames and questions alike") {
  for (const CodecId codec : {CodecId::kFp32, CodecId::kFp16}) {
    for (const bool original : {false, true}) {
      MemoryConfig config = small_config(4 << 20);
      config.exact = codec;
      config.packed = codec;
      config.positions = original ? Positions::kOriginal : Positions::kContiguous;
      config.model.context = original ? 2048 : 0;
      config.window_frames = 2;
      config.prefix_tokens = 5;
      PlayedStream stream(config, "edge", {}, 3);
      stream.prefix_block(5, true);
      double worst = 0;
      for (int i = 0; i < 40; ++i) worst = std::max(worst, stream.frame(1 + i * 5 % 16, true));
      worst = std::max(worst, stream.ask(7, 3, false, true));
      worst = std::max(worst, stream.ask(4, 1, false, true, 9000));  // only what was seen since then
      CHECK(worst < (codec == CodecId::kFp32 ? 2e-5 : 2e-3));
      CHECK(stream.memory->stats().tokens.dropped == 0);
      CHECK(stream.memory->stats().question_reads > 0);
      stream.memory->check_invariants();
    }
  }
}

TEST_CASE("a window of a byte a number answers as full attention does, to what its codec leaves") {
  for (const std::string policy : {"edge", "mosaic", "rekv"}) {
    CAPTURE(policy);
    MemoryConfig config = small_config(4 << 20);
    config.window_codec = CodecId::kK8V8;
    config.packed = CodecId::kFp16;
    config.window_frames = 30;  // all there are: only their codec is between the answer and the oracle
    config.prefix_tokens = 5;
    PlayedStream stream(config, policy, {}, 3);
    stream.prefix_block(5, true);
    double worst = 0;
    for (int i = 0; i < 20; ++i) worst = std::max(worst, stream.frame(1 + i * 5 % 16, true));
    worst = std::max(worst, stream.ask(7, 3, false, true));
    CHECK(worst > 1e-4);  // it is not half precision
    CHECK(worst < 0.02);
    const MemoryStats s = stream.memory->stats();
    CHECK(s.tokens.exact == 0);
    CHECK(s.tokens.quantised == s.tokens.seen);
    stream.memory->check_invariants();
  }
}

TEST_CASE("positions of an endless stream stay inside the model's context, and what is near keeps its distance") {
  MemoryConfig config = small_config(600 << 10);
  config.model.context = 700;
  config.window_frames = 2;
  config.branch_tokens = 16;
  PlayedStream stream(config, "edge", {}, 3);
  for (int i = 0; i < 100; ++i) {  // 1,600 tokens
    stream.frame(16);
    CHECK(stream.finite());
  }
  stream.ask(5, 2, false);
  CHECK(stream.finite());
  CHECK(stream.memory->stats().frames == 100);
  stream.memory->check_invariants();
}

TEST_CASE("a codec without records is refused for edge by name") {
  MemoryConfig config = small_config();
  config.packed = CodecId::kInt4;
  CHECK_THROWS_WITH_AS(PlayedStream(config, "edge"), doctest::Contains("packed=int4"), InvalidInput);
}

TEST_CASE("questions in between change nothing of what edge keeps, whatever of the stream a frame sees") {
  for (const int sees : {0, 2, 4})
    for (const int window : {0, 3, 6}) {
      MemoryConfig config = small_config(190 << 10);
      config.model.video_window = sees;
      config.window_frames = std::max(window, sees - 1);
      config.branch_tokens = 16;
      PlayedStream quiet(config, "edge", {}, 7), asked(config, "edge", {}, 7);
      for (int i = 0; i < 45; ++i) {
        quiet.frame(9 + i % 8);
        asked.frame(9 + i % 8);
        CHECK(quiet.out == asked.out);
        const std::mt19937 before = asked.random;
        if (i % 3 == 0) asked.ask(3, 1, false);
        asked.random = before;
      }
      INFO("frames see " << sees << ", window " << window);
      CHECK(quiet.memory->stats().tokens.dropped > 0);
      for (int lane = 0; lane < quiet.memory->plan().window.lanes; ++lane)
        CHECK(kept(*quiet.memory, lane) == kept(*asked.memory, lane));
      quiet.memory->check_invariants();
    }
}

TEST_CASE("values as large as a half holds are ranked, kept and read") {
  MemoryConfig config = small_config(220 << 10);
  config.branch_tokens = 16;
  PlayedStream stream(config, "edge", {}, 3);
  for (auto& v : stream.prototype_v)
    for (float& x : v) x *= 15000;
  for (int i = 0; i < 60; ++i) {
    stream.frame(16);
    CHECK(stream.finite());
  }
  stream.ask(3, 1, false);
  CHECK(stream.finite());
  CHECK(stream.memory->stats().tokens.dropped > 0);
  stream.memory->check_invariants();
}

TEST_CASE(
    "edge with a disk that holds everything, of which questions and frames read all, answers as full attention does") {
  mosaic::testing::TemporaryDirectory directory;
  for (const bool multi : {false, true})
    for (const bool original : {false, true})
      for (const uint64_t cap : {340 << 10, 700 << 10}) {  // copies of one lane, and of all
        MemoryConfig config = small_config(cap);
        config.exact = CodecId::kFp32;
        config.packed = CodecId::kFp32;
        config.positions = original ? Positions::kOriginal : Positions::kContiguous;
        config.model.context = original ? 2048 : 0;
        if (multi) config.model.rope.sections[0] = 2, config.model.rope.sections[1] = config.model.rope.sections[2] = 3;
        config.window_frames = 1;
        config.prefix_tokens = 5;
        config.branch_tokens = 16;
        config.retrieve_tokens = 2000;
        config.index_share = 0.7;
        config.disk_bytes = 16 << 20;
        config.spill_dir = directory.path;
        PlayedStream stream(config, "edge", {{"recall", 1}, {"frames_recall", 1}}, 3);
        CAPTURE(multi);
        CAPTURE(original);
        CAPTURE(cap);
        stream.prefix_block(5, true);
        for (int i = 0; i < 32; ++i) {
          CHECK(stream.frame(16, i % 8 == 7) < 3e-5);
          stream.memory->check_invariants();
        }
        const MemoryStats s = stream.memory->stats();
        CHECK(s.tokens.spilled > 100);
        CHECK(s.tokens.dropped == 0);
        REQUIRE(s.tiers == 2);
        CHECK(s.tier[1].used_bytes > 0);
        // What was given up out of the page that is not whole yet is not read: frames of 16 fill whole pages.
        CHECK(stream.ask(3, 2, true, true) < 3e-5);
        CHECK(stream.ask(2, 1, false, true) < 3e-5);
        CHECK(stream.memory->stats().question_reads > s.frame_reads);
        CHECK(stream.ask(2, 0, false, true, 8000) < 3e-5);
        stream.frame(16);
        CHECK(stream.ask(4, 2, false, true) < 3e-5);
        stream.memory->check_invariants();
      }
}

TEST_CASE("a twentieth of what is on disk brings an answer nearer to full attention, however many pages there are") {
  mosaic::testing::TemporaryDirectory directory;
  for (const int frames : {60, 400}) {  // 400 pages of a lane: more than are looked through
    if (frames > 60 && mosaic::testing::rounds(8) < 8) continue;
    double error[2];
    for (const int recalls : {0, 1}) {
      MemoryConfig config = small_config(frames == 60 ? 600 << 10 : 1200 << 10);
      config.model.scale = 2;  // a few tokens take it all
      config.packed = CodecId::kFp16;
      config.window_frames = 1, config.branch_tokens = 16;
      config.model.context = 1 << 15;
      config.disk_bytes = 64 << 20;
      config.index_share = 0.2;
      config.spill_dir = directory.path;
      PlayedStream stream(config, "edge", {{"recall", 0.05 * recalls}, {"frames_recall", 0}}, 3);
      for (int i = 0; i < frames; ++i) stream.frame(16);
      error[recalls] = 0;
      for (int i = 0; i < 6; ++i) error[recalls] += stream.ask(5, 0, false, true);
      CHECK(stream.memory->stats().tokens.dropped == 0);
      stream.memory->check_invariants();
    }
    CHECK(error[1] < (frames == 60 ? 0.2 : 0.7) * error[0]);
  }
}

TEST_CASE("what is on disk and not read counts with its attention and its mean value") {
  mosaic::testing::TemporaryDirectory directory;
  for (const int frames : {60, 450}) {  // 450 pages of a lane: more than are looked through
    if (frames > 60 && mosaic::testing::rounds(8) < 8) continue;
    double alone[2], several[2], answered[2];
    for (const int rest : {0, 1}) {
      MemoryConfig config = small_config(frames == 60 ? 700 << 10 : 2600 << 10);
      config.exact = CodecId::kFp32, config.packed = CodecId::kFp32;
      config.window_frames = 1, config.branch_tokens = 16;
      config.model.context = 1 << 15;
      config.disk_bytes = 64 << 20;
      config.index_share = 0.3;
      config.spill_dir = directory.path;
      PlayedStream stream(
          config, "edge",
          {{"score", "value_norm"}, {"likeness", false}, {"recall", 0.01}, {"frames_recall", 0}, {"rest", rest != 0}},
          3);
      // Two loud tokens of ten are kept; the others have one value, which is then the mean of what was given up.
      stream.noise = 0;
      for (size_t p = 2; p < 10; ++p) stream.prototype_v[p] = stream.prototype_v[15];
      for (float& x : stream.prototype_v[2]) x *= 0.1f;
      for (size_t p = 3; p < 10; ++p) stream.prototype_v[p] = stream.prototype_v[2];
      for (int i = 0; i < frames; ++i) stream.frame(16);
      const MemoryStats s = stream.memory->stats();
      CHECK(s.tokens.spilled > 8 * frames * 6);
      CHECK(s.tokens.dropped == 0);
      alone[rest] = stream.ask(1, 0, false, true);
      CHECK((stream.memory->evidence().other() > 0) == (rest != 0));
      several[rest] = stream.ask(5, 0, false, true);
      answered[rest] = stream.ask(5, 4, false, true);
      stream.frame(16);  // nothing of a question stays
      stream.memory->check_invariants();
    }
    CAPTURE(frames);
    CHECK(alone[0] > 0.1);
    CHECK(alone[1] < (frames == 60 ? 1e-4 : 0.3 * alone[0]));  // the rest of one query is known exactly
    CHECK(several[1] < 0.5 * several[0]);
    CHECK(answered[1] < 0.7 * answered[0]);
  }
}

TEST_CASE("what a question asks since is held of every token that comes from disk, and recall=0 reads none") {
  mosaic::testing::TemporaryDirectory directory;
  for (const double recall : {1.0, 0.0}) {
    MemoryConfig config = small_config(340 << 10);
    config.window_frames = 1, config.branch_tokens = 16, config.retrieve_tokens = 2000;
    config.index_share = 0.2;
    config.disk_bytes = 16 << 20;
    config.spill_dir = directory.path;
    PlayedStream stream(config, "edge", {{"recall", recall}, {"frames_recall", 0}}, 3);
    for (int i = 0; i < 320; ++i) stream.frame(4);
    CHECK(stream.memory->stats().tokens.spilled > 1000);
    for (const int32_t since : {120 * 500, 121 * 500, 222 * 500, 223 * 500}) CHECK(stream.moments_since(since, 2) > 10);
    CHECK((stream.memory->stats().counters.fetched_pages > 0) == (recall > 0));
    stream.memory->check_invariants();
  }
}

TEST_CASE("edge with a disk that fails answers on, and every token is accounted for") {
  mosaic::testing::TemporaryDirectory directory;
  MemoryConfig config = small_config(200 << 10);
  config.window_frames = 1;
  config.branch_tokens = 16;
  config.disk_bytes = 2 << 20;
  config.spill_dir = directory.path;
  FaultyIo io(7, SpillFile::stride_of(data_bytes(CodecId::kK5V3, {1, 16})));
  PlayedStream stream(config, "edge", {{"recall", 0.5}}, 3, &io);
  for (int i = 0; i < 120; ++i) {
    stream.frame(1 + i * 7 % 16);
    stream.memory->check_invariants();
    if (i % 10 != 9) continue;
    stream.ask(3, 2, i % 20 == 9);
    CHECK(stream.finite());
    stream.memory->check_invariants();
  }
  const MemoryStats s = stream.memory->stats();
  CHECK(s.counters.failed_spills > 0);
  CHECK(s.counters.lost_pages > 0);
  CHECK(s.counters.fetched_pages > 0);
  CHECK(s.tokens.total() == s.tokens.seen);
}
