// attend, attention_mass, merge: every instruction set against the plain loops, and what must hold for any of them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/ops_world.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

RopeSpec no_rope() { return {.layout = RopeLayout::kNone}; }
RopeSpec half(int rotary) { return {.rotary_dim = rotary, .theta = 1e4f}; }
RopeSpec interleaved(int rotary) { return {.rotary_dim = rotary, .theta = 1e6f, .layout = RopeLayout::kInterleaved}; }
RopeSpec follows(int t, int h, int w) {
  return {.rotary_dim = 2 * (t + h + w),
          .theta = 5e6f,
          .sections = {t, h, w},
          .sections_interleaved = true,
          .grid_follows_time = true};
}
RopeSpec multi(int t, int h, int w, bool turns) {
  return {.rotary_dim = 2 * (t + h + w), .theta = 1e6f, .sections = {t, h, w}, .sections_interleaved = turns};
}

Ops::Limits limits_of(const AttendShape& s) {
  return {.tokens = s.tokens + 3, .q_heads = s.heads * s.group, .shape = {s.heads, s.head_dim}, .rows = s.rows};
}

void check_near(const std::vector<float>& got, const std::vector<float>& expected, float tolerance) {
  REQUIRE(got.size() == expected.size());
  float worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;  // infinities too
    const float error = std::abs(got[i] - expected[i]) / std::max(1.0f, std::abs(expected[i]));
    worst = error <= worst ? worst : error;  // NaN wins
  }
  CHECK(worst <= tolerance);
}

const AttendShape kShapes[] = {
    {.pages = 0},
    {.tokens = 0, .pages = 2},
    {.pages = 1, .rope = half(32)},
    {.pages = 0, .rows = 1, .rope = half(32)},
    {.tokens = 1, .pages = 0, .block = true, .rope = half(32)},
    {.tokens = 5, .pages = 7, .rows = 13, .block = true, .rope = half(32)},
    {.heads = 4, .group = 7, .head_dim = 128, .tokens = 1, .pages = 33, .rows = 17, .block = true, .rope = half(128)},
    {.heads = 2,
     .group = 8,
     .head_dim = 128,
     .tokens = 3,
     .pages = 16,
     .rows = 15,
     .block = true,
     .rope = multi(16, 24, 24, false)},
    {.heads = 1,
     .group = 3,
     .head_dim = 64,
     .tokens = 17,
     .pages = 9,
     .rows = 5,
     .block = true,
     .rope = multi(12, 10, 10, true)},
    {.heads = 2,
     .group = 3,
     .head_dim = 24,
     .tokens = 5,
     .pages = 13,
     .rows = 7,
     .block = true,
     .rope = follows(4, 4, 4)},
    {.heads = 3, .group = 1, .head_dim = 80, .tokens = 15, .pages = 12, .rows = 16, .block = true, .rope = half(24)},
    {.heads = 1, .group = 2, .head_dim = 80, .tokens = 7, .pages = 5, .block = true, .rope = interleaved(80)},
    {.heads = 2,
     .group = 5,
     .head_dim = 33,
     .tokens = 13,
     .pages = 6,
     .rows = 33,
     .block = true,
     .rope = interleaved(14)},
    {.heads = 2, .group = 1, .head_dim = 5, .tokens = 16, .pages = 6, .rows = 3, .block = true, .rope = half(4)},
    {.heads = 1, .group = 1, .head_dim = 1, .tokens = 33, .pages = 2, .rows = 1, .block = true, .rope = no_rope()},
    {.heads = 2, .group = 2, .head_dim = 32, .tokens = 70, .pages = 20, .rows = 3, .block = true, .rope = half(32)},
    {.heads = 4, .group = 7, .head_dim = 128, .tokens = 19, .pages = 17, .block = true, .rope = half(128)},
    // At most eight query rows: CUDA reads packed pages from their planes (cuda/attend_packed.h).
    {.heads = 2, .group = 4, .head_dim = 64, .tokens = 2, .pages = 43, .rows = 5, .block = true, .rope = half(64)},
    {.heads = 1, .group = 8, .head_dim = 128, .tokens = 1, .pages = 23, .rope = multi(16, 24, 24, false)},
    {.heads = 2, .group = 1, .head_dim = 64, .tokens = 3, .pages = 21, .block = true, .rope = multi(8, 12, 12, false)},
    {.heads = 1, .group = 3, .head_dim = 128, .tokens = 2, .pages = 12, .block = true, .rope = multi(24, 20, 20, true)},
};

