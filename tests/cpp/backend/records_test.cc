// What only record pages have: rows written and moved alone, masses by head and by page, likeness. Every implementation
// against the plain loops, and those against float64 or against themselves done the long way.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "codec/codecs.h"
#include "core/error.h"
#include "support/ops_world.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

std::vector<CodecId> record_codecs() {
  std::vector<CodecId> all;
  for (int codec = 0; codec < kCodecs; ++codec)
    if (codec_is_record(static_cast<CodecId>(codec))) all.push_back(static_cast<CodecId>(codec));
  return all;
}

Ops::Limits record_limits(PageShape shape, int tokens = 1, int group = 1) {
  return {.tokens = tokens, .q_heads = shape.heads * group, .shape = shape, .rows = 1};
}

bool near_all(const std::vector<float>& got, const std::vector<float>& expected, float tolerance) {
  bool near = got.size() == expected.size();
  for (size_t i = 0; near && i < got.size(); ++i)
    near = std::abs(got[i] - expected[i]) <= tolerance * std::max(1.0f, std::abs(expected[i]));
  return near;
}

}  // namespace

TEST_CASE("rows written into several pages are the rows of pages encoded at once, in any order, and touch no other") {
  Random random(3);
  for (const PageShape shape : {PageShape{1, 64}, {2, 33}, {3, 80}, {1, 5}, {2, 128}, {1, 96}}) {
    const auto row = static_cast<size_t>(shape.row());
    const size_t stride = row + 3;
    const auto k = random.normals(40 * stride, 4), v = random.normals(40 * stride, 4), mean = random.normals(row, 9);
    for (const CodecId id : record_codecs()) {
      Kernels plain("plain", 1, record_limits(shape));
      std::vector<std::vector<std::byte>> expected(3), pages(3);
      for (size_t p = 0; p < 3; ++p) {
        expected[p].resize(data_bytes(id, shape));
        const int count = p == 2 ? 8 : 16;
        plain->encode(id, shape, &k[p * 16 * stride], &v[p * 16 * stride], stride, count, expected[p].data(),
                      mean.data());
      }
      for (const std::string& name : implementations()) {
        CAPTURE(name);
        CAPTURE(codec_name(id));
        CAPTURE(shape.head_dim);
        Kernels kernels(name, 2, record_limits(shape));
        for (auto& page : pages) page.assign(data_bytes(id, shape), std::byte{0});
        std::vector<std::byte*> to;
        std::vector<int32_t> at;
        std::vector<float> mixed_k(k.size()), mixed_v(v.size());
        for (size_t i = 0; i < 40; ++i) {
          const size_t from = i * 23 % 40;  // another order
          to.push_back(pages[from / 16].data());
          at.push_back(static_cast<int32_t>(from % 16));
          std::copy_n(&k[from * stride], row, &mixed_k[i * stride]);
          std::copy_n(&v[from * stride], row, &mixed_v[i * stride]);
        }
        kernels->encode_rows(id, shape, mixed_k.data(), mixed_v.data(), stride, 40, to.data(), at.data(), mean.data());
        for (size_t p = 0; p < 3; ++p) CHECK(pages[p] == expected[p]);
      }
    }
  }
}

