// attend against attention written down once more in float64: over the tokens as they are decoded, with angles of their
// own. What is allowed is said per codec: the CPU's kernels and exact pages in fp32; tensor cores round the operands of
// quantised and fp16 pages and of summaries to halves, an error of at most 2^-11 of a number (attend_tensor.h).
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "support/ops_world.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

constexpr double kRounded = 1e-2;

using Row = std::vector<double>;
struct Key {
  Row k, v;
  double bias;
  int from;
};

void rotate64(const RopeSpec& spec, const int32_t* place, double* x) {
  const int n = spec.frequencies();
  for (int i = 0; i < n; ++i) {
    const double angle = place[spec.axis_of(i)] * std::pow(static_cast<double>(spec.theta), -2.0 * i / spec.rotary_dim);
    double& a = x[spec.layout == RopeLayout::kHalf ? i : 2 * i];
    double& b = x[spec.layout == RopeLayout::kHalf ? i + n : 2 * i + 1];
    const double re = a, im = b;
    a = re * std::cos(angle) - im * std::sin(angle);
    b = im * std::cos(angle) + re * std::sin(angle);
  }
}

std::vector<Key> keys_of(const AttendWorld& world, int head) {
  const AttendArgs& a = world.args;
  const int d = a.shape.head_dim;
  const auto plain = cpu::make_ops("plain", 1);
  std::vector<Key> keys;
  const auto add = [&](const auto& k, const auto& v, const int32_t* place, double bias, int from) {
    keys.push_back({{}, {}, bias, from});
    for (int c = 0; c < d; ++c) keys.back().k.push_back(k(c)), keys.back().v.push_back(v(c));
    rotate64(a.rope->spec(), place, keys.back().k.data());
  };
  for (int p = 0; p < a.n_pages; ++p) {
    const PageEntry& page = a.pages[p];
    std::vector<float> k(static_cast<size_t>(a.shape.row())), v(k);
    for (int i = page.begin(); i < page.end(); ++i) {
      if (!page.has(i)) continue;
      plain->decode(page.codec, a.shape, page.data, i, i + 1, k.data(), v.data(), k.size(), a.key_mean);
      const int token = page.first + i - page.begin();
      const int t = a.positions[token];
      const RopeSpec& spec = a.rope->spec();
      const int32_t place[3] = {t, spec.place_at(t, a.places[2 * token]), spec.place_at(t, a.places[2 * token + 1])};
      const auto at = static_cast<size_t>(head * d);
      add([&](int c) { return k[at + static_cast<size_t>(c)]; }, [&](int c) { return v[at + static_cast<size_t>(c)]; },
          place, 0, 0);
    }
  }
  for (int i = 0; i < a.n_rows; ++i) {
    const size_t at = (static_cast<size_t>(a.rows[i]) * a.shape.heads + head) * d;
    add([&](int c) { return half_to_float(a.mean_k[at + c]); }, [&](int c) { return half_to_float(a.mean_v[at + c]); },
        a.row_positions + 3 * i, a.row_bias[i], 0);
  }
  for (int i = 0; a.block_k != nullptr && i < a.tokens; ++i) {
    const size_t at = i * a.kv_stride + static_cast<size_t>(head * d);
    add([&](int c) { return a.block_k[at + c]; }, [&](int c) { return a.block_v[at + c]; }, a.q_positions + 3 * i, 0,
        i);
  }
  return keys;
}

// The largest errors of what world.out and world.lse hold.
struct Deviation {
  double out = 0, lse = 0;
};
Deviation error_of(const AttendWorld& world) {
  const AttendArgs& a = world.args;
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads;
  Deviation worst;
  const auto keep = [](double error, double& most) { most = error <= most ? most : error; };  // NaN wins
  for (int head = 0; head < a.q_heads; ++head) {
    const std::vector<Key> keys = keys_of(world, head / group);
    for (int t = 0; t < a.tokens; ++t) {
      Row q(a.q + t * a.q_stride + head * d, a.q + t * a.q_stride + head * d + d), logit;
      rotate64(a.rope->spec(), a.q_positions + 3 * t, q.data());
      double top = -std::numeric_limits<double>::infinity(), total = 0;
      for (const Key& key : keys) {
        double x = 0;
        for (int c = 0; c < d; ++c) x += q[static_cast<size_t>(c)] * key.k[static_cast<size_t>(c)];
        logit.push_back(t < key.from ? -std::numeric_limits<double>::infinity() : x * a.scale + key.bias);
        top = std::max(top, logit.back());
      }
      Row out(static_cast<size_t>(d));
      for (size_t i = 0; i < keys.size(); ++i) {
        const double weight = std::exp(logit[i] - top);
        total += weight;
        for (size_t c = 0; c < out.size(); ++c) out[c] += weight * keys[i].v[c];
      }
      keep(std::abs(world.lse[static_cast<size_t>(t * a.q_heads + head)] - (top + std::log(total))), worst.lse);
      for (size_t c = 0; c < out.size(); ++c)
        keep(std::abs(world.out[t * a.q_stride + static_cast<size_t>(head * d) + c] - out[c] / total), worst.out);
    }
  }
  return worst;
}

}  // namespace

