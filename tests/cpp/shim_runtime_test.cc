// The store, the policies and the runtime over the CUDA backend's kernels, unchanged: on the shim, whose kernels have
// memory that the host cannot touch, reach nothing of the host's but what the device gave out, and run when waited for.
#include <doctest/doctest.h>

#include "played_stream.h"
#include "shim_backend.h"

using namespace mosaic;
using mosaic::testing::PlayedStream;

namespace {

PlayedStream on_shim(const MemoryConfig& config, const std::string& policy) {
  PlayedStream stream(config, policy);
  stream.memory = std::make_unique<KvMemory>(config, make_policy(policy, {}), test::make_shim(3), nullptr);
  return stream;
}

}  // namespace

TEST_CASE("a memory on the CUDA kernels that holds and reads everything answers as full attention does") {
  for (const bool multi : {false, true}) {
    for (const char* policy : {"full", "mosaic"}) {
      MemoryConfig config = mosaic::testing::small_config(16 << 20);
      config.exact = config.packed = CodecId::kFp16;
      config.retrieve_tokens = 4000, config.window_frames = 4, config.prefix_tokens = 7, config.branch_tokens = 64;
      config.clusters = 512, config.max_cluster_tokens = 1024, config.max_position = 4096;
      if (multi) config.model.rope.sections[0] = 2, config.model.rope.sections[1] = config.model.rope.sections[2] = 3;
      CAPTURE(policy);
      CAPTURE(multi);
      PlayedStream stream = on_shim(config, policy);
      CHECK(stream.prefix_block(5, true) < 3e-5);
      for (const int tokens : {16, 1, 13, 16, 7, 16, 16, 5, 16, 16, 16, 16}) {
        CHECK(stream.frame(tokens, true) < 3e-5);
        stream.memory->check_invariants();
      }
      REQUIRE(stream.memory->stats().tokens.summarised == 0);
      CHECK(stream.ask(3, 2, true, true) < 3e-5);
      CHECK(stream.memory->stats().unread_pages == 0);
    }
  }
}

TEST_CASE("policies run on the CUDA kernels under a small cap, and the same stream gives the same bits") {
  for (const char* policy : {"mosaic", "infinipot-v", "mukv"}) {
    MemoryConfig config = mosaic::testing::small_config();
    config.cap_bytes = 450 << 10;
    CAPTURE(policy);
    std::vector<float> answers[2];
    for (auto& answer : answers) {
      PlayedStream stream = on_shim(config, policy);
      for (int i = 0; i < 20; ++i) {
        stream.frame(16);
        if (i % 10 == 9) stream.memory->check_invariants();
      }
      stream.ask(3, 1, false);
      REQUIRE(stream.memory->stats().tokens.quantised > 0);  // the cap was felt
      CHECK(stream.finite());
      answer = stream.out;
    }
    CHECK(answers[0] == answers[1]);
  }
}
