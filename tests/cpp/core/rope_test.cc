// RopeTable: angles of any position from two short tables, and which of (t, h, w) drives which frequency.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/rope.h"

using namespace mosaic;

namespace {

std::string axes(const RopeSpec& spec) {
  std::string text;
  for (int i = 0; i < spec.frequencies(); ++i) text += "thw"[spec.axis_of(i)];
  return text;
}

}  // namespace

TEST_CASE("a table of scaled frequencies rotates by those and not by theta's") {
  const double scaled[5] = {1.0, 0.31, 0.07, 1e-3, 0.0};
  const RopeSpec spec{.head_dim = 10, .rotary_dim = 10, .theta = 1e4f, .scaled = scaled};
  std::vector<std::byte> memory(RopeTable::bytes_for(spec, 5001));
  const RopeTable table(spec, 5001, memory.data());
  float cos[5], sin[5];
  for (int p : {0, 1, 63, 64, 777, 5000}) {
    table.row(p, 0, 0, cos, sin);
    for (int i = 0; i < 5; ++i) {
      REQUIRE(std::abs(cos[i] - std::cos(p * scaled[i])) < 4e-7);
      REQUIRE(std::abs(sin[i] - std::sin(p * scaled[i])) < 4e-7);
    }
  }
}

TEST_CASE("a row of the table is cos and sin of position times frequency, far out too") {
  for (float theta : {1e4f, 1e6f}) {
    const RopeSpec spec{.head_dim = 128, .rotary_dim = 128, .theta = theta};
    const int last = 200000;
    std::vector<std::byte> memory(RopeTable::bytes_for(spec, last + 1));
    const RopeTable table(spec, last + 1, memory.data());
    CHECK(memory.size() < 2u << 20);
    float cos[64], sin[64];
    for (int p : {0, 1, 5, 63, 64, 65, 127, 128, 4095, 12543, 99999, last}) {
      table.row(p, 0, 0, cos, sin);
      for (int i = 0; i < 64; ++i) {
        const double angle = p * std::pow(static_cast<double>(theta), -2.0 * i / 128);
        REQUIRE(std::abs(cos[i] - std::cos(angle)) < 4e-7);
        REQUIRE(std::abs(sin[i] - std::sin(angle)) < 4e-7);
      }
    }
  }
}

TEST_CASE("M-RoPE gives frequencies to t, h, w in chunks or in turns") {
  CHECK(axes({.rotary_dim = 16}) == "tttttttt");
  CHECK(axes({.rotary_dim = 16, .sections = {2, 3, 3}}) == "tthhhwww");
  CHECK(axes({.rotary_dim = 16, .sections = {4, 2, 2}, .sections_interleaved = true}) == "thwthwtt");
  const std::string qwen3 = axes({.rotary_dim = 128, .sections = {24, 20, 20}, .sections_interleaved = true});
  CHECK(std::count(qwen3.begin(), qwen3.end(), 't') == 24);
  CHECK(std::count(qwen3.begin(), qwen3.end(), 'h') == 20);
  CHECK(std::count(qwen3.begin(), qwen3.end(), 'w') == 20);
  const RopeSpec spec{.head_dim = 16, .rotary_dim = 16, .sections = {2, 3, 3}};
  std::vector<std::byte> memory(RopeTable::bytes_for(spec, 300));
  const RopeTable table(spec, 300, memory.data());
  float cos[8], sin[8];
  table.row(7, 130, 299, cos, sin);
  for (int i = 0; i < 8; ++i) {
    const double angle = (i < 2 ? 7 : i < 5 ? 130 : 299) * std::pow(10000.0, -2.0 * i / 16);
    CHECK(cos[i] == doctest::Approx(std::cos(angle)).epsilon(1e-6));
    CHECK(sin[i] == doctest::Approx(std::sin(angle)).epsilon(1e-6));
  }
}

TEST_CASE("rotation turns pairs, keeps their length and leaves the channels beyond rotary_dim alone") {
  for (RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
    const RopeSpec spec{.head_dim = 10, .rotary_dim = 6, .theta = 100.0f, .layout = layout};
    std::vector<std::byte> memory(RopeTable::bytes_for(spec, 100));
    const RopeTable table(spec, 100, memory.data());
    float cos[3], sin[3];
    table.row(77, 0, 0, cos, sin);
    float x[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    rotate(spec, cos, sin, x);
    for (int i = 0; i < 3; ++i) {
      const int a = layout == RopeLayout::kHalf ? i : 2 * i, b = layout == RopeLayout::kHalf ? i + 3 : 2 * i + 1;
      const float re = static_cast<float>(a + 1), im = static_cast<float>(b + 1);
      CHECK(x[a] == doctest::Approx(re * cos[i] - im * sin[i]));
      CHECK(x[b] == doctest::Approx(im * cos[i] + re * sin[i]));
      CHECK(x[a] * x[a] + x[b] * x[b] == doctest::Approx(re * re + im * im));
    }
    for (int c = 6; c < 10; ++c) CHECK(x[c] == static_cast<float>(c + 1));
  }
  CHECK(RopeTable::bytes_for({.head_dim = 8, .layout = RopeLayout::kNone}, 100) == 0);
}