TEST_CASE("what any codec decodes of numbers at the ends of half precision may be kept in half precision again") {
  Random random(5);
  for (const PageShape shape : {PageShape{1, 16}, {2, 20}, {1, 33}, {2, 64}}) {
    const auto row = static_cast<size_t>(shape.row());
    const auto signs = random.normals(32 * row, 1);
    std::vector<float> k(16 * row), v(16 * row), k_out(16 * row), v_out(16 * row);
    for (size_t i = 0; i < k.size(); ++i) k[i] = signs[i] < 0 ? -65504.0f : 65504.0f;
    for (size_t i = 0; i < v.size(); ++i) v[i] = signs[k.size() + i] < 0.5f ? 0.0f : 65504.0f;
    for (int codec = 0; codec < kCodecs; ++codec) {
      const auto id = static_cast<CodecId>(codec);
      for (const std::string& name : implementations()) {
        CAPTURE(name);
        CAPTURE(codec_name(id));
        CAPTURE(shape.head_dim);
        Kernels kernels(name, 2, record_limits(shape));
        std::vector<std::byte> page(data_bytes(id, shape));
        kernels->encode(id, shape, k.data(), v.data(), row, 16, page.data());
        kernels->decode(id, shape, page.data(), 0, 16, k_out.data(), v_out.data(), row);
        const auto past = [](float x) { return !(std::abs(x) <= 65504.0f); };
        CHECK(std::none_of(k_out.begin(), k_out.end(), past));
        CHECK(std::none_of(v_out.begin(), v_out.end(), past));
      }
    }
  }
}

TEST_CASE("a moved row is the same bits, wherever it stood, and nothing else of the page changes") {
  Random random(5);
  for (const PageShape shape : {PageShape{1, 64}, {2, 33}, {3, 20}}) {
    const auto row = static_cast<size_t>(shape.row());
    const auto k = random.normals(16 * row, 4), v = random.normals(16 * row, 4);
    for (const CodecId id : record_codecs()) {
      Kernels plain("plain", 1, record_limits(shape));
      std::vector<std::byte> from(data_bytes(id, shape)), one(from.size());
      plain->encode(id, shape, k.data(), v.data(), row, 16, from.data());
      for (const std::string& name : implementations()) {
        CAPTURE(name);
        CAPTURE(codec_name(id));
        Kernels kernels(name, 1, record_limits(shape));
        std::vector<std::byte> to(from.size(), std::byte{0}), expected(from.size(), std::byte{0});
        for (int i = 0; i < 16; ++i) {
          kernels->move_row(id, shape, from.data(), i, to.data(), (i * 5 + 3) % 16);
          plain->encode_row(id, shape, &k[static_cast<size_t>(i) * row], &v[static_cast<size_t>(i) * row],
                            (i * 5 + 3) % 16, expected.data());
          REQUIRE(to == expected);
        }
        std::vector<std::byte> inside = from;  // within a page
        kernels->move_row(id, shape, inside.data(), 2, inside.data(), 9);
        one = from;
        plain->encode_row(id, shape, &k[2 * row], &v[2 * row], 9, one.data());
        CHECK(inside == one);
      }
    }
  }
  for (const std::string& name : implementations()) {
    Kernels kernels(name, 1, record_limits({1, 16}));
    std::vector<std::byte> page(data_bytes(CodecId::kFp32, {1, 16})), other(page);  // room for any codec
    std::vector<float> x(16);
    std::byte* to = page.data();
    const int32_t at = 0;
    CHECK_THROWS_AS(kernels->move_row(CodecId::kInt4, {1, 16}, page.data(), 0, other.data(), 1), InvariantError);
    CHECK_THROWS_AS(kernels->encode_rows(CodecId::kInt8, {1, 16}, x.data(), x.data(), 16, 1, &to, &at), InvariantError);
  }
}

