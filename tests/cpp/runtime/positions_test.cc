// Where the tokens of a block stand, by hand.
#include <doctest/doctest.h>

#include <array>
#include <vector>

#include "runtime/positions.h"

namespace {

using namespace mosaic;

using Triples = std::vector<std::array<int32_t, 3>>;

RopeSpec one_dimension() { return {.head_dim = 16, .rotary_dim = 16}; }
RopeSpec chunks() {
  RopeSpec rope = one_dimension();
  rope.sections[0] = 2, rope.sections[1] = rope.sections[2] = 3;
  return rope;
}
RopeSpec follows() {
  RopeSpec rope = chunks();
  rope.sections_interleaved = rope.grid_follows_time = true;
  return rope;
}

Triples positions_of(const RopeSpec& rope, const FrameLayout& frame, int first) {
  Triples out(static_cast<size_t>(frame.tokens));
  frame_positions(rope, frame, first, out[0].data());
  return out;
}

// A token of text, a picture of two rows of three (the second one token short), a token of text; behind a prefix of 7.
constexpr FrameLayout kFrame{7, 3, 1, 1, 7};

TEST_CASE("without M-RoPE a frame takes a position for each token, text or not") {
  CHECK(frame_steps(one_dimension(), kFrame) == 7);
  const Triples found = positions_of(one_dimension(), kFrame, 20);
  for (int i = 0; i < 7; ++i) CHECK(found[static_cast<size_t>(i)] == std::array<int32_t, 3>{20 + i, 20 + i, 20 + i});
  const TokenPlace place = place_in_frame(one_dimension(), kFrame, 4);  // policies read the grid all the same
  CHECK(place.step == 4);
  CHECK(place.h == 7 + 1);
  CHECK(place.w == 7 + 0);
}

TEST_CASE("where the grid begins with the video, a picture is one step and its rows and columns move nothing") {
  CHECK(frame_steps(chunks(), kFrame) == 3);
  CHECK(positions_of(chunks(), kFrame, 20) ==
        Triples{{20, 20, 20}, {21, 7, 7}, {21, 7, 8}, {21, 7, 9}, {21, 8, 7}, {21, 8, 8}, {22, 22, 22}});
}

TEST_CASE("where the grid follows time, rows and columns begin at the picture and text stands behind the longer side") {
  CHECK(frame_steps(follows(), kFrame) == 5);
  CHECK(positions_of(follows(), kFrame, 20) ==
        Triples{{20, 20, 20}, {21, 21, 21}, {21, 21, 22}, {21, 21, 23}, {21, 22, 21}, {21, 22, 22}, {24, 24, 24}});
  CHECK(frame_steps(follows(), {5, 1, 0, 0, 0}) == 5);   // a column
  CHECK(frame_steps(follows(), {5, 13, 0, 0, 0}) == 5);  // a row that is not full
  CHECK(frame_steps(follows(), {1, 1, 0, 0, 0}) == 1);
}

TEST_CASE("a frame begins behind the last picture where rows and columns overlap, else behind all positions") {
  const Behind behind{40, 31};
  CHECK(first_of_frame(one_dimension(), Positions::kContiguous, behind, 5) == 40);
  CHECK(first_of_frame(chunks(), Positions::kContiguous, behind, 5) == 31);
  CHECK(first_of_frame(follows(), Positions::kContiguous, behind, 5) == 40);
  for (const RopeSpec& rope : {one_dimension(), chunks(), follows()})
    CHECK(first_of_frame(rope, Positions::kOriginal, behind, 5) == 5);
}

TEST_CASE("text begins behind all that is read and the dialogue, and at original positions behind the stream too") {
  CHECK(first_of_text(Positions::kContiguous, {40, 31}, 90, 3) == 43);
  CHECK(first_of_text(Positions::kOriginal, {40, 31}, 90, 3) == 93);
  CHECK(first_of_text(Positions::kOriginal, {140, 31}, 90, 0) == 140);
  std::vector<int32_t> out(6);
  text_positions(2, 9, out.data());
  CHECK(out == std::vector<int32_t>{9, 9, 9, 10, 10, 10});
}

}  // namespace
