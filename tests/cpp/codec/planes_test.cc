// Record codecs against float64: how far keys, values and logits are from what was encoded, that inner products are not
// biased, what the first plane alone is worth, and that nothing that can be given makes them anything but finite.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "backend/cpu/plain_ops.h"
#include "codec/rows.h"

using namespace mosaic;

namespace {

using Double = std::vector<double>;

// Keys as heads have them. kBiased: every channel far from zero, the same for all tokens, as QKV biases make it.
enum class Input { kNormal, kOutliers, kBiased };

struct Rows {
  std::vector<float> x, mean;  // [n, d], [d]
  int d;
  Rows(Input input, int n, int d, unsigned seed) : mean(static_cast<size_t>(d)), d(d) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> size(mean.size(), 1.0f);
    for (size_t c = 0; c < size.size(); ++c) {
      if (input == Input::kOutliers && c % 17 == 3) size[c] = 12;
      if (input == Input::kBiased) mean[c] = 20 * normal(random);
    }
    for (int i = 0; i < n * d; ++i) {
      const auto c = static_cast<size_t>(i % d);
      x.push_back(mean[c] + size[c] * normal(random));
    }
  }
  int count() const { return static_cast<int>(x.size()) / d; }
};

// Through a panel of 16 tokens at a time.
template <class Panel>
std::vector<float> coded(const Rows& rows, bool use_mean) {
  std::vector<float> out(rows.x.size());
  std::vector<std::byte> panel(Panel::bytes(rows.d));
  const float* const mean = use_mean ? rows.mean.data() : nullptr;
  for (int i = 0; i < rows.count(); ++i) {
    const size_t at = static_cast<size_t>(i * rows.d);
    encode_record<Panel>(panel.data(), rows.d, i % kPageTokens, &rows.x[at], mean);
    for (int c = 0; c < rows.d; ++c)
      out[at + static_cast<size_t>(c)] =
          static_cast<float>(Panel::level(Panel::code_at(panel.data(), rows.d, i % kPageTokens, c)));
    leave_hadamard(&out[at], rows.d, Panel::scale(panel.data(), rows.d, i % kPageTokens), mean);
  }
  return out;
}

double square_error(const Rows& rows, const std::vector<float>& out) {  // of what is left beside the mean
  double error = 0, power = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double x = rows.x[i], mean = rows.mean[i % static_cast<size_t>(rows.d)], y = out[i];
    error += (x - y) * (x - y);
    power += (x - mean) * (x - mean);
  }
  return error / power;
}

// What Lloyd-Max leaves of a normal distribution (Max 1960).
double lloyd_max(int bits) { return bits == 5 ? 0.002505 : bits == 4 ? 0.009501 : 0.03455; }

template <class Visit>
void for_bits(Visit&& visit) {
  visit(std::integral_constant<int, 3>{});
  visit(std::integral_constant<int, 4>{});
  visit(std::integral_constant<int, 5>{});
}

}  // namespace

TEST_CASE(
    "rows are as far from their codes as the best levels for a normal distribution allow, outliers and bias or not") {
  for (const Input input : {Input::kNormal, Input::kOutliers, Input::kBiased}) {
    for (const int d : {64, 128, 256}) {
      const Rows rows(input, 400, d, 3u + static_cast<unsigned>(d));
      for_bits([&](auto bits) {
        const double error = square_error(rows, coded<PlanePanel<bits>>(rows, true));
        CAPTURE(static_cast<int>(input));
        CAPTURE(d);
        CAPTURE(bits.value);
        // Rounded levels cost 1 %; a row of outliers in few channels is not quite normal after the transform.
        CHECK(error <= lloyd_max(bits) * (input == Input::kOutliers ? 1.2 : 1.05));
        CHECK(error >= lloyd_max(bits) * 0.8);
      });
    }
  }
}

