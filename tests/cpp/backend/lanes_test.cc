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

TEST_CASE("lanes that are attended and measured at once come out as one after the other") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    for (const int tokens : {1, 7, 33})
      for (const int n : {1, 3, 11}) {  // more than one launch holds
        CAPTURE(tokens);
        Kernels kernels(name, 1, kLimits);
        std::vector<std::unique_ptr<AttendWorld>> worlds;
        std::vector<AttendArgs> lanes;
        std::vector<MassArgs> mass;
        std::vector<std::vector<float>> pages, rows, block, out, lse;
        for (int i = 0; i < n; ++i) {
          worlds.push_back(std::make_unique<AttendWorld>(AttendShape{.heads = 1,
                                                                     .group = 2,
                                                                     .head_dim = 64,
                                                                     .tokens = tokens,
                                                                     .pages = 9 + 3 * (i % 4),
                                                                     .rows = 17,
                                                                     .block = true,
                                                                     .rope = {.rotary_dim = 64, .theta = 1e4f}},
                                                         static_cast<unsigned>(60 + i)));
          lanes.push_back(worlds.back()->args);
          pages.emplace_back(worlds.back()->positions.size() + 1, -9.0f);
          rows.emplace_back(18, -9.0f), block.emplace_back(static_cast<size_t>(tokens), -9.0f);
        }
        for (size_t i = 0; i < lanes.size(); ++i) {
          MassArgs& m = mass.emplace_back();
          m.attend = &lanes[i], m.page_mass = pages[i].data(), m.row_mass = rows[i].data();
          m.block_mass = block[i].data(), m.first_query = 0;
        }
        kernels->attend_lanes(lanes);
        kernels->mass_lanes(mass);
        const auto want_pages = pages, want_rows = rows, want_block = block;
        for (size_t i = 0; i < lanes.size(); ++i) {
          out.push_back(worlds[i]->out), lse.push_back(worlds[i]->lse);
          worlds[i]->out.assign(out[i].size(), -77), worlds[i]->lse.assign(lse[i].size(), -77);
          pages[i].assign(pages[i].size(), -9), rows[i].assign(18, -9), block[i].assign(block[i].size(), -9);
        }
        kernels->attend_and_measure(lanes, mass);
        for (size_t i = 0; i < lanes.size(); ++i) {
          CHECK(worlds[i]->out == out[i]);
          CHECK(worlds[i]->lse == lse[i]);
          CHECK(near_all(pages[i], want_pages[i], 1e-5f));
          CHECK(near_all(rows[i], want_rows[i], 1e-5f));
          CHECK(near_all(block[i], want_block[i], 1e-5f));
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

TEST_CASE("records of several lanes are written and gathered together as they are one by one") {
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
      const LaneItems items{codec, kShape, 30, row.data(), lane.data(), pages.data(), at.data(), means.data()};
      kernels->encode_lane_rows({items, k.data(), v.data(), kRow});
      for (size_t i = 0; i < 30; ++i) {
        const size_t from = static_cast<size_t>(row[i]) * kRow;
        kernels->encode_row(codec, kShape, k.data() + from, v.data() + from, at[i], expected_pages[i],
                            means.data() + static_cast<size_t>(lane[i]) * kRow);
      }
      CHECK(log == expected);
      // Of pages of one head the keys alone.
      const PageShape one{1, kShape.head_dim};
      LaneItems few = items;
      few.shape = one, few.items = 10;
      kernels->encode_lane_rows({few, k.data(), nullptr, kRow});
      for (size_t i = 0; i < 10; ++i)
        kernels->encode_rows(codec, one, k.data() + static_cast<size_t>(row[i]) * kRow, nullptr, kRow, 1,
                             &expected_pages[i], &at[i], means.data() + static_cast<size_t>(lane[i]) * one.head_dim);
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

TEST_CASE(
    "tokens of several lanes enter records as if they were read, measured and written one by one, after the moves") {
  constexpr int kTokens = 29, kLanes = 3, kFirst = 7;
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, kLimits);
    Random random(11);
    for (const PageShape shape : {PageShape{1, 32}, {2, 16}})
      for (const CodecId from : {CodecId::kFp16, CodecId::kK8V8})
        for (const CodecId codec : {CodecId::kFp16, CodecId::kK5V3, CodecId::kK2V2}) {
          const size_t pitch = data_bytes(from, shape) + 64, lane_pitch = 4 * pitch, bytes = data_bytes(codec, shape);
          const auto means = random.normals(kLanes * kRow), k = random.normals(kTokens * kRow),
                     v = random.normals(kLanes * kTokens * kRow);
          std::vector<std::byte> window(kLanes * lane_pitch), log = noise(9 * bytes, 5);
          for (size_t lane = 0; lane < kLanes; ++lane)
            kernels->encode_run(from, shape, k.data(), v.data() + lane * kTokens * kRow, kRow, kFirst, kTokens,
                                window.data() + lane * lane_pitch, pitch);
          // Of each lane every other token, into a page that is emptied into holes of another, and one more.
          std::vector<int32_t> row, lane, at, leaves;
          std::vector<std::byte*> pages;
          std::vector<RowMove> moves;
          std::vector<uint8_t> followed;
          for (int l = 0; l < kLanes; ++l) {
            std::byte *const emptied = log.data() + static_cast<size_t>(3 * l) * bytes, *const other = emptied + bytes;
            const auto first_move = static_cast<int32_t>(moves.size());
            for (int i = 0; i < 5; ++i)
              moves.push_back({emptied, other, 3 * i, 15 - i}), followed.push_back(3 * i < 11);
            for (int i = 0; i < kTokens; i += 2) {
              const int to = static_cast<int>(row.size()) % 15;
              row.push_back(i), lane.push_back(l), pages.push_back(to < 11 ? emptied : emptied + 2 * bytes);
              at.push_back(to);
              leaves.push_back(to < 11 && to % 3 == 0 ? first_move + to / 3 : kNone);
            }
          }
          const auto items = static_cast<int>(row.size());
          std::vector<std::byte> expected = log;
          std::vector<float> norm(kLanes * 40, -5.0f), want = norm, one_k(kRow), one_v(kRow);
          for (const RowMove& m : moves)
            kernels->move_row(codec, shape, expected.data() + (m.from - log.data()), m.from_at,
                              expected.data() + (m.to - log.data()), m.to_at);
          for (size_t i = 0; i < row.size(); ++i) {
            const auto l = static_cast<size_t>(lane[i]);
            kernels->decode_run(from, shape, window.data() + l * lane_pitch, pitch, kFirst + row[i], 1, one_k.data(),
                                one_v.data(), kRow);
            kernels->row_norm(
                {one_v.data(), 1, static_cast<int>(kRow), kRow, &want[l * 40 + static_cast<size_t>(row[i])]});
            kernels->encode_row(codec, shape, one_k.data(), one_v.data(), at[i],
                                expected.data() + (pages[i] - log.data()), means.data() + l * kRow);
          }
          EnterArgs a;
          a.shape = shape, a.from_codec = from, a.from = window.data(), a.pitch = pitch, a.lane_pitch = lane_pitch;
          a.first = kFirst, a.codec = codec, a.items = items, a.row = row.data(), a.lane = lane.data();
          a.pages = pages.data(), a.at = at.data(), a.key_mean = means.data(), a.norm = norm.data(), a.norm_pitch = 40;
          a.moves = moves.data(), a.n_moves = static_cast<int>(moves.size()), a.leaves = leaves.data();
          a.followed = followed.data(), a.room_k = one_k.data(), a.room_v = one_v.data();
          kernels->enter_lanes(a);
          CHECK(log == expected);
          CHECK(near_all(norm, want, 1e-6f));
        }
  }
}

TEST_CASE("what stays of runs of pages is packed as if all of it were read before any page is written") {
  const CodecId codecs[] = {CodecId::kFp16, CodecId::kInt4, CodecId::kInt8, CodecId::kK5V3};
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, kLimits);
    Random random(13);
    for (const int runs : {1, 3, 130}) {  // more than one launch holds
      std::vector<std::vector<PackPage>> lists;
      std::vector<std::vector<std::byte>> memory, expected;
      std::vector<PackArgs> args;
      for (int r = 0; r < runs; ++r) {
        std::vector<PackPage>& list = lists.emplace_back();
        std::vector<float> k, v, one_k(kRow), one_v(kRow);
        for (int p = 0; p < (runs > 3 ? 1 + r % 3 : 9); ++p) {
          const CodecId codec = codecs[static_cast<size_t>(random.below(4))];
          const auto page_k = random.normals(kPageTokens * kRow), page_v = random.normals(kPageTokens * kRow);
          std::vector<std::byte>& page = memory.emplace_back(data_bytes(codec, kShape));
          kernels->encode(codec, kShape, page_k.data(), page_v.data(), kRow, kPageTokens, page.data());
          const int mask = p == 0 ? 0xfffe : p % 4 == 3 ? 0 : random.below(0x10000);
          list.push_back({page.data(), static_cast<uint16_t>(mask), codec});
          for (int t = 0; t < kPageTokens; ++t) {
            if ((mask >> t & 1) == 0) continue;
            kernels->decode(codec, kShape, page.data(), t, t + 1, one_k.data(), one_v.data(), kRow);
            k.insert(k.end(), one_k.begin(), one_k.end()), v.insert(v.end(), one_v.begin(), one_v.end());
          }
        }
        const size_t stay = k.size() / kRow;
        for (size_t p = 0; p < list.size(); ++p) {
          std::vector<std::byte>& page = expected.emplace_back(memory[memory.size() - list.size() + p]);
          if (p * kPageTokens >= stay) continue;
          kernels->encode(list[p].codec, kShape, &k[p * kPageTokens * kRow], &v[p * kPageTokens * kRow], kRow,
                          static_cast<int>(std::min<size_t>(kPageTokens, stay - p * kPageTokens)), page.data());
        }
      }
      for (const std::vector<PackPage>& list : lists) args.push_back({list.data(), static_cast<int>(list.size())});
      std::vector<float> room_k(2 * kPageTokens * kRow), room_v(room_k);
      kernels->pack_pages(kShape, args, room_k.data(), room_v.data());
      CHECK(memory == expected);
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
    std::vector<std::vector<float>> k, v, scores, like;
    std::vector<std::vector<half_t>> stored;
    std::vector<std::vector<uint8_t>> token_like;
    for (size_t i = 0; i < n; ++i) {
      worlds.push_back(std::make_unique<AttendWorld>(
          AttendShape{.heads = 1, .group = 1, .head_dim = 32, .pages = static_cast<int>(i % 5)},
          static_cast<unsigned>(40 + i)));
      const size_t items = i % 7 == 6 ? 0 : 3 + 11 * (i % 3), tokens = worlds.back()->positions.size();
      k.push_back(random.normals((items + 1) * kRow)), v.push_back(random.normals((items + 1) * kRow));
      scores.push_back(random.normals(items + 1)), stored.push_back(random.halves(tokens + 1));
      like.emplace_back(items + 1, 0.0f), token_like.emplace_back(tokens + 1, uint8_t{60});
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
      std::vector<float> one(like[i].size(), 0.0f);
      std::vector<uint8_t> tokens(token_like[i].size(), 60);
      LikenessArgs a = lanes[i];
      a.item_like = one.data(), a.token_like = tokens.data();
      kernels->likeness(a);
      CHECK(one == like[i]);
      CHECK(tokens == token_like[i]);
    }
  }
}