TEST_CASE("attention is float64's within what each codec and part allows, for few query rows and for many") {
  const RopeSpec half{.rotary_dim = 48, .theta = 1e4f};
  const RopeSpec multi{.rotary_dim = 80, .theta = 1e6f, .sections = {12, 14, 14}};
  const RopeSpec pairs{.rotary_dim = 32, .theta = 1e4f, .layout = RopeLayout::kInterleaved};
  const AttendShape shapes[] = {
      {.heads = 2, .group = 7, .head_dim = 128, .tokens = 1, .pages = 21, .rope = multi},
      {.heads = 1, .group = 3, .head_dim = 64, .tokens = 5, .pages = 13, .rope = half},
      {.heads = 2, .group = 2, .head_dim = 33, .tokens = 13, .pages = 5, .rope = pairs},
      {.heads = 1, .group = 7, .head_dim = 80, .tokens = 19, .pages = 7, .rope = multi},
      {.heads = 1, .group = 5, .head_dim = 128, .tokens = 29, .pages = 9, .rope = half},
      {.heads = 1, .group = 1, .head_dim = 150, .tokens = 3, .pages = 9, .rope = half},
  };
  unsigned seed = 40;
  for (AttendShape shape : shapes) {
    for (int part = 0; part < kCodecs + 2; ++part) {  // pages of one codec, then summaries alone, then the block alone
      ++seed;
      shape.codec = part < kCodecs ? part : 0;
      if (part >= kCodecs) shape.pages = 0;
      shape.rows = part == kCodecs ? 37 : 0;
      shape.block = part == kCodecs + 1;
      AttendWorld world(shape, seed);
      for (const std::string& name : implementations()) {
        const bool rounds = on_tensor_cores(name, shape.head_dim);
        const bool exact = part == static_cast<int>(CodecId::kFp32) || part == kCodecs + 1;
        Kernels kernels(name, 2,
                        {.tokens = shape.tokens,
                         .q_heads = shape.heads * shape.group,
                         .shape = {shape.heads, shape.head_dim},
                         .rows = shape.rows});
        kernels->attend(world.args);
        const Deviation error = error_of(world);
        CAPTURE(name);
        CAPTURE(part);
        CAPTURE(shape.head_dim);
        // Logits here have a deviation of 0.6 sqrt(D) <= 7, so 2^-11 of their terms is a few thousandths of a weight.
        CHECK(error.out <= (exact || !rounds ? 2e-5 : kRounded));
        CHECK(error.lse <= (exact || !rounds ? 2e-5 : kRounded));
      }
    }
  }
}

TEST_CASE("keys and values may be large or small: means as halves can be, exact ones beyond that") {
  for (const int tokens : {3, 40}) {
    for (const float size : {1e-3f, 1e3f, 5e4f}) {
      for (const bool exact : {false, true}) {
        const AttendShape shape{.heads = 1,
                                .group = 2,
                                .head_dim = 64,
                                .tokens = tokens,
                                .pages = exact ? 5 : 0,
                                .rows = exact ? 0 : 37,
                                .block = exact,
                                .rope = {.rotary_dim = 64, .theta = 1e4f},
                                .codec = 0};
        AttendWorld world(shape, 77);
        for (float& q : world.q) q /= size;  // the logits stay as they are
        const auto resize = [&](std::vector<float>& numbers, float most) {
          for (float& x : numbers) x = std::min(std::max(x * size, -most), most);
        };
        resize(world.block_k, 2e6f), resize(world.block_v, 2e6f);
        for (auto* means : {&world.mean_k, &world.mean_v})
          for (half_t& x : *means) x = float_to_half(std::min(std::max(half_to_float(x) * size, -65000.0f), 65000.0f));
        const auto plain = cpu::make_ops("plain", 1);
        for (auto& page : world.page_data) {
          Random random(static_cast<unsigned>(page.size()) + static_cast<unsigned>(tokens));
          const auto k = random.normals(16 * 64, size), v = random.normals(16 * 64, size);
          plain->encode(CodecId::kFp32, world.args.shape, k.data(), v.data(), 64, 16, page.data());
        }
        for (const std::string& name : implementations()) {
          Kernels kernels(name, 1, {.tokens = tokens, .q_heads = 2, .shape = {1, 64}, .rows = 37});
          kernels->attend(world.args);
          const Deviation error = error_of(world);
          const bool rounds = !exact && on_tensor_cores(name, 64);
          CAPTURE(name);
          CAPTURE(size);
          CAPTURE(exact);
          // Rounded keys below 2^-8 and values below 2^-12 have fewer bits.
          CHECK(error.out <= size * (!rounds ? 2e-5 : size < 1 ? 2 * kRounded : kRounded));
          CHECK(error.lse <= (!rounds ? 2e-5 : size < 1 ? 2 * kRounded : kRounded));
        }
      }
    }
  }
}