TEST_CASE("heads that no power of two divides far lose little where channels are alike") {
  for (const int d : {1, 2, 5, 7, 13, 24, 33, 48, 80, 96, 112}) {
    const Rows rows(Input::kNormal, 200, d, 5);
    for_bits([&](auto bits) {
      const double error = square_error(rows, coded<PlanePanel<bits>>(rows, true));
      CAPTURE(d);
      CAPTURE(bits.value);
      CHECK(error <= lloyd_max(bits) * 1.1);  // a short row is better: its scale is its own
    });
  }
}

TEST_CASE("without the mean of its lane a biased key loses as much as its bias is larger than what tells keys apart") {
  const Rows rows(Input::kBiased, 200, 64, 9);
  const double with = square_error(rows, coded<PlanePanel<5>>(rows, true));
  const double without = square_error(rows, coded<PlanePanel<5>>(rows, false));
  CHECK(without > 100 * with);
}

TEST_CASE(
    "an inner product with what was coded keeps its size: the slope is 1 less the distortion, and no bias is left") {
  for (const int d : {64, 128}) {
    const Rows rows(Input::kNormal, 600, d, 31);
    std::mt19937 random(4);
    std::normal_distribution<double> normal;
    for_bits([&](auto bits) {
      const auto out = coded<PlanePanel<bits>>(rows, false);
      double own = 0, self = 0, xy = 0, xx = 0, sum = 0, square = 0;
      for (size_t at = 0; at < out.size(); at += static_cast<size_t>(d)) {
        Double q(static_cast<size_t>(d));
        for (double& number : q) number = normal(random);
        double exact = 0, near = 0;
        for (size_t c = 0; c < q.size(); ++c) {
          exact += q[c] * rows.x[at + c];
          near += q[c] * out[at + c];
          own += static_cast<double>(out[at + c]) * rows.x[at + c];
          self += static_cast<double>(out[at + c]) * out[at + c];
        }
        xy += exact * near, xx += exact * exact;
        sum += near - exact, square += (near - exact) * (near - exact);
      }
      CAPTURE(bits.value);
      const double n = rows.count();
      // The scale makes the error orthogonal to what is decoded.
      CHECK(own == doctest::Approx(self).epsilon(1e-3));
      CHECK(xy / xx == doctest::Approx(1 - lloyd_max(bits)).epsilon(0.01));
      CHECK(std::abs(sum / n) <= 4 * std::sqrt(square / n / n));          // within its standard error
      CHECK(std::sqrt(square / xx) <= std::sqrt(lloyd_max(bits)) * 1.1);  // logits' relative error
    });
  }
}

TEST_CASE(
    "the first plane alone orders keys nearly as a codec of two bits would, and its levels are the means of theirs") {
  const int d = 128;
  const Rows rows(Input::kNormal, 800, d, 12);
  for_bits([&](auto bits) {
    using Panel = PlanePanel<bits>;
    std::vector<std::byte> panel(Panel::bytes(d));
    Double sum(4), count(4);
    double xy = 0, xx = 0, yy = 0;
    for (int i = 0; i < rows.count(); ++i) {
      const float* const x = &rows.x[static_cast<size_t>(i * d)];
      encode_record<Panel>(panel.data(), d, 0, x, nullptr);
      std::vector<float> coarse(static_cast<size_t>(d));
      for (int c = 0; c < d; ++c) {
        const int code = Panel::code_at(panel.data(), d, 0, c), top = code >> (Panel::kBits - 2);
        // The first plane is those two bits, where the layout says.
        const auto byte = static_cast<int>(panel[static_cast<size_t>(c % Panel::quarter(d))]);
        REQUIRE((byte >> 2 * (c / Panel::quarter(d)) & 3) == top);
        sum[static_cast<size_t>(top)] += Panel::level(code), count[static_cast<size_t>(top)] += 1;
        coarse[static_cast<size_t>(c)] = static_cast<float>(Panel::coarse_level(code));
      }
      leave_hadamard(coarse.data(), d, Panel::scale(panel.data(), d, 0), nullptr);
      for (int c = 0; c < d; ++c) {
        const double a = x[c], b = coarse[static_cast<size_t>(c)];
        xy += a * b, xx += a * a, yy += b * b;
      }
    }
    CAPTURE(Panel::kBits);
    for (size_t top = 0; top < 4; ++top) {
      const int code = static_cast<int>(top) << (Panel::kBits - 2);
      CHECK(std::abs(Panel::coarse_level(code) - sum[top] / count[top]) <= 1.0);
    }
    // Lloyd-Max with four levels: 0.1175, a cosine of 0.939.
    CHECK(xy / std::sqrt(xx * yy) >= 0.937);
  });
}

