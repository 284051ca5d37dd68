// With a cap that holds everything and every cluster selected, the memory is full attention.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "support/memory_fakes.h"
#include "support/played_stream.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

struct Case {
  std::string name;
  MemoryConfig config;
  int frame = 16;
};

MemoryConfig everything(CodecId exact) {
  MemoryConfig c = small_config(16 << 20);
  c.exact = exact;
  c.packed = exact;
  c.retrieve_tokens = 1 << 14;
  c.window_frames = 4;
  c.prefix_tokens = 7;
  c.branch_tokens = 64;
  c.clusters = 512;
  c.max_cluster_tokens = 1024;
  c.model.context = 4096;
  c.positions = Positions::kContiguous;
  return c;
}

// Everything a session does, judged block by block.
double play(const Case& test, const char* policy, int video_window, unsigned seed) {
  MemoryConfig config = test.config;
  config.model.frame_tokens = test.frame;
  config.model.video_window = video_window;
  PlayedStream stream(config, policy, {}, seed);
  const auto frames = [&](int n) {
    double worst = 0;
    for (int i = 0; i < n; ++i) {
      stream.room = (i / 3) % 4;
      const int tokens = i % 4 == 3 ? std::max(1, test.frame - 1) : test.frame;
      worst = std::max(worst, stream.frame(tokens, true));
      stream.memory->check_invariants();
    }
    return worst;
  };
  double worst = stream.prefix_block(5, true);
  worst = std::max(worst, stream.prefix_block(2, true));
  worst = std::max(worst, stream.ask(3, 1, false, true));
  worst = std::max(worst, frames(9));
  worst = std::max(worst, stream.ask(5, 3, true, true));
  worst = std::max(worst, frames(2));
  worst = std::max(worst, stream.ask(17, 2, false, true));
  worst = std::max(worst, stream.ask(2, 1, true, true, 1500));
  worst = std::max(worst, stream.ask(1, 1, false, true));
  stream.memory->check_invariants();
  CHECK(stream.memory->stats().unread_pages == 0);
  CHECK(stream.memory->stats().tokens.collapsed == 0);
  return worst;
}

void judge(const Case& test, double tolerance) {
  for (const char* policy : {"full", "mosaic"})
    for (const int window : {0, 4}) {
      INFO(test.name << ", policy " << std::string(policy) << ", video window " << window);
      CHECK(play(test, policy, window, 3) < tolerance);
    }
}

TEST_CASE("a memory that holds and reads everything answers as full attention does") {
  for (const CodecId codec : {CodecId::kFp32, CodecId::kFp16}) {
    // Stored tokens are rounded to half in the reference too, so fp16 differs by the kernels' arithmetic alone.
    const double tolerance = codec == CodecId::kFp32 ? 1e-5 : 2e-5;
    const std::string name = codec_name(codec);
    judge({name, everything(codec)}, tolerance);
    Case original{name + ", original positions", everything(codec)};
    original.config.positions = Positions::kOriginal;
    judge(original, tolerance);
    Case partial{name + ", partial rotary", everything(codec)};
    partial.config.model.rope.rotary_dim = 8;
    judge(partial, tolerance);
    Case interleaved{name + ", interleaved pairs", everything(codec)};
    interleaved.config.model.rope.layout = RopeLayout::kInterleaved;
    judge(interleaved, tolerance);
    Case none{name + ", no rotation", everything(codec)};
    none.config.model.rope.layout = RopeLayout::kNone;
    judge(none, tolerance);
    Case wide{name + ", head size 80, 6 heads over 1", everything(codec)};
    wide.config.model.head_dim = wide.config.model.rope.head_dim = wide.config.model.rope.rotary_dim = 80;
    wide.config.model.q_heads = 6;
    wide.config.model.kv_heads = 1;
    judge(wide, tolerance);
    for (const bool interleave : {false, true}) {
      Case multi{name + (interleave ? ", M-RoPE interleaved" : ", M-RoPE chunked"), everything(codec)};
      multi.config.model.rope.sections[0] = 2;
      multi.config.model.rope.sections[1] = multi.config.model.rope.sections[2] = 3;
      multi.config.model.rope.sections_interleaved = interleave;
      if (interleave)
        multi.config.model.rope.sections[0] = 4,
        multi.config.model.rope.sections[1] = multi.config.model.rope.sections[2] = 2;
      judge(multi, tolerance);
      multi.name += ", original positions";
      multi.config.positions = Positions::kOriginal;
      judge(multi, tolerance);
    }
  }
}

