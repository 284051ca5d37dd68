// mosaic, unit="tokens": everything that came can be found by its clusters, and those are read whole.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "memory/faulty_io.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

MemoryConfig on_disk(uint64_t cap, const std::string& folder) {
  MemoryConfig c = small_config(cap);
  c.window_frames = 1;
  c.branch_tokens = 16;
  c.model.context = 1 << 15;
  c.disk_bytes = 64 << 20;
  c.spill_dir = folder;
  return c;
}

// Two kinds of tokens that were not there before, each token somewhat of its own.
void new_kinds(PlayedStream* stream) {
  const size_t numbers = stream->prototype_k[0].size();
  for (auto* const prototypes : {&stream->prototype_k, &stream->prototype_v}) {
    const std::vector<float> kinds[2] = {stream->normals(numbers), stream->normals(numbers)};
    for (size_t p = 0; p < prototypes->size(); ++p) {
      (*prototypes)[p] = kinds[p % 2];
      for (float& x : (*prototypes)[p]) x += 0.1f * stream->normal();
    }
  }
}

}  // namespace

TEST_CASE(
    "clusters on disk lose nothing: where questions and frames read all of them they answer as full attention does") {
  mosaic::testing::TemporaryDirectory directory;
  for (const bool multi : {false, true})
    for (const bool original : {false, true})
      for (const int tokens : {16, 13}) {  // stretches that frames fill, and that they do not
        MemoryConfig config = on_disk(800 << 10, directory.path);
        config.exact = CodecId::kFp32, config.packed = CodecId::kFp32;
        config.positions = original ? Positions::kOriginal : Positions::kContiguous;
        config.model.context = original ? 2048 : 0;
        if (multi) config.model.rope.sections[0] = 2, config.model.rope.sections[1] = config.model.rope.sections[2] = 3;
        config.prefix_tokens = 5;
        config.retrieve_tokens = 2000;
        config.index_share = 0.7;
        PlayedStream stream(config, "mosaic", {{"unit", "tokens"}, {"recall", 1}, {"frames_recall", 1}}, 3);
        CAPTURE(multi);
        CAPTURE(original);
        CAPTURE(tokens);
        stream.prefix_block(5, true);
        for (int i = 0; i < 48; ++i) {
          CHECK(stream.frame(tokens, i % 8 == 7) < 3e-5);
          stream.memory->check_invariants();
        }
        const MemoryStats s = stream.memory->stats();
        CHECK(s.tokens.spilled > 100);
        CHECK(s.tokens.dropped == 0);
        CHECK(stream.ask(3, 2, true, true) < 3e-5);
        CHECK(stream.ask(2, 1, false, true) < 3e-5);
        CHECK(stream.ask(2, 0, false, true, 8000) < 3e-5);
        CHECK(stream.memory->stats().counters.fetched_pages > 0);
      }
}

TEST_CASE("a question that may read less than a cluster reads one") {
  mosaic::testing::TemporaryDirectory directory;
  MemoryConfig config = on_disk(360 << 10, directory.path);
  config.retrieve_tokens = 1;
  PlayedStream stream(config, "mosaic", {{"unit", "tokens"}, {"frames_recall", 0}}, 3);
  for (int i = 0; i < 110; ++i) stream.frame(16);
  REQUIRE(stream.memory->stats().tokens.spilled > 0);
  REQUIRE(stream.memory->stats().counters.fetched_pages == 0);
  stream.ask(3, 0, false);
  const MemoryStats s = stream.memory->stats();
  CHECK(s.counters.fetched_pages == stream.memory->plan().archive.lanes);
  stream.memory->check_invariants();
}

TEST_CASE("a fifth of what is on disk, chosen without looking through it, brings an answer nearer to full attention") {
  mosaic::testing::TemporaryDirectory directory;
  double error[2];
  for (const int recalls : {0, 1}) {
    MemoryConfig config = on_disk(600 << 10, directory.path);
    config.model.scale = 1;                        // some kinds take it all
    config.model.rope.layout = RopeLayout::kNone;  // a mean says what its tokens are, wherever they stand
    config.model.rope.rotary_dim = 0;
    config.packed = CodecId::kFp16;
    config.index_share = 0.3;
    PlayedStream stream(config, "mosaic", {{"unit", "tokens"}, {"recall", 0.2 * recalls}, {"frames_recall", 0}}, 3);
    for (int i = 0; i < 60; ++i) {
      if (i % 2 == 0) new_kinds(&stream);
      stream.frame(16);
    }
    error[recalls] = 0;
    constexpr int kQuestions = 6;
    for (int i = 0; i < kQuestions; ++i) error[recalls] += stream.ask(5, 0, false, true);
    const MemoryStats s = stream.memory->stats();
    CHECK(s.tokens.dropped == 0);
    const int64_t pages = int64_t{60} * stream.memory->plan().archive.lanes;  // of all tokens
    CHECK(s.counters.fetched_pages * 2 < pages * kQuestions);
    CHECK((s.counters.fetched_pages > 0) == (recalls > 0));
    stream.memory->check_invariants();
  }
  CHECK(error[1] < 0.85 * error[0]);
}

TEST_CASE("what a question asks since is held of every token of a cluster") {
  mosaic::testing::TemporaryDirectory directory;
  MemoryConfig config = on_disk(500 << 10, directory.path);
  config.index_share = 0.3;
  PlayedStream stream(config, "mosaic", {{"unit", "tokens"}, {"recall", 1}, {"frames_recall", 0}}, 3);
  for (int i = 0; i < 320; ++i) stream.frame(4);
  CHECK(stream.memory->stats().tokens.spilled > 1000);
  for (const int32_t since : {120 * 500, 121 * 500, 222 * 500, 223 * 500}) CHECK(stream.moments_since(since, 2) > 10);
  stream.memory->check_invariants();
}

TEST_CASE("clusters on a disk that fails are lost page by page, counted, and the session goes on") {
  mosaic::testing::TemporaryDirectory directory;
  MemoryConfig config = on_disk(320 << 10, directory.path);
  config.disk_bytes = 4 << 20;
  FaultyIo io(7, SpillFile::stride_of(data_bytes(CodecId::kK5V3, {1, 16})));
  PlayedStream stream(config, "mosaic", {{"unit", "tokens"}, {"recall", 0.5}}, 3, &io);
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

TEST_CASE("without a disk it keeps and reads what edge does") {
  PlayedStream edge(small_config(150 << 10), "edge", {}, 4);
  PlayedStream mosaic(small_config(150 << 10), "mosaic", {{"unit", "tokens"}}, 4);
  for (int i = 0; i < 60; ++i) {
    for (PlayedStream* stream : {&edge, &mosaic}) stream->frame(11);
    CHECK(edge.out == mosaic.out);
  }
  CHECK(edge.memory->stats().tokens.dropped > 0);
  CHECK(edge.memory->stats().tokens.dropped == mosaic.memory->stats().tokens.dropped);
}
