// What is asked for several lanes at once is what each lane gets when it is asked for alone: bit for bit on one backend.
#include <doctest/doctest.h>

#include <numeric>

#include "support/ops_world.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

constexpr PageShape kShape{1, 32};
constexpr size_t kRow = 32;
constexpr Ops::Limits kLimits{.tokens = 40, .q_heads = 4, .shape = {2, 64}, .rows = 64};

std::vector<std::byte> noise(size_t bytes, unsigned seed) {
  Random random(seed);
  std::vector<std::byte> all(bytes);
  for (std::byte& b : all) b = static_cast<std::byte>(random.below(256));
  return all;
}

bool near_all(const std::vector<float>& got, const std::vector<float>& expected, float tolerance) {
  for (size_t i = 0; i < got.size(); ++i)
    if (!(std::abs(got[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i]))) && got[i] != expected[i])
      return false;
  return got.size() == expected.size();
}

}  // namespace

TEST_CASE("a layer is staged at once as its numbers, the rows of its lanes and its tables are one by one") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, kLimits);
    Random random(5);
    for (const CodecId codec : {CodecId::kFp16, CodecId::kFp32, CodecId::kK8V8}) {
      for (const auto& [first, count] : {std::pair{0, 1}, {15, 1}, {13, 37}, {0, 0}}) {
        const int lanes = 3;
        const size_t stride = 3 * kRow + 4, pitch = data_bytes(codec, kShape) + 64, lane_pitch = 4 * pitch;
        const auto k = random.normals(40 * stride), v = random.normals(40 * stride);
        auto q = random.normals(777);
        q[3] = 1e30f, q[700] = std::nanf("");
        const auto table = noise(4096 + 36, 3);
        std::vector<std::byte> pages = noise(lanes * lane_pitch, 8), expected = pages, sent(table.size()), want = sent;
        std::vector<float> cut(q.size()), expected_cut(cut);
        NumberFaults faults, expected_faults;
        kernels->check_numbers(q.data(), q.size(), &expected_faults, expected_cut.data());
        kernels->check_numbers(k.data(), k.size(), &expected_faults, nullptr);
        for (size_t lane = 0; lane < lanes; ++lane)
          kernels->encode_run(codec, kShape, k.data() + lane * kRow, v.data() + lane * kRow, stride, first, count,
                              expected.data() + lane * lane_pitch, pitch);
        StageArgs a;
        a.numbers[0] = {q.data(), q.size(), cut.data()}, a.numbers[2] = {k.data(), k.size(), nullptr};
        a.faults = &faults, a.codec = codec, a.shape = kShape, a.k = k.data(), a.v = v.data(), a.stride = stride;
        a.first = first, a.count = count, a.pages = pages.data(), a.pitch = pitch;
        a.lanes = lanes, a.lane_pitch = lane_pitch;
        std::vector<StageArgs::Piece> pieces;  // more than one launch holds, of odd sizes
        for (size_t at = 0, i = 0; at < table.size(); ++i) {
          const size_t bytes = std::min<size_t>(4 * (1 + i % 17), table.size() - at);
          pieces.push_back({sent.data() + at, table.data() + at, bytes});
          at += bytes;
        }
        REQUIRE(pieces.size() > 64);
        a.pieces = pieces;
        kernels->stage(a);
        CHECK(pages == expected);
        CHECK(sent == table);
        CHECK(std::memcmp(cut.data(), expected_cut.data(), cut.size() * sizeof(float)) == 0);
        CHECK(faults.not_finite == expected_faults.not_finite);
        CHECK(faults.beyond == expected_faults.beyond);
      }
    }
  }
}

