// The signals and attention received: every instruction set against the plain loops, and what must hold for any of them.
#include <doctest/doctest.h>

#include <cmath>

#include "support/ops_world.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

constexpr int kSizes[] = {1, 5, 7, 13, 16, 17};
constexpr float kUntouched = -77;

void check_finite_near(const std::vector<float>& got, const std::vector<float>& expected, float tolerance) {
  REQUIRE(got.size() == expected.size());
  float worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const float error = std::abs(got[i] - expected[i]) / std::max(1.0f, std::abs(expected[i]));
    worst = error <= worst ? worst : error;  // NaN wins
  }
  CHECK(worst <= tolerance);
}

// Rows `gap` numbers apart, NaN between them; every seventh row is zero.
struct Rows {
  std::vector<float> x;
  size_t stride;
  Rows(Random& random, int items, int dim, int gap) : stride(static_cast<size_t>(dim + gap)) {
    x.assign(static_cast<size_t>(items) * stride, NAN);
    for (int i = 0; i < items; ++i)
      for (int c = 0; c < dim; ++c) x[static_cast<size_t>(i) * stride + static_cast<size_t>(c)] = random.normal();
    for (int i = 3; i < items; i += 7)
      for (int c = 0; c < dim; ++c) x[static_cast<size_t>(i) * stride + static_cast<size_t>(c)] = 0;
  }
};

TEST_CASE("recent keys, redundancy and norms of every instruction set equal the plain loops, whatever the stride") {
  Random random(1);
  const auto plain = cpu::make_ops("plain", 1);
  for (const std::string& name : implementations())
    for (const int dim : kSizes)
      for (const int items : {0, 1, 5, 16, 17, name == "shim" ? 701 : 9001}) {  // 9001 are shared among workers
        CAPTURE(name);
        CAPTURE(dim);
        CAPTURE(items);
        constexpr int kPlaces = 6;
        const Rows k(random, items, dim, dim % 3);
        std::vector<int32_t> place(static_cast<size_t>(items));
        for (int32_t& p : place) p = random.below(kPlaces) - 1;  // some have none; the last place stays empty
        const auto start = random.normals(static_cast<size_t>((kPlaces - 1) * dim));
        const auto ops = make_ops(name, 2);
        std::vector<float> sum[2], score[2], norm[2];
        std::vector<int32_t> count[2];
        for (const int which : {0, 1}) {
          Ops& o = which == 0 ? *plain : *ops;
          sum[which] = start;
          sum[which].resize(static_cast<size_t>(kPlaces * dim), 0.0f);
          count[which].assign(kPlaces, 2);
          count[which].back() = 0;
          score[which].assign(static_cast<size_t>(items) + 1, kUntouched);
          norm[which] = score[which];
          o.add_recent_keys({k.x.data(), place.data(), items, dim, k.stride, sum[which].data(), count[which].data()});
          auto asked = place;
          for (size_t i = 0; i < asked.size(); i += 4) asked[i] = i % 8 == 0 ? kPlaces - 1 : kNone;
          o.temporal_redundancy({k.x.data(), asked.data(), items, dim, k.stride, sum[which].data(), count[which].data(),
                                 score[which].data()});
          o.row_norm({k.x.data(), items, dim, k.stride, norm[which].data()});
        }
        check_finite_near(sum[1], sum[0], 1e-5f);
        CHECK(count[1] == count[0]);
        check_finite_near(score[1], score[0], 1e-5f);
        check_finite_near(norm[1], norm[0], 1e-6f);
        CHECK(score[1].back() == kUntouched);
        CHECK(norm[1].back() == kUntouched);
        for (size_t i = 0; i + 1 < score[1].size(); i += 4) CHECK(score[1][i] == 0);
      }
}

