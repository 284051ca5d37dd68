// Tokens that leave the window into the logs of all lanes by one launch: each is where the books say, with the numbers it
// came with, though records are moved out of its way by that same launch.
#include <doctest/doctest.h>

#include <bit>

#include "support/came_with.h"
#include "support/rounds.h"

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

namespace {

// Tokens of a lane's log that are not what came at their position, in bits; their number is added to *kept.
int changed_records(const PlayedStream& stream, const testing::ShimControl& control, int lane, int* kept) {
  const TokenLog& log = stream.memory->records()->log();
  const testing::CameWith came(stream, control, lane);
  int changed = 0;
  for (int page = 0; page < log.shape().pages; ++page) {
    const uint16_t rows = log.rows(lane, page);
    *kept += std::popcount(rows);
    const int32_t* const positions = log.positions(lane) + page * kPageTokens;
    changed += came.changed(log.codec(), log.shape().page, log.data(lane, page), kPageTokens, rows,
                            [&](int i) { return positions[i]; });
  }
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
  const int frames = testing::pressed_rounds(160);
  for (int i = 0; i < frames; ++i) stream.room = i / 7 % 6, stream.frame(i % 5 == 4 ? 9 : 16);
  stream.memory->check_invariants();
  CHECK(control.calls.launches_of["enter_lanes"] > frames / 2);
  REQUIRE(stream.memory->stats().tokens.dropped > 0);
  int kept = 0;
  for (int lane = 0; lane < stream.memory->records()->log().shape().lanes; ++lane)
    CHECK(changed_records(stream, control, lane, &kept) == 0);
  CHECK(kept > 300);
}
