// Codecs: layout, equal bytes for equal input, and how far decoded numbers are from what was encoded.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cpu/plain_ops.h"
#include "codec/codecs.h"
#include "core/error.h"

using namespace mosaic;

namespace {

constexpr CodecId kAllCodecs[] = {
#define MOSAIC_CODEC(id, name, ...) CodecId::id,
#include "codec/codecs.def"
#undef MOSAIC_CODEC
};

// The most that relative_rms (below) may be; none for packed planes, which are held to Lloyd-Max's in planes_test.cc. A codec
// without a line here does not compile (CI), and is refused where it is met.
std::optional<double> most_rms(CodecId codec) {
  switch (codec) {
    case CodecId::kFp32:
      return 0;
    case CodecId::kFp16:
      return 5e-4;
    case CodecId::kInt8:
      return 8e-3;
    case CodecId::kK8V8:
      return 2e-2;
    case CodecId::kInt4:
      return 0.13;
    case CodecId::kK5V3:
    case CodecId::kK4V4:
    case CodecId::kK4V3:
    case CodecId::kK3V3:
    case CodecId::kK2V2:
      return std::nullopt;
  }
  throw std::logic_error(std::string(codec_name(codec)) + " has no bound on its distortion");
}

std::vector<CodecId> page_codecs() {
  std::vector<CodecId> codecs;
  for (const CodecId codec : kAllCodecs)
    if (most_rms(codec)) codecs.push_back(codec);
  return codecs;
}
const std::vector<CodecId> kPageCodecs = page_codecs();

// Keys as models have them: every channel has its own offset and size, a few are ten times larger. Values do not.
struct Tokens {
  std::vector<float> k, v;
};
Tokens make_tokens(PageShape shape, int count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> offset(shape.row()), size(shape.row());
  for (int c = 0; c < shape.row(); ++c) {
    offset[c] = 2 * normal(random) * (c % 13 == 0 ? 10.0f : 1.0f);
    size[c] = c % 13 == 0 ? 5.0f : 1.0f;
  }
  Tokens tokens;
  for (int i = 0; i < count * shape.row(); ++i) {
    const int c = i % shape.row();
    tokens.k.push_back(offset[c] + size[c] * normal(random));
    tokens.v.push_back(normal(random));
  }
  return tokens;
}

struct Distortion {
  double relative_rms;  // sqrt(sum (x - y)^2 / sum x^2)
  double worst;         // largest |x - y| over the largest |x|
  double cosine;        // least cosine between a token before and after
};
Distortion measure(const std::vector<float>& x, const std::vector<float>& y, int row) {
  double error = 0, power = 0, worst = 0, largest = 0, least = 1;
  for (size_t at = 0; at < x.size(); at += row) {
    double xy = 0, xx = 0, yy = 0;
    for (int c = 0; c < row; ++c) {
      const double a = x[at + c], b = y[at + c];
      error += (a - b) * (a - b);
      worst = std::max(worst, std::abs(a - b));
      largest = std::max(largest, std::abs(a));
      xy += a * b, xx += a * a, yy += b * b;
    }
    power += xx;
    least = std::min(least, xy / std::sqrt(xx * yy));
  }
  return {std::sqrt(error / power), worst / largest, least};
}

std::vector<std::byte> encode(CodecId codec, PageShape shape, const Tokens& tokens, int count, int fill) {
  std::vector<std::byte> page(data_bytes(codec, shape), std::byte(fill));
  cpu::PlainOps().encode(codec, shape, tokens.k.data(), tokens.v.data(), shape.row(), count, page.data());
  return page;
}

}  // namespace

TEST_CASE("a codec is found by its name and an unknown name lists those there are") {
  for (CodecId codec : kAllCodecs) CHECK(codec_from_name(codec_name(codec)) == codec);
  CHECK_THROWS_WITH_AS(codec_from_name("int3"), doctest::Contains("fp32, fp16, int8, k8v8, int4"), InvalidInput);
}

TEST_CASE("denser codecs take fewer bytes and every block is a multiple of 64, a record's keys of 32") {
  for (int d : {1, 5, 32, 64, 80, 128, 129}) {
    for (size_t i = 0; i < std::size(kPageCodecs); ++i) {
      const size_t aligned = codec_is_record(kPageCodecs[i]) && !codec_is_exact(kPageCodecs[i]) ? 32 : 64;
      CHECK(k_panel_bytes(kPageCodecs[i], d) % aligned == 0);
      CHECK(page_bytes(kPageCodecs[i], {3, d}) % 64 == 0);
      if (i > 0 && d >= 32) CHECK(page_bytes(kPageCodecs[i], {3, d}) < page_bytes(kPageCodecs[i - 1], {3, d}));
    }
  }
}