// Lanes of pages of every codec, of which all tokens between the first and the last are meant.
struct PotWorld {
  std::vector<std::vector<std::byte>> data;
  std::vector<PageEntry> pages;
  std::vector<int32_t> place;
  int recent = 0;
  PotWorld(Random& random, PageShape shape, int n_pages, int places, int first_codec) {
    const auto plain = cpu::make_ops("plain", 1);
    const auto row = static_cast<size_t>(shape.row());
    for (int p = 0; p < n_pages; ++p) {
      const auto codec = static_cast<CodecId>((first_codec + p) % kCodecs);
      auto k = random.normals(kPageTokens * row);
      const auto v = random.normals(kPageTokens * row);
      std::fill_n(k.begin() + static_cast<std::ptrdiff_t>(3 * row), row, 0.0f);  // a key without a direction
      const int begin = p % 3 == 1 ? random.below(5) : 0, end = p % 4 == 3 ? begin + random.below(12) : kPageTokens;
      data.emplace_back(data_bytes(codec, shape));
      plain->encode(codec, shape, k.data(), v.data(), row, kPageTokens, data.back().data());
      pages.push_back({data.back().data(), static_cast<int32_t>(place.size()), rows_of(begin, end), codec});
      for (int i = begin; i < end; ++i) place.push_back(random.below(places + 1) - 1);
    }
    recent = static_cast<int>(place.size()) * 2 / 3;
  }
};

TEST_CASE("signals of tokens in pages are those of the rows they are decoded to, of many lanes at once") {
  constexpr int kPlaces = 11;
  for (const std::string& name : implementations())
    for (const PageShape shape : {PageShape{1, 64}, {2, 13}, {1, 128}})
      for (const bool redundancy : {true, false})
        for (const int lanes : {1, 3, 26}) {  // more than one launch holds
          if (lanes == 26 && shape.row() > 64) continue;
          CAPTURE(name);
          CAPTURE(shape.head_dim);
          CAPTURE(lanes);
          Random random(31);
          const auto plain = cpu::make_ops("plain", 1);
          const auto ops = make_ops(name, 2);
          const auto row = static_cast<size_t>(shape.row());
          std::vector<PotWorld> worlds;
          std::vector<float> room(2 * kPageTokens * row);
          struct Tables {
            std::vector<float> sum, score, norm;
            std::vector<int32_t> count;
          };
          std::vector<Tables> got, want;
          std::vector<PotArgs> asked;
          for (int i = 0; i < lanes; ++i) {
            const PotWorld& w = worlds.emplace_back(random, shape, lanes > 3 ? i % 4 : 7 + 6 * i, kPlaces, i);
            const std::vector<float> none(w.place.size() + 1, kUntouched);
            want.push_back({std::vector<float>(kPlaces * row, 0.0f), none, none, std::vector<int32_t>(kPlaces, 0)});
            got.push_back({std::vector<float>(kPlaces * row, 5.0f), none, none, std::vector<int32_t>(kPlaces, 7)});
            Tables& t = want.back();
            std::vector<float> k(w.place.size() * row), v(k);
            for (const PageEntry& page : w.pages) {
              const size_t at = static_cast<size_t>(page.first) * row;
              plain->decode(page.codec, shape, page.data, page.begin(), page.end(), k.data() + at, v.data() + at, row);
            }
            const auto items = static_cast<int>(w.place.size()), dim = shape.row();
            plain->add_recent_keys({k.data() + static_cast<size_t>(w.recent) * row, w.place.data() + w.recent,
                                    items - w.recent, dim, row, t.sum.data(), t.count.data()});
            plain->row_norm({v.data(), items, dim, row, t.norm.data()});
            if (redundancy)
              plain->temporal_redundancy(
                  {k.data(), w.place.data(), items, dim, row, t.sum.data(), t.count.data(), t.score.data()});
          }
          for (size_t i = 0; i < worlds.size(); ++i) {
            PotArgs& a = asked.emplace_back();
            a.shape = shape, a.pages = worlds[i].pages.data(), a.n_pages = static_cast<int>(worlds[i].pages.size());
            a.place = worlds[i].place.data(), a.places = kPlaces, a.recent = worlds[i].recent;
            a.sum = got[i].sum.data(), a.count = got[i].count.data(), a.norm = got[i].norm.data();
            a.score = redundancy ? got[i].score.data() : nullptr;
            a.room_k = room.data(), a.room_v = room.data() + kPageTokens * row;
          }
          ops->add_recent_pages(asked);
          ops->page_signals(asked);
          for (size_t i = 0; i < worlds.size(); ++i) {
            check_finite_near(got[i].sum, want[i].sum, 2e-5f);
            CHECK(got[i].count == want[i].count);
            check_finite_near(got[i].score, want[i].score, 2e-5f);
            check_finite_near(got[i].norm, want[i].norm, 2e-6f);
          }
        }
}