TEST_CASE("a code rises with the number and is the nearest level") {
  for_bits([&](auto bits) {
    using Panel = PlanePanel<bits>;
    for (int i = -1500; i <= 1500; ++i) {
      const float x = static_cast<float>(i) * 0.1f;
      const int code = Panel::code(x);
      double best = 1e9;
      for (int other = 0; other < 2 * Panel::kHalf; ++other)
        best = std::min(best, std::abs(static_cast<double>(x) - Panel::level(other)));
      REQUIRE(std::abs(static_cast<double>(x) - Panel::level(code)) <= best + 1e-6);
      REQUIRE(Panel::code(x + 0.1f) >= code);
    }
    CHECK(Panel::code(0.0f) == Panel::code(-0.0f));
  });
}

TEST_CASE("record codecs take 4.25, 4.25, 3.75 and 3.25 bits a number at 64 channels, nothing lost to padding") {
  const auto bits = [](CodecId codec, int d) {
    return 8.0 * static_cast<double>(data_bytes(codec, {1, d})) / (32.0 * d);
  };
  CHECK(bits(CodecId::kK5V3, 64) == 4.25);
  CHECK(bits(CodecId::kK4V4, 64) == 4.25);
  CHECK(bits(CodecId::kK4V3, 64) == 3.75);
  CHECK(bits(CodecId::kK3V3, 64) == 3.25);
  CHECK(bits(CodecId::kK5V3, 128) == 4.125);
}

TEST_CASE("k8v8 decodes nothing that half precision does not hold") {
  const PageShape shape{1, 8};
  for (const float low : {0.0f, -65504.0f, 60000.0f, 65000.0f}) {
    std::vector<float> x(8, low), k(8), v(8);
    x[3] = 65504;
    std::vector<std::byte> page(data_bytes(CodecId::kK8V8, shape));
    cpu::PlainOps ops;
    ops.encode_row(CodecId::kK8V8, shape, x.data(), x.data(), 2, page.data());
    ops.decode(CodecId::kK8V8, shape, page.data(), 2, 3, k.data(), v.data(), 8);
    CHECK(k[3] <= 65504);
    CHECK(k[3] >= 65504 - 600);  // a step or so
    CHECK(k == v);
    CHECK(std::abs(k[0] - low) <= 600);
  }
}