TEST_CASE("decoding gives back what was encoded, within each codec's distortion") {
  for (int d : {1, 5, 32, 64, 80, 81, 128}) {
    for (int count : {1, 5, 7, 13, 16}) {
      const PageShape shape{2, d};
      const Tokens in = make_tokens(shape, count, 7u * d + count);
      for (CodecId codec : kPageCodecs) {
        CAPTURE(d);
        CAPTURE(count);
        CAPTURE(codec_name(codec));
        const auto page = encode(codec, shape, in, count, 0xab);
        Tokens out{std::vector<float>(in.k.size()), std::vector<float>(in.v.size())};
        cpu::PlainOps().decode(codec, shape, page.data(), 0, count, out.k.data(), out.v.data(), shape.row());
        const Distortion k = measure(in.k, out.k, shape.row()), v = measure(in.v, out.v, shape.row());
        const double rms = *most_rms(codec);
        CHECK(k.relative_rms <= rms);
        CHECK(v.relative_rms <= rms);
        CHECK(k.worst <= 2 * rms);
        CHECK(v.worst <= 2 * rms);
        CHECK(k.cosine >= 1 - rms * rms * 4 - 1e-6);
        CHECK(v.cosine >= 1 - rms * rms * 4 - 1e-6);
      }
    }
  }
}

TEST_CASE("equal tokens give equal bytes whatever the page held before, and rows beyond the count are zero") {
  const PageShape shape{2, 33};
  for (CodecId codec : kPageCodecs) {
    for (int count : {0, 1, 5, 13, 16}) {
      const Tokens tokens = make_tokens(shape, count, 3);
      const auto page = encode(codec, shape, tokens, count, 0xff);
      CHECK(page == encode(codec, shape, tokens, count, 0x00));
      with_codec(codec, [&](auto c) {
        const std::byte* const block = page.data();
        for (int t = count; t < kPageTokens; ++t) {
          for (int ch = 0; ch < shape.head_dim; ++ch) {
            if (codec_is_exact(codec)) CHECK(decltype(c)::k(block, shape.head_dim, ch, t) == 0);
            CHECK(decltype(c)::v(block + k_panel_bytes(codec, shape.head_dim), shape.head_dim, t, ch) == 0);
          }
        }
      });
    }
  }
}

TEST_CASE("an exact page filled row by row equals one encoded at once") {
  const PageShape shape{3, 20};
  const Tokens tokens = make_tokens(shape, 13, 5);
  for (CodecId codec : {CodecId::kFp32, CodecId::kFp16}) {
    std::vector<std::byte> page(data_bytes(codec, shape));
    for (int t : {4, 0, 12, 3, 1, 2, 5, 6, 7, 11, 10, 9, 8}) {
      cpu::PlainOps().encode_row(codec, shape, &tokens.k[t * shape.row()], &tokens.v[t * shape.row()], t, page.data());
    }
    CHECK(page == encode(codec, shape, tokens, 13, 0));
  }
  std::vector<std::byte> page(data_bytes(CodecId::kInt8, shape));
  CHECK_THROWS_AS(cpu::PlainOps().encode_row(CodecId::kInt8, shape, tokens.k.data(), tokens.v.data(), 0, page.data()),
                  InvariantError);
}

TEST_CASE("constant, tiny, huge and offset groups never clip and never overflow") {
  const PageShape shape{1, 4};
  for (CodecId codec : {CodecId::kInt8, CodecId::kInt4}) {
    const double levels = codec == CodecId::kInt8 ? 255 : 15;
    for (float offset : {0.0f, -7.3f, 1000.1f, -60000.0f}) {
      for (float size : {0.0f, 1e-9f, 1e-3f, 1.0f, 4000.0f}) {
        Tokens in;
        for (int t = 0; t < 16; ++t) {
          for (int c = 0; c < 4; ++c) {
            in.k.push_back(offset + size * static_cast<float>((t * 5 + c) % 16) / 15);
            in.v.push_back(offset + size * static_cast<float>(c) / 3);
          }
        }
        const auto page = encode(codec, shape, in, 16, 0);
        Tokens out{std::vector<float>(64), std::vector<float>(64)};
        cpu::PlainOps().decode(codec, shape, page.data(), 0, 16, out.k.data(), out.v.data(), 4);
        // Half a step of the range, which starts one half-precision number below the least value.
        const double range = size + std::abs(offset) / 1000.0 + 2e-5;
        for (int i = 0; i < 64; ++i) {
          CAPTURE(offset);
          CAPTURE(size);
          CHECK(std::abs(in.k[i] - out.k[i]) <= range / levels * 0.51 + 1e-6 * std::abs(offset));
          CHECK(std::abs(in.v[i] - out.v[i]) <= range / levels * 0.51 + 1e-6 * std::abs(offset));
        }
      }
    }
  }
}