TEST_CASE("recent keys of a pot are summed a part of its pages at a time as of all at once") {
  constexpr PageShape kShape{1, 32};
  constexpr int kPlaces = 5;
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Random random(33);
    const PotWorld w(random, kShape, 20, kPlaces, 0);
    const auto ops = make_ops(name, 1);
    std::vector<float> room(2 * kPageTokens * 32), sum[2];
    std::vector<int32_t> count[2];
    for (const int parts : {1, 2}) {
      sum[parts - 1].assign(kPlaces * 32, 3.0f), count[parts - 1].assign(kPlaces, 3);
      PotArgs a;
      a.shape = kShape, a.place = w.place.data(), a.places = kPlaces, a.recent = w.recent;
      a.sum = sum[parts - 1].data(), a.count = count[parts - 1].data();
      a.room_k = room.data(), a.room_v = room.data() + kPageTokens * 32;
      for (int part = 0; part < parts; ++part) {
        a.pages = w.pages.data() + 16 * part, a.n_pages = parts == 1 ? 20 : part == 0 ? 16 : 4;
        a.fresh = part == 0;
        ops->add_recent_pages({&a, 1});
      }
    }
    CHECK(sum[0] == sum[1]);
    CHECK(count[0] == count[1]);
  }
}

TEST_CASE("equal items have equal signals, wherever they stand and on however many threads") {
  Random random(2);
  constexpr int kItems = 9001, kDim = 29;
  const auto row = random.normals(kDim);
  std::vector<float> x;
  for (int i = 0; i < kItems; ++i) x.insert(x.end(), row.begin(), row.end());
  const std::vector<int32_t> place(kItems, 0), count{1};
  const auto sum = random.normals(kDim);
  for (const std::string& name : implementations())
    for (const int threads : {1, 3}) {
      const auto ops = make_ops(name, threads);
      std::vector<float> score(kItems), norm(kItems);
      ops->temporal_redundancy({x.data(), place.data(), kItems, kDim, kDim, sum.data(), count.data(), score.data()});
      ops->row_norm({x.data(), kItems, kDim, kDim, norm.data()});
      for (int i = 1; i < kItems; ++i) {
        REQUIRE(score[static_cast<size_t>(i)] == score[0]);
        REQUIRE(norm[static_cast<size_t>(i)] == norm[0]);
      }
    }
}

