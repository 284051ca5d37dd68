// What policies by records keep, judged in float64: every lane as its heads really attended, and who of its tokens is kept.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "support/played_stream.h"

namespace mosaic::testing {

// Without rotation, so that an oracle needs no positions.
inline MemoryConfig plain_config(uint64_t cap, CodecId packed) {
  MemoryConfig c = small_config(cap);
  c.model.rope.layout = RopeLayout::kNone;
  c.model.rope.rotary_dim = 0;
  c.exact = CodecId::kFp32;
  c.packed = packed;
  c.window_frames = 2;
  c.branch_tokens = 16;
  return c;
}

// One lane as float64 sees it: every token ever seen, who of them is kept, what they received so far.
struct Lane {
  int layer, head;
  std::map<int, double> received;  // by position, of tokens that are kept
  std::map<int, int> frame_of;
};

inline std::set<int> kept(const KvMemory& memory, int lane) {
  const TokenLog& log = memory.records()->log();
  std::set<int> found;
  for (TokenSlot s = 0; s < log.capacity(); ++s)
    if (log.holds(lane, s)) found.insert(log.positions(lane)[s]);
  return found;
}

struct Oracle {
  PlayedStream& stream;
  std::vector<Lane> lanes;
  std::map<int, int> frames;  // of every position
  int frame = -1;

  explicit Oracle(PlayedStream& s) : stream(s) {
    for (int l = 0; l < s.config.model.layers; ++l)
      for (int h = 0; h < s.config.model.kv_heads; ++h) lanes.push_back({l, h, {}, {}});
  }
  const float* row(const std::vector<float>& x, int layer, int head) const {
    return &x[static_cast<size_t>(layer) * stream.row() +
              static_cast<size_t>(head) * static_cast<size_t>(stream.config.model.head_dim)];
  }
  // The frame that was just played, its tokens from `first_query` on, pays to everything its lane keeps and to itself.
  void hear(int first, int tokens, int listen, double key_power, int first_query = 0) {
    ++frame;
    const ModelShape& m = stream.config.model;
    const auto d = static_cast<size_t>(m.head_dim);
    const int group = m.q_heads / m.kv_heads;
    for (int i = 0; i < tokens; ++i) frames[first + i] = frame;
    for (Lane& lane : lanes) {
      for (int i = 0; i < tokens; ++i) lane.received[first + i] = 0;
      std::vector<std::pair<int, const float*>> keys;
      for (const auto& [position, unused] : lane.received)
        keys.emplace_back(position, row(stream.video[static_cast<size_t>(position)].k, lane.layer, lane.head));
      const double counts = std::pow(static_cast<double>(keys.size()), key_power);
      for (int t = first_query; t < tokens; ++t)
        for (int g = 0; g < group; ++g) {
          const float* const q =
              &stream.q[(static_cast<size_t>(lane.layer) * static_cast<size_t>(tokens) + static_cast<size_t>(t)) *
                            stream.q_row() +
                        static_cast<size_t>(lane.head * group + g) * d];
          std::vector<double> weight;
          double sum = 0;
          for (const auto& [position, k] : keys) {
            double logit = position > first + t ? -1e300 : 0;
            for (size_t c = 0; c < d && position <= first + t; ++c) logit += static_cast<double>(q[c]) * k[c];
            weight.push_back(std::exp(logit / std::sqrt(static_cast<double>(d))));
            sum += weight.back();
          }
          for (size_t i = 0; i < keys.size(); ++i)
            if (frame - frames[keys[i].first] <= listen) lane.received[keys[i].first] += counts * weight[i] / sum;
        }
    }
  }
  double norm(const Lane& lane, int position) const {
    const float* const v = row(stream.video[static_cast<size_t>(position)].v, lane.layer, lane.head);
    double sum = 0;
    for (int c = 0; c < stream.config.model.head_dim; ++c) sum += static_cast<double>(v[c]) * v[c];
    return std::sqrt(sum);
  }
  // The first frame may be one that never yields, the window's do not, and who has only now come in made room for himself.
  bool could_go(int of_frame) const { return of_frame > 0 && of_frame < frame - stream.config.window_frames; }
  // In every lane what went was worth no more than what stayed, of all that could have gone, which came at `oldest` to
  // `newest`: worth(lane, position, received, oldest, newest). It is forgotten here; returns how many went.
  template <class Worth>
  int check_given_up(const Worth& worth) {
    int given_up = 0;
    for (size_t l = 0; l < lanes.size(); ++l) {
      Lane& lane = lanes[l];
      const std::set<int> now = kept(*stream.memory, static_cast<int>(l));
      std::vector<std::pair<int, double>> could;
      for (const auto& [position, received] : lane.received)
        if (could_go(frames[position])) could.emplace_back(position, received);
      double least = 1e300, most = 0;  // worth of what stayed, and of what went
      std::vector<int> gone;
      for (const auto& [position, received] : could) {
        const double worth_now = worth(lane, position, received, could.front().first, could.back().first);
        if (now.contains(position)) {
          least = std::min(least, worth_now);
        } else {
          most = std::max(most, worth_now);
          gone.push_back(position);
        }
      }
      if (!gone.empty()) CHECK(most <= least * 1.01 + 1e-6);  // sums are halves
      for (const int position : gone) lane.received.erase(position);
      given_up += static_cast<int>(gone.size());
    }
    return given_up;
  }
};

}  // namespace mosaic::testing