TEST_CASE("k8v8 leaves every number within a step of its token's range, whatever its neighbours hold") {
  CHECK(8.0 * static_cast<double>(data_bytes(CodecId::kK8V8, {1, 64})) / (32.0 * 64) == 8.5);
  for (const Input input : {Input::kNormal, Input::kOutliers, Input::kBiased}) {
    for (const int d : {1, 5, 33, 64, 128}) {
      const Rows rows(input, kPageTokens, d, 17);
      const PageShape shape{1, d};
      std::vector<std::byte> page(data_bytes(CodecId::kK8V8, shape));
      std::vector<float> k(rows.x.size()), v(rows.x.size());
      cpu::PlainOps ops;
      for (int t = kPageTokens; t-- > 0;) {
        const float* const x = &rows.x[static_cast<size_t>(t * d)];
        ops.encode_row(CodecId::kK8V8, shape, x, x, t, page.data(), rows.mean.data());
      }
      ops.decode(CodecId::kK8V8, shape, page.data(), 0, kPageTokens, k.data(), v.data(), static_cast<size_t>(d));
      double error = 0, steps = 0;
      for (int t = 0; t < kPageTokens; ++t) {
        const auto first = rows.x.begin() + t * d;
        const auto [low, high] = std::minmax_element(first, first + d);
        const double below = std::abs(static_cast<double>(*low)) / 1024;  // how far down half precision takes it
        const double step = (static_cast<double>(*high) - *low + below) / 255 * 1.001;
        for (size_t i = static_cast<size_t>(t * d); i < static_cast<size_t>((t + 1) * d); ++i) {
          REQUIRE(std::abs(static_cast<double>(k[i]) - rows.x[i]) <= (d == 1 ? below : step / 2) + 1e-6);
          REQUIRE(k[i] == v[i]);
          error += (static_cast<double>(k[i]) - rows.x[i]) * (k[i] - rows.x[i]);
          steps += step * step / 12;
        }
      }
      if (d >= 33) CHECK(error <= 1.1 * steps);  // as even rounding of evenly spread numbers would leave
    }
  }
}

TEST_CASE(
    "NaN, infinities and numbers beyond half precision are coded as finite ones, and leave the other rows alone") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (int codec = 0; codec < kCodecs; ++codec) {
    const auto id = static_cast<CodecId>(codec);
    if (!codec_is_record(id) || codec_is_exact(id)) continue;
    for (const int d : {5, 64, 96}) {
      for (const float poison : {std::nanf(""), infinity, -infinity, 70000.0f, -3e38f, 1e-40f}) {
        for (const bool everywhere : {false, true}) {
          CAPTURE(codec_name(id));
          CAPTURE(poison);
          const PageShape shape{1, d};
          std::vector<float> good(static_cast<size_t>(d), 1.5f), bad(good), k(good), v(good);
          std::vector<std::byte> page(data_bytes(id, shape)), before;
          cpu::PlainOps ops;
          for (int t = 0; t < kPageTokens; ++t) ops.encode_row(id, shape, good.data(), good.data(), t, page.data());
          before = page;
          for (size_t c = 0; c < (everywhere ? bad.size() : 1); ++c) bad[c] = poison;
          ops.encode_row(id, shape, bad.data(), bad.data(), 7, page.data());
          ops.decode(id, shape, page.data(), 7, 8, k.data(), v.data(), k.size());
          for (int c = 0; c < d; ++c) {
            REQUIRE(std::isfinite(k[static_cast<size_t>(c)]));
            REQUIRE(std::isfinite(v[static_cast<size_t>(c)]));
            REQUIRE(std::abs(k[static_cast<size_t>(c)]) <= 1.5e6f);
          }
          ops.encode_row(id, shape, good.data(), good.data(), 7, page.data());
          CHECK(page == before);
        }
      }
    }
  }
}

TEST_CASE("a row of zeros, or of the mean, decodes to it exactly") {
  const PageShape shape{2, 48};
  const std::vector<float> mean(96, 3.25f), zero(96, 0.0f);
  std::vector<float> k(96, -1), v(96, -1);
  std::vector<std::byte> page(data_bytes(CodecId::kK5V3, shape));
  cpu::PlainOps ops;
  ops.encode_row(CodecId::kK5V3, shape, mean.data(), zero.data(), 3, page.data(), mean.data());
  ops.decode(CodecId::kK5V3, shape, page.data(), 3, 4, k.data(), v.data(), 96, mean.data());
  CHECK(k == mean);
  CHECK(v == zero);
}

TEST_CASE("small and large rows keep their relative error: the scale is a half") {
  for (const float size : {1e-4f, 1e-2f, 1.0f, 100.0f, 15000.0f}) {
    Rows rows(Input::kNormal, 64, 64, 77);
    for (float& x : rows.x) x *= size;
    CAPTURE(size);
    CHECK(square_error(rows, coded<PlanePanel<5>>(rows, false)) <= lloyd_max(5) * 1.1);
  }
}