// Against the plain loops. Tensor cores round the operands of all parts but the exact ones.
float tolerance(const std::string& name, const AttendShape& shape) {
  const bool exact = (shape.pages == 0 || shape.codec == static_cast<int>(CodecId::kFp32)) && shape.rows == 0;
  return on_tensor_cores(name, shape.head_dim) && !exact ? 1e-2f : 3e-5f;
}

// One thread and several; once where there are no workers that could differ.
std::vector<int> thread_counts(const std::string& name) {
  return name == "plain" || name == "shim" ? std::vector<int>{1} : std::vector<int>{1, 3};
}

// Every shape with pages of all codecs in turn, and again with exact parts alone.
std::vector<AttendShape> mixed_and_exact() {
  std::vector<AttendShape> all(std::begin(kShapes), std::end(kShapes));
  for (AttendShape shape : kShapes) {
    shape.codec = static_cast<int>(CodecId::kFp32), shape.rows = 0;
    all.push_back(shape);
  }
  return all;
}

}  // namespace

TEST_CASE("every instruction set attends as the plain loops do, with one thread or several") {
  unsigned seed = 1;
  for (const AttendShape& shape : mixed_and_exact()) {
    AttendWorld world(shape, ++seed);
    Kernels plain("plain", 1, limits_of(shape));
    plain->attend(world.args);
    const auto out = world.out, lse = world.lse;
    for (const std::string& name : implementations()) {
      for (int threads : thread_counts(name)) {
        CAPTURE(name);
        CAPTURE(threads);
        CAPTURE(seed);
        Kernels kernels(name, threads, limits_of(shape));
        world.out.assign(world.out.size(), -77);
        world.lse.assign(world.lse.size(), -77);
        kernels->attend(world.args);
        check_near(world.out, out, tolerance(name, shape));
        check_near(world.lse, lse, tolerance(name, shape));
      }
    }
  }
}

TEST_CASE("packed pages alone, of every codec, are attended as the plain loops do by few query rows and by many") {
  unsigned seed = 400;
  for (int codec = 0; codec < kCodecs; ++codec) {
    if (!codec_is_record(static_cast<CodecId>(codec))) continue;
    for (const int d : {64, 128}) {
      for (const int tokens : {1, 6}) {
        const AttendShape shape{
            .heads = 2, .group = 4, .head_dim = d, .tokens = tokens, .pages = 37, .rope = half(d), .codec = codec};
        AttendWorld world(shape, ++seed);
        Kernels plain("plain", 1, limits_of(shape));
        plain->attend(world.args);
        const auto out = world.out, lse = world.lse;
        for (const std::string& name : implementations()) {
          CAPTURE(name);
          CAPTURE(seed);
          Kernels kernels(name, 1, limits_of(shape));
          kernels->attend(world.args);
          check_near(world.out, out, tolerance(name, shape));
          check_near(world.lse, lse, tolerance(name, shape));
        }
      }
    }
  }
}

TEST_CASE("a lane may be some of the heads the scratch was planned for") {
  const AttendShape all{.heads = 4, .group = 7, .head_dim = 128, .tokens = 90};
  AttendShape one = all;
  one.heads = 1, one.pages = 9, one.rows = 5, one.block = true, one.rope = half(128);
  AttendWorld world(one, 31);
  Kernels plain("plain", 1, limits_of(all));
  plain->attend(world.args);
  const auto out = world.out, lse = world.lse;
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 3, limits_of(all));
    kernels->attend(world.args);
    check_near(world.out, out, tolerance(name, one));
    check_near(world.lse, lse, tolerance(name, one));
  }
}

