// What the ops of ops.h take that write, move and pack single tokens of pages, of several lanes at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/codec.h"

namespace mosaic {

// Records that tokens of several lanes become: item i is token row[i] of what there is of lane[i], and becomes token at[i]
// of pages[i], of its key the lane's mean taken.
struct LaneItems {
  CodecId codec{};
  PageShape shape;
  int items = 0;
  const int32_t* row = nullptr;
  const int32_t* lane = nullptr;
  std::byte* const* pages = nullptr;
  const int32_t* at = nullptr;
  const float* key_mean = nullptr;  // [lanes, heads, head_dim]
};

// Of rows: item i is row[i] of k, v, whatever its lane. v null: as in encode_rows.
struct LaneRowsArgs : LaneItems {
  const float* k = nullptr;
  const float* v = nullptr;
  size_t stride = 0;
};
// A page that takes more tokens and is written anew: the first `held` of a page (itself, of the same codec, or another),
// then `count` rows.
struct GrowArgs {
  CodecId from_codec{};
  const std::byte* from = nullptr;
  int held = 0;
  CodecId codec{};
  std::byte* to = nullptr;
  PageShape shape;
  const float* k = nullptr;  // [count, heads, head_dim], `stride` elements between tokens
  const float* v = nullptr;
  size_t stride = 0;
  int count = 0;  // 0: it is written in another codec
  // [held + count] rows, `stride` apart, for a backend that has no room of its own; k and v may be the last of them.
  float* room_k = nullptr;
  float* room_v = nullptr;
};

// A record that goes to another place, bit for bit. Of several none begins where another ends.
struct RowMove {
  const std::byte* from;
  std::byte* to;
  int32_t from_at, to_at;
};

// Of tokens that leave a run of pages, one of each lane.
struct EnterArgs : LaneItems {
  CodecId from_codec{};
  const std::byte* from = nullptr;  // of lane 0; the run of each lane begins lane_pitch bytes behind the one before
  size_t pitch = 0;
  size_t lane_pitch = 0;
  int first = 0;          // where token 0 is in the run
  float* norm = nullptr;  // [lanes, norm_pitch] of values as they are read, at [lane[i]][row[i]]
  size_t norm_pitch = 0;
  // Records that go elsewhere before anything is written. Where moves[i] begins an item comes to stand, if there are as many.
  const RowMove* moves = nullptr;
  int n_moves = 0;
  const int32_t* leaves = nullptr;    // [items] which move begins where the item comes to stand; kNone: none
  const uint8_t* followed = nullptr;  // [n_moves] whether an item comes to stand where it begins
  float* room_k = nullptr;            // [row] for a backend that has none of its own
  float* room_v = nullptr;
};

// Tokens of a run of pages that stay, packed: the j-th 16 of them become page j, each decoded and encoded anew. Pages behind
// the last of them are left as they are.
struct PackPage {
  std::byte* data;
  uint16_t stay;  // bit i: token i of the page
  CodecId codec;
};
struct PackArgs {
  const PackPage* pages = nullptr;  // [n_pages]
  int n_pages = 0;
};

}  // namespace mosaic