TEST_CASE("what a group decodes to at the ends of half precision may be kept in half precision again") {
  const PageShape shape{1, 4};
  cpu::PlainOps ops;
  for (const CodecId codec : {CodecId::kInt8, CodecId::kInt4}) {
    const float step = codec == CodecId::kInt8 ? 520.0f : 8800.0f;
    for (const float low : {-65504.0f, -3.0f, 0.0f, 60000.0f, 65000.0f, 65472.0f}) {
      CAPTURE(codec_name(codec));
      CAPTURE(low);
      Tokens in{std::vector<float>(64, low), std::vector<float>(64, low)};
      for (int i = 0; i < 64; i += 5) in.k[i] = in.v[i] = 65504;
      const auto page = encode(codec, shape, in, 16, 0);
      Tokens out{std::vector<float>(64), std::vector<float>(64)};
      ops.decode(codec, shape, page.data(), 0, 16, out.k.data(), out.v.data(), 4);
      const auto again = encode(CodecId::kFp16, shape, out, 16, 0);
      Tokens kept{std::vector<float>(64), std::vector<float>(64)};
      ops.decode(CodecId::kFp16, shape, again.data(), 0, 16, kept.k.data(), kept.v.data(), 4);
      for (int i = 0; i < 64; ++i) {
        CHECK(std::abs(kept.k[i] - in.k[i]) <= step);  // infinity is not
        CHECK(std::abs(kept.v[i] - in.v[i]) <= step);
        CHECK(out.k[i] <= 65504);
        CHECK(out.v[i] <= 65504);
      }
    }
  }
}

TEST_CASE("over keys with an offset an asymmetric scale beats a symmetric one of as many codes") {
  const PageShape shape{1, 128};
  const Tokens in = make_tokens(shape, 16, 11);
  for (CodecId codec : {CodecId::kInt8, CodecId::kInt4}) {
    const auto page = encode(codec, shape, in, 16, 0);
    Tokens out{std::vector<float>(in.k.size()), std::vector<float>(in.v.size())};
    cpu::PlainOps().decode(codec, shape, page.data(), 0, 16, out.k.data(), out.v.data(), shape.row());
    std::vector<float> symmetric(in.k.size());
    const float top = codec == CodecId::kInt8 ? 127.0f : 7.0f;
    for (int c = 0; c < 128; ++c) {
      float largest = 0;
      for (int t = 0; t < 16; ++t) largest = std::max(largest, std::abs(in.k[t * 128 + c]));
      for (int t = 0; t < 16; ++t)
        symmetric[t * 128 + c] = std::round(in.k[t * 128 + c] * top / largest) * largest / top;
    }
    const double ours = measure(in.k, out.k, 128).relative_rms, other = measure(in.k, symmetric, 128).relative_rms;
    MESSAGE(codec_name(codec) << " keys: relative rms " << ours << ", symmetric " << other << "; values "
                              << measure(in.v, out.v, 128).relative_rms);
    CHECK(ours < other);
  }
}

TEST_CASE("half precision equals its definition for every one of its 65536 values") {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const int exponent = static_cast<int>(h >> 10 & 31), mantissa = static_cast<int>(h & 1023);
    if (exponent == 31) continue;
    const double value = (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25)) *
                         ((h & 0x8000) != 0 ? -1 : 1);
    REQUIRE(half_to_float(static_cast<half_t>(h)) == static_cast<float>(value));
    REQUIRE(float_to_half(static_cast<float>(value)) == h);
    if (exponent < 30) {  // halfway to the next rounds to even
      const float next = half_to_float(static_cast<half_t>(h + 1));
      REQUIRE(float_to_half((static_cast<float>(value) + next) / 2) == (h & 1 ? h + 1 : h));
    }
  }
}