TEST_CASE("the same call gives the same bits every time, whatever worker comes first") {
  const AttendShape shape{
      .heads = 4, .group = 7, .head_dim = 64, .tokens = 3, .pages = 90, .rows = 40, .block = true, .rope = half(64)};
  AttendWorld world(shape, 5);
  for (const std::string& name : implementations()) {
    Kernels kernels(name, 3, limits_of(shape));
    kernels->attend(world.args);
    const auto out = world.out, lse = world.lse;
    const bool alone = name == "plain" || name == "shim";  // no workers, so nobody comes first
    for (int repeat = 0; repeat < (alone ? 2 : 20); ++repeat) {
      kernels->attend(world.args);
      CHECK(world.out == out);
      CHECK(world.lse == lse);
    }
  }
}

TEST_CASE("parts attended apart and merged equal everything attended at once") {
  const AttendShape shape{
      .heads = 2, .group = 3, .head_dim = 48, .tokens = 5, .pages = 11, .rows = 9, .block = true, .rope = half(48)};
  AttendWorld world(shape, 9);
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 2, limits_of(shape));
    const size_t stride = world.args.q_stride;
    kernels->attend(world.args);
    const auto all = world.out, all_lse = world.lse;
    std::vector<float> out(all.size(), 0), lse(all_lse.size(), -std::numeric_limits<float>::infinity());
    auto add = [&](int first_page, int pages, int rows, bool block) {
      AttendArgs part = world.args;
      part.pages += first_page;
      part.n_pages = pages;
      part.n_rows = rows;
      if (!block) part.block_k = nullptr;
      kernels->attend(part);
      kernels->merge({out.data(), lse.data(), 5, 6, 48, stride, world.out.data(), world.lse.data()});
      kernels->wait();
    };
    add(0, 4, 0, false);
    add(4, 0, 0, false);  // nothing at all changes nothing
    add(4, 7, 0, false);
    add(0, 0, 9, false);
    add(0, 0, 0, true);
    for (int t = 0; t < 5; ++t) {
      const auto row = [&](const std::vector<float>& x) {
        const float* const at = x.data() + static_cast<size_t>(t) * stride;
        return std::vector<float>(at, at + 6 * 48);
      };
      check_near(row(out), row(all), 2e-5f);
    }
    check_near(lse, all_lse, 2e-5f);
  }
}

TEST_CASE("a row that the heads of a group share is merged as one that is given for every query") {
  constexpr int kTokens = 3, kHeads = 6, kGroup = 3, kDim = 40, kStride = kHeads * kDim + 8;
  Random random(31);
  const auto out = random.normals(kTokens * kStride), lse = random.normals(kTokens * kHeads);
  const auto row = random.normals(kHeads / kGroup * kDim);
  auto row_lse = random.normals(kHeads);
  row_lse[4] = -std::numeric_limits<float>::infinity();  // nothing is to be added there
  std::vector<float> each(kTokens * kStride), each_lse;
  for (int t = 0; t < kTokens; ++t) {
    for (int h = 0; h < kHeads; ++h)
      std::copy_n(row.begin() + h / kGroup * kDim, kDim, each.begin() + t * kStride + h * kDim);
    each_lse.insert(each_lse.end(), row_lse.begin(), row_lse.end());
  }
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, {kTokens, kHeads, {kHeads / kGroup, kDim}});
    auto shared = out, shared_lse = lse, apart = out, apart_lse = lse;
    kernels->merge(
        {shared.data(), shared_lse.data(), kTokens, kHeads, kDim, kStride, row.data(), row_lse.data(), kGroup});
    kernels->merge({apart.data(), apart_lse.data(), kTokens, kHeads, kDim, kStride, each.data(), each_lse.data()});
    kernels->wait();
    CHECK(shared == apart);
    CHECK(shared_lse == apart_lse);
    CHECK(shared_lse[4] == lse[4]);
    const double mine = std::exp(lse[0]), theirs = std::exp(row_lse[0]);
    CHECK(shared[1] == doctest::Approx((mine * out[1] + theirs * row[1]) / (mine + theirs)).epsilon(1e-5));
    CHECK(shared_lse[0] == doctest::Approx(std::log(mine + theirs)).epsilon(1e-5));
    CHECK(
        std::equal(shared.begin() + kHeads * kDim, shared.begin() + kStride, out.begin() + kHeads * kDim));  // between
  }
}