TEST_CASE("spectral energy of every instruction set equals the plain loops; a constant has none, an alternation all") {
  Random random(3);
  const auto plain = cpu::make_ops("plain", 1);
  for (const std::string& name : implementations())
    for (const int dim : {1, 5, 13, 16, 17, 31, 48, 100})
      for (const int tokens : {0, 1, 2, 3, 5, 7, 13, 16, 17, 49, 64, 1025}) {
        if (tokens == 1025 && dim != 17) continue;  // beyond the table
        CAPTURE(name);
        CAPTURE(dim);
        CAPTURE(tokens);
        const Rows x(random, tokens, dim, dim % 4);
        const auto ops = make_ops(name, 2);
        std::vector<float> expected(static_cast<size_t>(tokens) + 1, kUntouched), got = expected;
        plain->spectral_energy({x.x.data(), tokens, dim, x.stride, expected.data()});
        ops->spectral_energy({x.x.data(), tokens, dim, x.stride, got.data()});
        check_finite_near(got, expected, 1e-5f);
        CHECK(got.back() == kUntouched);
        if (tokens < 2 || tokens > 64) continue;
        std::vector<float> wave(static_cast<size_t>(tokens * dim), 3.0f);
        ops->spectral_energy({wave.data(), tokens, dim, static_cast<size_t>(dim), got.data()});
        for (int t = 0; t < tokens; ++t) CHECK(std::abs(got[static_cast<size_t>(t)]) < 1e-5f);
        if (tokens % 2 == 1) continue;
        for (int t = 1; t < tokens; t += 2)
          for (int c = 0; c < dim; ++c) wave[static_cast<size_t>(t * dim + c)] = -3;
        ops->spectral_energy({wave.data(), tokens, dim, static_cast<size_t>(dim), got.data()});
        for (int t = 0; t < tokens; ++t) CHECK(got[static_cast<size_t>(t)] == doctest::Approx(3).epsilon(1e-5));
      }
}

TEST_CASE("attention received from many queries equals the plain loops and sums to their heads") {
  const AttendShape shapes[] = {
      {.tokens = 5, .pages = 0, .block = true},
      {.tokens = 7, .pages = 3, .rows = 5},
      {.heads = 1, .group = 3, .head_dim = 64, .tokens = 17, .pages = 9, .rows = 5, .block = true},
      {.heads = 3, .group = 1, .head_dim = 80, .tokens = 16, .pages = 12, .rows = 16, .block = true},
      {.heads = 2, .group = 7, .head_dim = 128, .tokens = 67, .pages = 18, .rows = 17, .block = true},
      {.heads = 2, .group = 2, .head_dim = 13, .tokens = 130, .pages = 40, .block = true},
  };
  unsigned seed = 7;
  for (const AttendShape& shape : shapes) {
    AttendWorld world(shape, ++seed);
    const Ops::Limits limits{.tokens = shape.tokens,
                             .q_heads = shape.heads * shape.group,
                             .shape = {shape.heads, shape.head_dim},
                             .rows = shape.rows};
    Kernels plain("plain", 1, limits);
    plain->attend(world.args);
    // A query that attends nothing pays nothing, and a token that no query wants gets no mass but is written.
    for (int h = 0; h < world.args.q_heads; ++h)
      world.lse[static_cast<size_t>(2 * world.args.q_heads + h)] = -std::numeric_limits<float>::infinity();
    for (const int first : {0, 2, shape.tokens / 2, shape.tokens - 1, -1})
      for (const bool block : {false, true}) {
        std::vector<float> pages(world.positions.size() + 1, kUntouched), rows(world.rows.size() + 1, kUntouched),
            own(static_cast<size_t>(shape.tokens) + 1, kUntouched);
        plain->attention_mass({&world.args, pages.data(), rows.data(), first, block ? own.data() : nullptr});
        double sum = 0;
        for (const auto* part : {&pages, &rows, &own})
          for (const float x : *part) sum += x == kUntouched ? 0 : x;
        const int from = first < 0 ? shape.tokens - 1 : first, silent = from <= 2 ? 1 : 0;
        if (block || !shape.block)
          CHECK(sum == doctest::Approx((shape.tokens - from - silent) * shape.heads * shape.group).epsilon(1e-4));
        for (const std::string& name : implementations()) {
          CAPTURE(name);
          CAPTURE(seed);
          CAPTURE(first);
          CAPTURE(block);
          Kernels kernels(name, 2, limits);
          std::vector<float> got_pages(pages.size(), kUntouched), got_rows(rows.size(), kUntouched),
              got_own(own.size(), kUntouched);
          kernels->attention_mass(
              {&world.args, got_pages.data(), got_rows.data(), first, block ? got_own.data() : nullptr});
          check_finite_near(got_pages, pages, 1e-4f);
          check_finite_near(got_rows, rows, 1e-4f);
          check_finite_near(got_own, own, 1e-4f);
        }
      }
  }
}

}  // namespace
