#include "store/window.h"

#include <map>
#include <vector>

#include <doctest/doctest.h>
#include "backend/backend.h"
#include "support/counted.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

WindowShape shape_of(int frame_tokens, int prefix_tokens) {
  WindowShape s;
  s.lanes = 3;
  s.page = {1, 8};
  s.codec = CodecId::kFp32;
  s.frames = 3;
  s.frame_tokens = frame_tokens;
  s.prefix_tokens = prefix_tokens;
  s.branch_tokens = 33;
  s.embedding_dim = 2;
  return s;
}

// Keys and values that say which token of which strip they are.
std::vector<float> rows_of_strip(int strip, int tokens, int row) {
  std::vector<float> x(static_cast<size_t>(tokens * row));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(1000 * strip) + static_cast<float>(i);
  return x;
}

}  // namespace

TEST_CASE("a window's tokens lie one behind the other, and no strip touches another") {
  const auto backend = make_backend("cpu", 1);
  for (const int frame_tokens : {1, 16, 17, 40}) {
    for (const int prefix_tokens : {0, 1, 23}) {
      WindowShape s = shape_of(frame_tokens, prefix_tokens);
      s.keeps_first = prefix_tokens != 23;
      Region region(*backend.device, counted([&](Region& counting) { Window(counting, s); }));
      Window window(region, s);
      CHECK(region.left() == 0);
      struct Part {
        Strip strip;
        int tokens, frame;
      };
      std::vector<Part> parts{{Strip::kPrefix, prefix_tokens, 0}, {Strip::kBranch, s.branch_tokens, 0}};
      window.push({0, frame_tokens, 0, 0});
      CHECK(window.wants_first_frame() == s.keeps_first);
      if (s.keeps_first) {
        window.keep_first_frame();
        parts.push_back({Strip::kFirstFrame, frame_tokens, 0});
      }
      window.pop();
      for (int f = 0; f <= s.frames; ++f) parts.push_back({Strip::kFrame, frame_tokens, f});
      std::map<std::pair<const std::byte*, int>, int> owners;
      for (int lane = 0; lane < s.lanes; ++lane)
        for (const Part& part : parts)
          for (int i = 0; i < part.tokens;) {
            const Window::Piece piece = window.piece(part.strip, lane, i, part.tokens, part.frame);
            for (int row = piece.begin; row < piece.end; ++row) ++owners[{piece.page.data, row}];
            i += piece.tokens();
          }
      const int tokens = prefix_tokens + (s.frames + (s.keeps_first ? 2 : 1)) * frame_tokens + s.branch_tokens;
      CHECK(static_cast<int>(owners.size()) == s.lanes * tokens);
      for (const auto& [place, times] : owners) CHECK(times == 1);
      // Written last to first, each reads as it was written.
      const int row = s.page.row();
      for (int lane = s.lanes - 1; lane >= 0; --lane)
        for (size_t p = parts.size(); p-- > 0;) {
          const auto x = rows_of_strip(static_cast<int>(p) + 10 * lane, parts[p].tokens, row);
          for (int i = 0; i < parts[p].tokens; ++i)
            window.meta(parts[p].strip, i, parts[p].frame) = {static_cast<int32_t>(p), i, 0, 0};
          StageArgs stage;
          window.write(&stage, parts[p].strip, lane, 1, 0, parts[p].tokens, x.data(), x.data(),
                       static_cast<size_t>(row), parts[p].frame);
          backend.ops->stage(stage);
        }
      for (int lane = 0; lane < s.lanes; ++lane)
        for (size_t p = 0; p < parts.size(); ++p) {
          const auto x = rows_of_strip(static_cast<int>(p) + 10 * lane, parts[p].tokens, row);
          std::vector<float> k(x.size()), v(x.size());
          std::vector<TokenMeta> meta(static_cast<size_t>(parts[p].tokens));
          window.read(*backend.ops, parts[p].strip, lane, parts[p].tokens, k.data(), v.data(), meta.data(),
                      parts[p].frame);
          CHECK(k == x);
          CHECK(v == x);
          for (int i = 0; i < parts[p].tokens; ++i) {
            CHECK(meta[static_cast<size_t>(i)].position == static_cast<int32_t>(p));
            CHECK(meta[static_cast<size_t>(i)].time_low == i);
            const Window::Piece piece = window.piece(parts[p].strip, lane, i, i + 1, parts[p].frame);
            CHECK(window.page_meta(piece.page.data)[piece.begin].time_low == i);
          }
        }
    }
  }
}

TEST_CASE("the ring keeps frames in order, and the first frame of the stream stays where it was written") {
  const auto backend = make_backend("cpu", 1);
  const WindowShape s = shape_of(17, 1);
  Region region(*backend.device, counted([&](Region& counting) { Window(counting, s); }));
  Window window(region, s);
  std::vector<float> k(17 * 8), v(17 * 8);
  std::vector<TokenMeta> meta(17);
  const auto number_in = [&](Strip strip, int frame) {
    window.read(*backend.ops, strip, 1, 17, k.data(), v.data(), meta.data(), frame);
    CHECK(k == std::vector<float>(17 * 8, k[0]));
    CHECK(v == k);
    return static_cast<int>(k[0]);
  };
  for (int n = 0; n < 20; ++n) {
    const std::vector<float> x(17 * 8, static_cast<float>(n));
    StageArgs stage;
    window.write(&stage, Strip::kFrame, 1, 1, 0, 17, x.data(), x.data(), 8, window.frames());
    backend.ops->stage(stage);
    window.embedding(window.frames())[0] = static_cast<float>(n);
    window.push({n, 17, n, 0});
    for (int i = 0; i < window.frames(); ++i) {
      CHECK(window.frame(i).number == n - window.frames() + 1 + i);
      CHECK(window.embedding(i)[0] == static_cast<float>(window.frame(i).number));
      CHECK(number_in(Strip::kFrame, i) == window.frame(i).number);
    }
    CHECK(number_in(Strip::kFirstFrame, 0) == 0);
    if (!window.is_full()) continue;
    CHECK(window.frames() == 4);
    if (!window.has_first_frame()) window.keep_first_frame();
    window.pop();
    CHECK(window.first_frame().number == 0);
    CHECK(window.first_frame().tokens == 17);
  }
}