TEST_CASE("a query of the block sees the tokens up to itself and no later one") {
  const AttendShape shape{.tokens = 35, .pages = 2, .block = true, .rope = half(32)};
  for (const std::string& name : implementations()) {
    AttendWorld world(shape, 21);
    Kernels kernels(name, 2, limits_of(shape));
    kernels->attend(world.args);
    const auto before = world.out;
    for (int changed : {34, 17, 16, 15, 1}) {
      for (size_t i = changed * world.args.kv_stride; i < world.block_v.size(); ++i)
        world.block_v[i] += 1, world.block_k[i] -= 1;
      kernels->attend(world.args);
      const auto first = before.cbegin(), now = world.out.cbegin();
      CHECK(std::equal(first, first + changed * world.args.q_stride, now));
      CHECK_FALSE(std::equal(first + changed * world.args.q_stride, first + changed * world.args.q_stride + 8,
                             now + changed * world.args.q_stride));
    }
  }
}

TEST_CASE("logits far beyond what exp can hold stay finite and the largest wins") {
  for (const std::string& name : implementations()) {
    for (float size : {1e4f, -1e4f, 1e30f}) {
      CAPTURE(name);
      CAPTURE(size);
      const AttendShape shape{.heads = 1, .group = 1, .head_dim = 32, .pages = 4, .rope = no_rope(), .codec = 0};
      AttendWorld world(shape, 3);
      for (float& x : world.q) x *= size;
      Kernels kernels(name, 1, limits_of(shape));
      kernels->attend(world.args);
      Kernels plain("plain", 1, limits_of(shape));
      const auto out = world.out;
      plain->attend(world.args);
      check_near(out, world.out, 1e-3f);
      for (int c = 0; c < 32; ++c) CHECK(std::isfinite(out[c]));
    }
  }
}

TEST_CASE("attention mass is what the last query paid: it equals the plain loops and sums to the heads") {
  unsigned seed = 100;
  for (const AttendShape& shape : kShapes) {
    if (shape.tokens == 0) continue;
    AttendWorld world(shape, ++seed);
    world.args.block_k = nullptr;
    Kernels plain("plain", 1, limits_of(shape));
    plain->attend(world.args);
    std::vector<float> page_mass(world.positions.size() + 1, -5), row_mass(world.rows.size() + 1, -5);
    plain->attention_mass({&world.args, page_mass.data(), row_mass.data()});
    double sum = 0;
    for (size_t i = 0; i < world.positions.size(); ++i) sum += page_mass[i];
    for (size_t i = 0; i < world.rows.size(); ++i) sum += row_mass[i];
    if (shape.pages + shape.rows > 0) CHECK(sum == doctest::Approx(shape.heads * shape.group));
    for (const std::string& name : implementations()) {
      CAPTURE(name);
      CAPTURE(seed);
      Kernels kernels(name, 2, limits_of(shape));
      std::vector<float> pages(page_mass.size(), -5), rows(row_mass.size(), -5);
      kernels->attention_mass({&world.args, pages.data(), rows.data()});
      check_near(pages, page_mass, 1e-4f);
      check_near(rows, row_mass, 1e-4f);
    }
  }
}

TEST_CASE("sizes beyond the planned scratch are refused before anything is written") {
  const AttendShape shape{.heads = 2, .group = 2, .head_dim = 32};
  AttendWorld world(shape, 3);
  for (const std::string& name : implementations()) {
    if (name == "plain") continue;
    Kernels kernels(name, 1, {.tokens = 1, .q_heads = 3, .shape = {2, 32}});
    CHECK_THROWS(kernels->attend(world.args));
    CHECK(world.out[0] == -77);
  }
}