TEST_CASE("lanes that are attended together, and their attention measured, come out as each does alone") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    for (const int tokens : {1, 7, 33}) {
      Kernels kernels(name, 1, kLimits);
      std::vector<std::unique_ptr<AttendWorld>> worlds;
      std::vector<AttendArgs> lanes;
      std::vector<MassArgs> mass;
      std::vector<std::vector<float>> pages, rows, block;
      const int n = 11;  // more than one launch holds
      for (int i = 0; i < n; ++i) {
        worlds.push_back(std::make_unique<AttendWorld>(AttendShape{.heads = 1,
                                                                   .group = 2,
                                                                   .head_dim = 64,
                                                                   .tokens = tokens,
                                                                   .pages = 1 + 3 * (i % 4),
                                                                   .rows = i % 3 == 0 ? 0 : 17,
                                                                   .block = true,
                                                                   .rope = {.rotary_dim = 64, .theta = 1e4f}},
                                                       static_cast<unsigned>(20 + i)));
        lanes.push_back(worlds.back()->args);
        pages.emplace_back(worlds.back()->positions.size() + 1, -9.0f);
        rows.emplace_back(18, -9.0f), block.emplace_back(static_cast<size_t>(tokens), -9.0f);
      }
      kernels->attend_lanes(lanes);
      for (size_t i = 0; i < lanes.size(); ++i) {
        MassArgs& m = mass.emplace_back();
        m.attend = &lanes[i], m.page_mass = pages[i].data(), m.row_mass = rows[i].data();
        m.block_mass = block[i].data(), m.first_query = 0;
      }
      kernels->mass_lanes(mass);
      for (size_t i = 0; i < lanes.size(); ++i) {
        const std::vector<float> out = worlds[i]->out, lse = worlds[i]->lse;
        auto page = pages[i], row = rows[i], own = block[i];
        worlds[i]->out.assign(out.size(), -77), worlds[i]->lse.assign(lse.size(), -77);
        kernels->attend(lanes[i]);
        CHECK(near_all(worlds[i]->out, out, 2e-3f));  // weights are halves, and other parts are joined
        CHECK(near_all(worlds[i]->lse, lse, 2e-5f));
        worlds[i]->lse = lse;
        mass[i].page_mass = page.data(), mass[i].row_mass = row.data(), mass[i].block_mass = own.data();
        kernels->attention_mass(mass[i]);
        CHECK(page == pages[i]);
        CHECK(row == rows[i]);
        CHECK(own == block[i]);
      }
    }
  }
}

TEST_CASE("records of several lanes are read, written, moved and gathered together as they are one by one") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, kLimits);
    Random random(9);
    const auto means = random.normals(3 * kRow);
    for (const CodecId codec : {CodecId::kFp16, CodecId::kK5V3, CodecId::kK2V2}) {
      const size_t bytes = data_bytes(codec, kShape);
      const auto k = random.normals(48 * kRow), v = random.normals(48 * kRow);
      std::vector<std::byte> log = noise(6 * bytes, 4), expected = log;
      std::vector<int32_t> row, lane, at;
      std::vector<std::byte*> pages, expected_pages;
      for (int i = 0; i < 30; ++i) {
        row.push_back(47 - i), lane.push_back(i % 3), at.push_back(i / 2);
        pages.push_back(log.data() + static_cast<size_t>(i % 2) * bytes);
        expected_pages.push_back(expected.data() + static_cast<size_t>(i % 2) * bytes);
      }
      kernels->encode_lane_rows({codec, kShape, k.data(), v.data(), kRow, 30, row.data(), lane.data(), pages.data(),
                                 at.data(), means.data()});
      for (size_t i = 0; i < 30; ++i) {
        const size_t from = static_cast<size_t>(row[i]) * kRow;
        kernels->encode_row(codec, kShape, k.data() + from, v.data() + from, at[i], expected_pages[i],
                            means.data() + static_cast<size_t>(lane[i]) * kRow);
      }
      CHECK(log == expected);

      std::vector<RowMove> moves;
      for (int i = 0; i < 15; ++i)
        moves.push_back({log.data() + (i % 2) * bytes, log.data() + (2 + i % 3) * bytes, i, 15 - i});
      for (const RowMove& m : moves)
        kernels->move_row(codec, kShape, expected.data() + (m.from - log.data()), m.from_at,
                          expected.data() + (m.to - log.data()), m.to_at);
      kernels->move_rows(codec, kShape, moves);
      CHECK(log == expected);

      std::vector<PageEntry> entries;
      std::vector<float> got_k(30 * kRow), got_v(got_k), want_k(got_k), want_v(got_k);
      for (const std::byte* page : pages) entries.push_back({page, 0, 0xffff, codec});
      kernels->gather_lanes(entries.data(), at.data(), lane.data(), 30, kShape, got_k.data(), got_v.data(), kRow,
                            means.data());
      for (size_t i = 0; i < 30; ++i)
        kernels->gather(&entries[i], &at[i], 1, kShape, &want_k[i * kRow], &want_v[i * kRow], kRow,
                        means.data() + static_cast<size_t>(lane[i]) * kRow);
      CHECK(got_k == want_k);
      CHECK(got_v == want_v);
    }
  }
}

TEST_CASE("the runs of several lanes are read together as they are one by one") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, kLimits);
    Random random(10);
    for (const CodecId codec : {CodecId::kFp16, CodecId::kK8V8}) {
      const size_t pitch = data_bytes(codec, kShape) + 64, lane_pitch = 3 * pitch;
      for (const int count : {1, 16, 37}) {
        const auto k = random.normals(40 * kRow), v = random.normals(40 * kRow);
        std::vector<std::byte> lanes(2 * lane_pitch);
        for (size_t lane = 0; lane < 2; ++lane)
          kernels->encode_run(codec, kShape, k.data() + lane * kRow, v.data(), kRow, 0, count,
                              lanes.data() + lane * lane_pitch, pitch);
        const auto size = static_cast<size_t>(2 * count) * kRow;
        std::vector<float> got_k(size), got_v(size), want_k(size), want_v(size);
        kernels->decode_lanes(codec, kShape, lanes.data(), pitch, 2, lane_pitch, 0, count, got_k.data(), got_v.data(),
                              kRow);
        for (size_t lane = 0; lane < 2; ++lane)
          kernels->decode_run(codec, kShape, lanes.data() + lane * lane_pitch, pitch, 0, count,
                              want_k.data() + lane * size / 2, want_v.data() + lane * size / 2, kRow);
        CHECK(got_k == want_k);
        CHECK(got_v == want_v);
      }
    }
  }
}

