// Tokens that leave the window into the logs of all lanes by one launch: each is where the books say, with the numbers it
// came with, though records are moved out of its way by that same launch.
#include <doctest/doctest.h>

#include <map>

#include "support/played_stream.h"
#include "support/shim_backend.h"

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

namespace {

// Tokens of a lane's log that are not what came at their position, in bits; their number is added to *kept.
int changed_records(const PlayedStream& stream, const testing::ShimControl& control, int lane, int* kept) {
  const TokenLog& log = stream.memory->records()->log();
  const PageShape shape = log.shape().page;
  const auto d = static_cast<size_t>(shape.row());
  const size_t bytes = kPageTokens * d * sizeof(float);
  auto *const k = static_cast<float*>(control.device->allocate(bytes)), *const v = static_cast<float*>(
                                                                            control.device->allocate(bytes));
  std::map<int, const PlayedStream::Token*> came;
  for (const PlayedStream::Token& token : stream.video) came[token.position] = &token;
  const int heads = stream.config.model.kv_heads;
  const size_t at = static_cast<size_t>(lane / heads) * stream.row() + static_cast<size_t>(lane % heads) * d;
  int changed = 0;
  for (int page = 0; page < log.shape().pages; ++page) {
    control.ops->decode(log.codec(), shape, log.data(lane, page), 0, kPageTokens, k, v, d);
    control.ops->wait();
    for (size_t i = 0; i < kPageTokens; ++i) {
      if ((log.rows(lane, page) >> i & 1) == 0) continue;
      ++*kept;
      const auto slot = static_cast<size_t>(page * kPageTokens) + i;
      const PlayedStream::Token& token = *came.at(log.positions(lane)[slot]);
      for (size_t c = 0; c < d; ++c) {
        if (k[i * d + c] == token.k[at + c] && v[i * d + c] == token.v[at + c]) continue;
        ++changed;
        break;
      }
    }
  }
  control.device->release(k, bytes), control.device->release(v, bytes);
  return changed;
}

}  // namespace

TEST_CASE("what leaves the window into the logs of all lanes at once has the numbers it came with") {
  MemoryConfig config = small_config(300 << 10);
  config.packed = config.exact;
  config.window_codec = CodecId::kFp16;
  config.window_frames = 3;
  testing::ShimControl control;
  PlayedStream stream(config, make_policy("edge", {{"listen", 4}}), testing::make_shim(3, &control));
  for (int i = 0; i < 160; ++i) stream.room = i / 7 % 6, stream.frame(i % 5 == 4 ? 9 : 16);
  stream.memory->check_invariants();
  CHECK(control.calls.launches_of["enter_lanes"] > 100);
  REQUIRE(stream.memory->stats().tokens.dropped > 0);
  int kept = 0;
  for (int lane = 0; lane < stream.memory->records()->log().shape().lanes; ++lane)
    CHECK(changed_records(stream, control, lane, &kept) == 0);
  CHECK(kept > 300);
}