TEST_CASE("full attention holds for frames of odd sizes") {
  for (const int tokens : {1, 5, 13, 17, 49}) {
    Case odd{"frames of " + std::to_string(tokens), everything(CodecId::kFp16), tokens};
    judge(odd, 2e-5);
  }
  Case large{"frames of 196", everything(CodecId::kFp16), 196};
  large.config.cap_bytes = 32 << 20;
  large.config.model.layers = 1;
  INFO("196");
  CHECK(play(large, "mosaic", 4, 5) < 2e-5);
}

// Clusters that merged, split and moved are still full attention as long as every token is a member somewhere.
TEST_CASE("full attention holds over merged clusters, in any order of tokens, with a time limit too") {
  for (const bool multi : {false, true}) {
    MemoryConfig config = everything(CodecId::kFp16);
    config.clusters = 10;
    config.scenes = 3;
    if (multi) config.model.rope.sections[0] = 2, config.model.rope.sections[1] = config.model.rope.sections[2] = 3;
    PlayedStream stream(config, "mosaic", {}, 4);
    stream.noise = 0.5f;
    for (int i = 0; i < 40; ++i) {
      stream.room = (i / 4) % 5;
      stream.frame(1 + stream.below(16));
      stream.memory->check_invariants();
    }
    const MemoryStats stats = stream.memory->stats();
    CHECK(stats.counters.merges > 20);
    CHECK(stats.tokens.collapsed == 0);
    INFO("M-RoPE " << multi);
    CHECK(stream.ask(3, 2, true, true) < 2e-5);
    if (!multi)  // under M-RoPE the largest row or column of what is read moves the text behind it
      for (const int since : {1, 3000, 7777, 15000}) CHECK(stream.ask(2, 1, false, true, since) < 2e-5);
    CHECK(stream.memory->stats().unread_pages == 0);
  }
}

TEST_CASE("full attention holds when most pages are read back from disk") {
  mosaic::testing::TemporaryDirectory directory;
  MemoryConfig config = everything(CodecId::kFp16);
  config.retrieve_tokens = 4000;  // pages on disk are not packed: many hold a token or two
  config.clusters = 40;
  config.disk_bytes = 8 << 20;
  config.spill_dir = directory.path;
  config.cap_bytes = mosaic::testing::least_cap(config, "mosaic") + (100 << 10);
  for (const bool adaptive : {true, false}) {
    config.prefetch = adaptive;
    const PolicySettings published = {{"tau", "fixed"}, {"tau_max", 0.06}, {"tau_min", 0.03}};
    PlayedStream stream(config, "mosaic", adaptive ? PolicySettings{} : published, 4);
    stream.noise = 0.2f;
    for (int i = 0; i < 70; ++i) {
      stream.room = (i / 4) % 5;
      stream.frame(16);
      stream.memory->check_invariants();
      if (i % 20 == 19) CHECK(stream.ask(2, 1, false, true) < 2e-5);
    }
    CHECK(stream.ask(3, 3, true, true) < 2e-5);
    CHECK(stream.ask(3, 3, true, true, 5000) < 2e-5);
    stream.memory->check_invariants();
    const MemoryStats stats = stream.memory->stats();
    INFO("collapsed clusters " << stats.counters.collapsed_clusters << ", merges " << stats.counters.merges
                               << ", splits " << stats.counters.splits);
    CHECK(stats.tokens.spilled > 1000);
    CHECK(stats.tokens.collapsed == 0);
    if (!adaptive) CHECK(stats.counters.deferred_splits > 0);
    CHECK(stats.counters.fetched_pages > 0);
    CHECK(stats.unread_pages == 0);
  }
}

}  // namespace