TEST_CASE("items of several lanes are assigned at once as they are lane by lane") {
  constexpr int kDim = 48, kTable = 90;
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 2, {.tokens = 70, .q_heads = 1, .shape = {1, kDim}, .rows = kTable});
    Random random(21);
    const int n = 37;  // more than one launch holds
    const auto k = random.normals(70 * kDim), v = random.normals(70 * kDim);
    std::vector<std::vector<half_t>> mean_k, mean_v;
    std::vector<std::vector<int32_t>> rows, best;
    std::vector<std::vector<float>> similarity;
    std::vector<AssignArgs> lanes;
    for (int i = 0; i < n; ++i) {
      mean_k.push_back(random.halves(kTable * kDim)), mean_v.push_back(random.halves(kTable * kDim));
      std::vector<int32_t>& list = rows.emplace_back();
      for (int j = 0; j < (i % 5) * 20; ++j) list.push_back(random.below(kTable));
      const int items = i % 9 == 8 ? 0 : 1 + (i * 13) % 70;
      best.emplace_back(items + 1, -9), similarity.emplace_back(items + 1, -9.0f);
      AssignArgs& a = lanes.emplace_back();
      a.k = k.data(), a.v = v.data(), a.items = items, a.dim = kDim, a.stride = kDim;
      a.mean_k = mean_k.back().data(), a.mean_v = mean_v.back().data(), a.value_weight = i % 2 == 0 ? 0 : 0.5f;
      a.rows = list.data(), a.n_rows = static_cast<int>(list.size());
    }
    for (size_t i = 0; i < lanes.size(); ++i)
      lanes[i].best = best[i].data(), lanes[i].similarity = similarity[i].data();
    kernels->assign_lanes(lanes);
    for (size_t i = 0; i < lanes.size(); ++i) {
      std::vector<int32_t> one(best[i].size(), -9);
      std::vector<float> like(one.size(), -9.0f);
      lanes[i].best = one.data(), lanes[i].similarity = like.data();
      kernels->assign(lanes[i]);
      CHECK(one == best[i]);
      CHECK(like == similarity[i]);
    }
  }
}

TEST_CASE("likeness of several lanes at once is that of each alone") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, kLimits);
    const int n = 18;  // more than one launch holds
    Random random(12);
    std::vector<std::unique_ptr<AttendWorld>> worlds;
    std::vector<LikenessArgs> lanes;
    std::vector<std::vector<float>> k, v, scores, stored, like, token_like;
    for (size_t i = 0; i < n; ++i) {
      worlds.push_back(std::make_unique<AttendWorld>(
          AttendShape{.heads = 1, .group = 1, .head_dim = 32, .pages = static_cast<int>(i % 5)},
          static_cast<unsigned>(40 + i)));
      const size_t items = i % 7 == 6 ? 0 : 3 + 11 * (i % 3), tokens = worlds.back()->positions.size();
      k.push_back(random.normals((items + 1) * kRow)), v.push_back(random.normals((items + 1) * kRow));
      scores.push_back(random.normals(items + 1)), stored.push_back(random.normals(tokens + 1));
      like.emplace_back(items + 1, -1.0f), token_like.emplace_back(tokens + 1, 0.25f);
      LikenessArgs& a = lanes.emplace_back();
      a.k = k.back().data(), a.v = v.back().data(), a.items = static_cast<int>(items), a.stride = kRow,
      a.shape = kShape;
      a.pages = worlds.back()->pages.data(), a.n_pages = static_cast<int>(i % 5);
      a.item_score = scores.back().data(), a.token_score = stored.back().data();
      a.item_like = like.back().data(), a.token_like = token_like.back().data();
      a.key_mean = worlds.back()->key_mean.data();
    }
    kernels->likeness_lanes(lanes);
    for (size_t i = 0; i < n; ++i) {
      std::vector<float> one(like[i].size(), -1.0f), tokens(token_like[i].size(), 0.25f);
      LikenessArgs a = lanes[i];
      a.item_like = one.data(), a.token_like = tokens.data();
      kernels->likeness(a);
      CHECK(one == like[i]);
      CHECK(tokens == token_like[i]);
    }
  }
}
