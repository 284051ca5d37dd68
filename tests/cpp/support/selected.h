// What a policy chooses in a played stream for one random query token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "support/played_stream.h"

namespace mosaic::testing {

struct Selected {
  std::vector<int32_t> chosen;    // best first
  std::vector<int32_t> attended;  // by their summary; none too where the policy names none
  std::vector<float> score;
};

inline Selected select(PlayedStream& stream, int lane, int max_tokens, int max_summaries = 0,
                       int32_t since = INT32_MIN) {
  const ClusterStore& store = stream.memory->store();
  const auto n = static_cast<size_t>(store.index(lane).capacity());
  std::vector<int32_t> chosen(n), attend(n), rows(n);
  std::vector<float> score(n), bias(n), scratch(n);
  SelectResult result;
  result.chosen = chosen.data();
  result.attend = attend.data();
  result.score = score.data();
  SelectQuery query;
  const std::vector<float> q = stream.normals(stream.q_row());
  query.lane = lane;
  query.q = q.data();
  query.tokens = 1;
  query.q_heads = 4;
  query.q_stride = stream.q_row();
  query.scale = 0.25f;
  query.max_tokens = max_tokens;
  query.max_summaries = max_summaries;
  query.since_ms = since;
  const_cast<Policy&>(stream.memory->policy())
      .select(store, query, {rows.data(), bias.data(), scratch.data()}, &result);
  return {{chosen.begin(), chosen.begin() + result.n},
          {attend.begin(), attend.begin() + std::max(result.attended, 0)},
          {score.begin(), score.begin() + result.n}};
}

}  // namespace mosaic::testing