TEST_CASE("attention and mass of a page do not look at the rows its mask leaves out") {
  for (int codec = 0; codec < kCodecs; ++codec) {
    const AttendShape shape{.heads = 2,
                            .group = 3,
                            .head_dim = 64,
                            .tokens = 5,
                            .pages = 7,
                            .block = true,
                            .rope = {.rotary_dim = 64, .theta = 1e4f},
                            .codec = codec};
    AttendWorld world(shape, 50u + static_cast<unsigned>(codec));
    // The tokens that are attended, each in a page entry of its own.
    std::vector<PageEntry> single;
    for (const PageEntry& page : world.pages)
      for (int i = page.begin(); i < page.end(); ++i)
        if (page.has(i)) single.push_back({page.data, page.first + i - page.begin(), rows_of(i, i + 1), page.codec});
    for (const std::string& name : implementations()) {
      CAPTURE(name);
      CAPTURE(codec);
      Kernels kernels(name, 2, record_limits({2, 64}, 5, 3));
      kernels->attend(world.args);
      const auto out = world.out, lse = world.lse;
      std::vector<float> mass(world.positions.size(), -5), other(world.positions.size(), -5);
      kernels->attention_mass({&world.args, mass.data(), nullptr, 0});
      AttendArgs apart = world.args;
      apart.pages = single.data(), apart.n_pages = static_cast<int>(single.size());
      kernels->attend(apart);
      const float tolerance = codec != 0 && on_tensor_cores(name, 64) ? 1e-2f : 2e-5f;  // weights are rounded there
      CHECK(near_all(world.out, out, tolerance));
      CHECK(near_all(world.lse, lse, tolerance));
      kernels->attention_mass({&apart, other.data(), nullptr, 0});
      for (const PageEntry& page : world.pages) {
        for (int i = page.begin(); i < page.end(); ++i) {
          const auto at = static_cast<size_t>(page.first + i - page.begin());
          if (!page.has(i)) {
            CHECK(mass[at] == 0);
          } else {
            CHECK(mass[at] == doctest::Approx(other[at]).epsilon(1e-4));
          }
        }
      }
    }
  }
}

TEST_CASE("mass by head sums to the mass of all, and of some pages is what those pages have of all") {
  unsigned seed = 70;
  for (const AttendShape& shape : {AttendShape{.heads = 2,
                                               .group = 3,
                                               .head_dim = 64,
                                               .tokens = 7,
                                               .pages = 9,
                                               .rows = 21,
                                               .block = true,
                                               .rope = {.rotary_dim = 64, .theta = 1e4f}},
                                   AttendShape{.heads = 1,
                                               .group = 7,
                                               .head_dim = 33,
                                               .tokens = 19,
                                               .pages = 5,
                                               .rows = 3,
                                               .block = true,
                                               .rope = {.rotary_dim = 14, .theta = 1e4f}},
                                   AttendShape{.heads = 3,
                                               .group = 1,
                                               .head_dim = 5,
                                               .tokens = 1,
                                               .pages = 9,
                                               .rope = {.rotary_dim = 4, .theta = 1e4f}}}) {
    AttendWorld world(shape, ++seed);
    const auto heads = static_cast<size_t>(shape.heads * shape.group), tokens = world.positions.size();
    const Ops::Limits limits{
        .tokens = shape.tokens, .q_heads = static_cast<int>(heads), .shape = world.args.shape, .rows = shape.rows + 1};
    Kernels plain("plain", 1, limits);
    plain->attend(world.args);
    const auto rows = static_cast<size_t>(shape.rows), block = static_cast<size_t>(shape.tokens);
    const size_t stride = tokens + 5;
    std::vector<float> pages_sum(tokens + 1), rows_sum(rows + 1), block_sum(block + 1);
    plain->attention_mass({&world.args, pages_sum.data(), rows_sum.data(), 0, block_sum.data()});
    std::vector<float> first;
    for (const std::string& name : implementations()) {
      CAPTURE(name);
      CAPTURE(seed);
      Kernels kernels(name, 3, limits);
      std::vector<float> by_page(heads * stride, -9), by_row(heads * rows + 1, -9), by_block(heads * block, -9);
      MassArgs m{&world.args, by_page.data(), by_row.data(), 0, by_block.data()};
      m.by_head = true, m.mass_stride = stride;
      kernels->attention_mass(m);
      std::vector<float> sum(tokens + 1), row_total(rows + 1), block_total(block + 1);
      for (size_t h = 0; h < heads; ++h) {
        for (size_t i = 0; i < tokens; ++i) sum[i] += by_page[h * stride + i];
        for (size_t i = 0; i < rows; ++i) row_total[i] += by_row[h * rows + i];
        for (size_t i = 0; i < block; ++i) block_total[i] += by_block[h * block + i];
        for (size_t i = tokens; i < stride; ++i) CHECK(by_page[h * stride + i] == -9);
      }
      for (size_t i = 0; i < tokens; ++i) REQUIRE(sum[i] == doctest::Approx(pages_sum[i]).epsilon(2e-4));
      for (size_t i = 0; i < rows; ++i) REQUIRE(row_total[i] == doctest::Approx(rows_sum[i]).epsilon(2e-4));
      for (size_t i = 0; i < block; ++i) REQUIRE(block_total[i] == doctest::Approx(block_sum[i]).epsilon(2e-4));
      if (first.empty()) first = by_page;
      CHECK(near_all(by_page, first, 2e-4f));

      for (const int from : {0, 2, shape.pages - 1, shape.pages}) {
        for (const int n : {-1, 0, 1}) {
          if (n > 0 && from + n > shape.pages) continue;
          std::vector<float> part(heads * stride, -9);
          MassArgs some{&world.args, part.data(), nullptr, 0};
          some.first_page = from, some.n_pages = n, some.by_head = true, some.mass_stride = stride;
          kernels->attention_mass(some);
          std::vector<float> expected(heads * stride, -9);
          for (int p = from; p < (n < 0 ? shape.pages : from + n); ++p) {
            const PageEntry& page = world.pages[static_cast<size_t>(p)];
            for (size_t h = 0; h < heads; ++h)
              std::copy_n(&by_page[h * stride + static_cast<size_t>(page.first)], page.span(),
                          &expected[h * stride + static_cast<size_t>(page.first)]);
          }
          CHECK(near_all(part, expected, 1e-5f));
        }
      }
    }
  }
}

// Codes of numbers that differ by a rounding.
bool near_codes(const std::vector<uint8_t>& got, const std::vector<uint8_t>& expected) {
  return std::ranges::equal(got, expected, [](int a, int b) { return std::abs(a - b) <= 1; });
}

TEST_CASE("likeness finds the most alike of those with a higher score, constants added to all change nothing") {
  for (const float shift : {0.0f, 40.0f}) {
    for (const PageShape shape : {PageShape{1, 64}, {2, 33}, {1, 128}, {1, 5}, {1, 80}}) {
      const auto row = static_cast<size_t>(shape.row());
      AttendWorld world({.heads = shape.heads, .group = 1, .head_dim = shape.head_dim, .pages = 19}, 8);
      Random random(91);
      const int items = 37;
      const size_t stride = row + 4, tokens = world.positions.size();
      std::vector<float> k(items * stride), v(items * stride), k_mean(world.key_mean), v_mean(row, 0.7f);
      // Some items repeat stored tokens, some repeat each other, the rest are new.
      std::vector<float> one_k(row), one_v(row);
      Kernels plain("plain", 1, record_limits(shape, items));
      for (size_t i = 0; i < items; ++i) {
        const auto fresh_k = random.normals(row), fresh_v = random.normals(row);
        for (size_t c = 0; c < row; ++c) k[i * stride + c] = k_mean[c] + fresh_k[c], v[i * stride + c] = fresh_v[c];
        const PageEntry& page = world.pages[i % world.pages.size()];
        if (i % 3 == 0 && page.rows != 0) {
          plain->decode(page.codec, shape, page.data, page.begin(), page.begin() + 1, one_k.data(), one_v.data(), row,
                        k_mean.data());
          for (size_t c = 0; c < row; ++c)
            k[i * stride + c] = one_k[c] + 0.1f * fresh_k[c], v[i * stride + c] = one_v[c] + 0.1f * fresh_v[c];
        } else if (i % 3 == 1 && i > 5) {
          for (size_t c = 0; c < row; ++c)
            k[i * stride + c] = k[(i - 4) * stride + c] + 0.2f * fresh_k[c],
                           v[i * stride + c] = v[(i - 4) * stride + c];
        }
      }
      std::vector<float> item_score(items);
      std::vector<half_t> token_score(tokens);
      for (float& s : item_score) s = static_cast<float>(random.below(9));  // ties
      for (half_t& s : token_score) s = float_to_half(static_cast<float>(random.below(9)));
      LikenessArgs a;
      a.items = items, a.stride = stride, a.shape = shape, a.pages = world.pages.data(),
      a.n_pages = static_cast<int>(world.pages.size());
      std::vector<float> all_k(k), all_mean(k_mean);
      if (shift != 0) {
        for (float& x : all_k) x += shift;
        for (float& x : all_mean) x += shift;
      }
      a.k = all_k.data(), a.v = v.data(), a.key_mean = all_mean.data(), a.value_mean = v_mean.data();
      a.item_score = item_score.data(), a.token_score = token_score.data();
      std::vector<float> expected_item(items, 0.0f);
      std::vector<uint8_t> expected_token(tokens, 13);
      a.item_like = expected_item.data(), a.token_like = expected_token.data();
      // Other pages hold keys, not what is left of them: they stay where they are when all keys move.
      std::vector<PageEntry> moved;
      for (const PageEntry& page : world.pages)
        if (shift == 0 || with_codec(page.codec, [](auto c) { return decltype(c)::kHadamard; })) moved.push_back(page);
      a.pages = moved.data(), a.n_pages = static_cast<int>(moved.size());
      plain->likeness(a);
      if (shift == 0) {
        int found = 0;
        for (const float like : expected_item) found += like > 0.9f;
        CHECK(found >= 3);
        for (const float like : expected_item) CHECK((like >= 0 && like <= 1.0001f));
        for (const uint8_t like : expected_token) CHECK(like >= 13);
        CHECK(std::ranges::any_of(expected_token, [](uint8_t like) { return like > 200; }));
      } else {
        a.key_mean = k_mean.data(), a.k = k.data();
        std::vector<float> item(items, 0.0f);
        std::vector<uint8_t> token(tokens, 13);
        a.item_like = item.data(), a.token_like = token.data();
        plain->likeness(a);
        CHECK(near_all(item, expected_item, 1e-4f));
        CHECK(near_codes(token, expected_token));
      }
      for (const std::string& name : implementations()) {
        for (const int threads : {1, 3}) {
          CAPTURE(name);
          CAPTURE(shape.head_dim);
          CAPTURE(threads);
          Kernels kernels(name, threads, record_limits(shape, items));
          std::vector<float> item(items, 0.0f);
          std::vector<uint8_t> token(tokens, 13);
          a.k = all_k.data(), a.key_mean = all_mean.data();
          a.item_like = item.data(), a.token_like = token.data();
          kernels->likeness(a);
          CHECK(near_all(item, expected_item, 1e-4f));
          CHECK(near_codes(token, expected_token));
        }
      }
    }
  }
}

TEST_CASE("likeness of nothing to nothing is zero, and items alone are compared with each other") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, record_limits({1, 16}, 3));
    std::vector<float> k(48, 0.0f), v(48, 1.0f), score{1, 2, 3}, like{0, 0, 0.25f};
    for (int c = 0; c < 16; ++c) k[16 + static_cast<size_t>(c)] = k[32 + static_cast<size_t>(c)] = 1;
    LikenessArgs a;
    a.k = k.data(), a.v = v.data(), a.items = 3, a.stride = 16, a.shape = {1, 16};
    a.item_score = score.data(), a.item_like = like.data();
    kernels->likeness(a);
    CHECK(like[0] == 0);  // its key is the zero vector
    CHECK(like[1] == doctest::Approx(1));
    CHECK(like[2] == 0.25f);  // nothing has a higher score: it is as it was
    a.items = 0;
    kernels->likeness(a);
  }
}
