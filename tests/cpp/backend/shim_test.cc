// The shim itself - what it must refuse, so that a kernel that passes has not passed by luck - and what only the CUDA
// backend's host code does: cutting work by the device's width, refusing memory it cannot reach, explaining its absence.
#include <doctest/doctest.h>

#include <numeric>

#include "backend/cuda/cuda_ops.h"
#include "backend/cuda/cuda_probe.h"
#include "core/error.h"
#include "support/ops_world.h"
#include "support/shim_backend.h"

using namespace mosaic;
using namespace mosaic::testing;
namespace simt = mosaic::shim::simt;

namespace {

struct Order {  // of the fibres, for one scope
  explicit Order(unsigned order) { set_shim_order(order); }
  ~Order() { set_shim_order(0); }
};

// Every thread writes its number, then reads its neighbour's; `meets`: at a barrier in between.
void neighbour_kernel(int* out, bool meets) {
  int* const numbers = simt::shared<int>();
  numbers[simt::thread()] = simt::thread();
  if (meets) simt::barrier();
  out[simt::thread()] = numbers[(simt::thread() + 1) % simt::threads()];
}

void sum_kernel(float* out) {
  float* const space = simt::shared<float>();
  const float sum = simt::sum_block(static_cast<float>(simt::thread()), space);
  if (simt::thread() == 0) out[simt::block_x() + 2 * simt::block_y() + 6 * simt::block_z()] = sum;
}

void warp_kernel(float* out) {
  const float x = static_cast<float>((simt::thread() * 7) % 32);
  out[simt::thread()] = simt::max_lanes(x, 16);
  if (simt::ballot(simt::thread() % 2 == 0) != 0x55555555u) out[0] = -1;
}

// The first warp multiplies; the second does too, so that they must not meet each other, and keeps nothing.
void product_kernel(const float* a, const float* b, float* c) {
  const int g = simt::thread() % 32 / 4, t = simt::thread() % 4 * 2;
  const auto two = [](float low, float high) {
    return static_cast<uint32_t>(simt::narrow(low)) | static_cast<uint32_t>(simt::narrow(high)) << 16;
  };
  const auto row = [&](int i, int k) { return two(a[i * 16 + k], a[i * 16 + k + 1]); };
  const auto column = [&](int k, int j) { return two(b[k * 8 + j], b[(k + 1) * 8 + j]); };
  const uint32_t left[4] = {row(g, t), row(g + 8, t), row(g, t + 8), row(g + 8, t + 8)};
  const uint32_t right[2] = {column(t, g), column(t + 8, g)};
  float sum[4] = {c[g * 8 + t], c[g * 8 + t + 1], c[(g + 8) * 8 + t], c[(g + 8) * 8 + t + 1]};
  simt::barrier();
  simt::multiply_add(left, right, sum);
  if (simt::thread() >= 32) return;
  c[g * 8 + t] = sum[0], c[g * 8 + t + 1] = sum[1], c[(g + 8) * 8 + t] = sum[2], c[(g + 8) * 8 + t + 1] = sum[3];
}

void missed_barrier_kernel(int) {
  if (simt::thread() < 40) simt::barrier();
}
void two_barriers_kernel(int) {
  if (simt::thread() < 40) {
    simt::barrier();
  } else {
    simt::barrier();
  }
}
void missed_shuffle_kernel(float* out) {
  if (simt::thread() != 5) out[simt::thread()] = simt::shuffle_xor(1.0f, 1);
}
void crooked_load_kernel(const float* x) { simt::load<simt::Bytes16>(x + 1); }

// Attention of the world: the same bits in any order of threads, near the plain loops' however wide the device is.
void check_any_order(AttendWorld* world, const Ops::Limits& limits) {
  Kernels("plain", 1, limits)->attend(world->args);
  const auto out = world->out;
  for (const int processors : {1, 40}) {
    std::vector<float> first;
    for (const unsigned order : {0u, 1u, 7u}) {
      const Order scope(order);
      Kernels kernels("shim", 1, limits);
      kernels.ops = make_mirror(make_shim(processors));
      kernels.memory.assign(kernels->scratch_bytes(limits), std::byte{0xff});
      kernels->set_scratch(kernels.memory.data(), limits);
      kernels->attend(world->args);
      CAPTURE(processors);
      CAPTURE(order);
      if (order == 0) first = world->out;
      CHECK(world->out == first);
      bool near = true;
      for (size_t i = 0; i < out.size(); ++i)
        near = near && std::abs(world->out[i] - out[i]) <= 1e-2f * std::max(1.0f, std::abs(out[i]));
      CHECK(near);
    }
  }
}

}  // namespace

TEST_CASE("a missing barrier shows when threads run in another order") {
  const auto run = [](bool meets, unsigned order) {
    const Order scope(order);
    std::vector<int> out(64, -1);
    simt::launch({}, "neighbour", neighbour_kernel, {}, 64, 64 * sizeof(int), out.data(), meets);
    return out;
  };
  std::vector<int> expected(64);
  for (int i = 0; i < 64; ++i) expected[static_cast<size_t>(i)] = (i + 1) % 64;
  for (const unsigned order : {0u, 1u, 5u, 6u}) {
    CHECK(run(true, order) == expected);
    CHECK(run(false, order) != expected);
  }
}

TEST_CASE("sums, maxima and votes of a warp and a block are those of their definition, in every block of a grid") {
  for (const unsigned order : {0u, 1u, 9u}) {
    const Order scope(order);
    std::vector<float> out(12, -1), lanes(64, -1);
    simt::launch({}, "sum", sum_kernel, {2, 3, 2}, 96, 3 * sizeof(float), out.data());
    for (const float sum : out) CHECK(sum == 95 * 96 / 2);
    simt::launch({}, "warp", warp_kernel, {}, 64, 0, lanes.data());
    for (size_t t = 0; t < 64; ++t) {
      float most = 0;
      for (size_t i = t / 16 * 16; i < t / 16 * 16 + 16; ++i) most = std::max(most, static_cast<float>((i * 7) % 32));
      CHECK(lanes[t] == most);
    }
  }
}

TEST_CASE("a barrier or shuffle that some threads miss, a crooked load and an impossible launch are errors") {
  std::vector<float> x(64);
  CHECK_THROWS_WITH_AS(simt::launch({}, "a", missed_barrier_kernel, {}, 64, 0, 0), doctest::Contains("never come"),
                       InvariantError);
  CHECK_THROWS_WITH_AS(simt::launch({}, "b", two_barriers_kernel, {}, 64, 0, 0), doctest::Contains("different lines"),
                       InvariantError);
  CHECK_THROWS_WITH_AS(simt::launch({}, "c", missed_shuffle_kernel, {}, 64, 0, x.data()),
                       doctest::Contains("never come"), InvariantError);
  CHECK_THROWS_WITH_AS(simt::launch({}, "d", crooked_load_kernel, {}, 32, 0, x.data()),
                       doctest::Contains("not aligned"), InvariantError);
  CHECK_THROWS_WITH_AS(simt::launch({}, "e", sum_kernel, {}, 33, 0, x.data()), doctest::Contains("multiple of 32"),
                       InvariantError);
  CHECK_THROWS_WITH_AS(simt::launch({}, "f", sum_kernel, {}, 32, simt::kSharedMost + 1, x.data()),
                       doctest::Contains("99 KiB"), InvariantError);
  CHECK_THROWS_AS(simt::launch({}, "g", sum_kernel, {0}, 32, 4, x.data()), InvariantError);
}

TEST_CASE("a tensor core's step is the product of the matrices its fragments spell, added to what was there") {
  static std::vector<float> a, b, c;  // [16, 16], [16, 8], [16, 8]
  Random random(4);
  a = random.normals(256), b = random.normals(128), c = random.normals(128);
  for (auto* x : {&a, &b})
    for (float& value : *x) value = half_to_float(float_to_half(value));
  std::vector<float> expected = c;
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j)
      for (size_t k = 0; k < 16; ++k) expected[i * 8 + j] += a[i * 16 + k] * b[k * 8 + j];
  simt::launch({}, "product", product_kernel, {}, 64, 0, a.data(), b.data(), c.data());
  for (size_t i = 0; i < 128; ++i) CHECK(c[i] == doctest::Approx(expected[i]).epsilon(1e-6));
}

TEST_CASE("what the kernels compute does not depend on the order threads run in: no barrier is missing") {
  const AttendShape shape{.heads = 2,
                          .group = 3,
                          .head_dim = 64,
                          .tokens = 7,
                          .pages = 9,
                          .rows = 21,
                          .block = true,
                          .rope = {.rotary_dim = 48, .theta = 1e4f}};
  const Ops::Limits limits{.tokens = 40, .q_heads = 6, .shape = {2, 64}, .rows = 90, .dim = 128};
  const auto run = [&](unsigned order) {
    const Order scope(order);
    AttendWorld world(shape, 11);
    Random random(12);
    Kernels kernels("shim", 1, limits);
    std::vector<float> all;
    const auto keep = [&](const auto& x) { all.insert(all.end(), x.begin(), x.end()); };
    kernels->attend(world.args);
    keep(world.out), keep(world.lse);
    std::vector<float> pages(world.positions.size()), rows(21), block(7);
    kernels->attention_mass({&world.args, pages.data(), rows.data(), 2, block.data()});
    keep(pages), keep(rows), keep(block);
    kernels->merge({world.out.data(), world.lse.data(), 1, 1, 7, 7, block.data(), rows.data()});
    keep(world.out), keep(world.lse);

    const auto x = random.normals(40 * 128), v = random.normals(40 * 128);
    auto mean_k = random.halves(90 * 128), mean_v = random.halves(90 * 128);
    std::vector<int32_t> best(40), count(90, 3), index(13), place(40);
    std::vector<float> similarity(40), variance(90, 0.5f), score(90), sum(5 * 128), norm(40), energy(40);
    kernels->assign({x.data(), v.data(), 40, 128, 128, mean_k.data(), mean_v.data(), nullptr, 90, 0.5f, best.data(),
                     similarity.data()});
    keep(best), keep(similarity);
    for (int32_t& row : best) row %= 7;
    kernels->update_centroids({x.data(), v.data(), 40, 128, 128, best.data(), mean_k.data(), mean_v.data(),
                               count.data(), variance.data(), 0.5f});
    keep(mean_k), keep(mean_v), keep(count), keep(variance);
    for (const ScoreMode mode : {ScoreMode::kDot, ScoreMode::kMass}) {
      kernels->score(
          {x.data(), 7, 6, 384, {2, 64}, 0.2f, mode, mean_k.data(), nullptr, variance.data(), 90, score.data()});
      keep(score);
    }
    kernels->top_k(score.data(), 90, 13, index.data());
    keep(index);
    std::vector<float> scores = random.normals(4500);
    for (float& x : scores) x = std::round(4 * x);  // ties
    std::vector<int32_t> found(4500);
    for (const int k : {77, 4500}) {  // one run that fits shared memory, and two
      kernels->top_k(scores.data(), 4500, k, found.data());
      keep(found);
    }
    for (size_t i = 0; i < place.size(); ++i) place[i] = static_cast<int32_t>(i % 5);
    kernels->add_recent_keys({x.data(), place.data(), 40, 128, 128, sum.data(), count.data()});
    kernels->temporal_redundancy({x.data(), place.data(), 40, 128, 128, sum.data(), count.data(), norm.data()});
    keep(sum), keep(norm);
    kernels->row_norm({x.data(), 40, 128, 128, norm.data()});
    kernels->spectral_energy({x.data(), 40, 128, 128, energy.data()});
    keep(norm), keep(energy);
    for (int codec = 0; codec < kCodecs; ++codec) {
      const CodecId id = static_cast<CodecId>(codec);
      std::vector<std::byte> page(data_bytes(id, {2, 64}), std::byte{0});
      kernels->encode(id, {2, 64}, x.data(), v.data(), 128, 13, page.data());
      if (codec_is_record(id)) kernels->encode_row(id, {2, 64}, x.data(), v.data(), 14, page.data());
      for (const std::byte b : page) all.push_back(static_cast<float>(b));
    }
    return all;
  };
  const auto expected = run(0);
  for (const unsigned order : {1u, 2u, 3u}) CHECK(run(order) == expected);
}

TEST_CASE("attention of few rows and of many is the same in any order of threads and near on any width") {
  for (const int tokens : {1, 7, 47}) {  // a tile of 16 rows, one of 128 with warps that have none, two of them
    for (const int d : {40, 128}) {
      const AttendShape shape{.heads = 2,
                              .group = 3,
                              .head_dim = d,
                              .tokens = tokens,
                              .pages = 13,
                              .rows = 21,
                              .block = true,
                              .rope = {.rotary_dim = 32, .theta = 1e4f}};
      const Ops::Limits limits{.tokens = tokens, .q_heads = 6, .shape = {2, d}, .rows = 21};
      AttendWorld world(shape, 17);
      check_any_order(&world, limits);
    }
  }
}

TEST_CASE("packed pages read from their planes give the same bits in any order of threads and near ones on any width") {
  for (const int d : {64, 128}) {
    const AttendShape shape{.heads = 2,
                            .group = 4,
                            .head_dim = d,
                            .tokens = 2,
                            .pages = 29,
                            .rows = 3,
                            .block = true,
                            .rope = {.rotary_dim = d, .theta = 1e4f}};
    const Ops::Limits limits{.tokens = 2, .q_heads = 8, .shape = {2, d}, .rows = 3};
    AttendWorld world(shape, 23);
    CAPTURE(d);
    check_any_order(&world, limits);
  }
}

TEST_CASE("attention, assignment and scores are the plain loops' however wide the device is") {
  const AttendShape shape{.heads = 2,
                          .group = 7,
                          .head_dim = 40,
                          .tokens = 3,
                          .pages = 13,
                          .block = true,
                          .rope = {.rotary_dim = 40, .theta = 1e4f},
                          .codec = static_cast<int>(CodecId::kFp32)};
  AttendWorld world(shape, 5);
  const Ops::Limits limits{.tokens = 70, .q_heads = 14, .shape = {2, 40}, .rows = 300};
  Random random(6);
  const auto k = random.normals(70 * 80);
  const auto mean = random.halves(300 * 80);
  std::vector<float> similarity[2], out[2], lse[2];
  std::vector<int32_t> best[2];
  for (const int processors : {0, 1, 2, 5, 16, 132}) {  // 0: the plain loops
    const int which = processors > 0;
    Kernels kernels("plain", 1, limits);
    if (which == 1) {
      kernels.ops = make_mirror(make_shim(processors));
      kernels.memory.assign(kernels->scratch_bytes(limits), std::byte{0xff});
      kernels->set_scratch(kernels.memory.data(), limits);
    }
    kernels->attend(world.args);
    out[which] = world.out, lse[which] = world.lse;
    best[which].assign(70, -9), similarity[which].assign(70, -9);
    kernels->assign({k.data(), nullptr, 70, 80, 80, mean.data(), nullptr, nullptr, 300, 0, best[which].data(),
                     similarity[which].data()});
    if (which == 0) continue;
    CAPTURE(processors);
    for (size_t i = 0; i < out[0].size(); ++i) REQUIRE(out[1][i] == doctest::Approx(out[0][i]).epsilon(3e-5));
    for (size_t i = 0; i < lse[0].size(); ++i) REQUIRE(lse[1][i] == doctest::Approx(lse[0][i]).epsilon(3e-5));
    CHECK(best[1] == best[0]);
    for (size_t i = 0; i < 70; ++i) REQUIRE(similarity[1][i] == doctest::Approx(similarity[0][i]).epsilon(2e-6));
  }
}

TEST_CASE("heads of up to 256 channels are attended, wider ones are refused by name") {
  for (const int d : {129, 192, 256}) {
    const AttendShape shape{.heads = 1,
                            .group = 3,
                            .head_dim = d,
                            .tokens = 4,
                            .pages = 5,
                            .rows = 3,
                            .block = true,
                            .rope = {.rotary_dim = 96, .theta = 1e4f}};
    AttendWorld world(shape, 8);
    const Ops::Limits limits{.tokens = 4, .q_heads = 3, .shape = {1, d}, .rows = 3};
    Kernels("plain", 1, limits)->attend(world.args);
    const auto out = world.out, lse = world.lse;
    for (const int tokens : {4, 2}) {  // 12 rows, then 6: both sizes of a tile
      world.args.tokens = tokens;
      world.out = out, world.lse = lse;
      std::fill_n(world.out.begin(), tokens * static_cast<int>(world.args.q_stride) - 3, -77.0f);
      Kernels("shim", 1, limits)->attend(world.args);
      for (size_t i = 0; i < static_cast<size_t>(tokens) * world.args.q_stride; ++i) {
        if (i % world.args.q_stride < static_cast<size_t>(3 * d))
          REQUIRE(world.out[i] == doctest::Approx(out[i]).epsilon(3e-5));
      }
    }
  }
  AttendWorld world({.heads = 1, .group = 1, .head_dim = 257}, 8);
  Kernels kernels("shim", 1, {.tokens = 1, .q_heads = 1, .shape = {1, 257}, .rows = 1});
  CHECK_THROWS_WITH_AS(kernels->attend(world.args), doctest::Contains("at most 256"), InvalidInput);
}

TEST_CASE("memory of the host that the device cannot reach is refused by name before anything runs") {
  const Backend backend = make_shim();
  std::vector<float> x(64, 1.0f), norm(4, -1.0f);
  CHECK_THROWS_WITH_AS(backend.ops->row_norm({x.data(), 4, 16, 16, norm.data()}),
                       doctest::Contains("row_norm was given memory the device cannot reach"), InvalidInput);
  CHECK(norm[0] == -1.0f);
  auto* const there = static_cast<float*>(backend.device->allocate(68 * sizeof(float)));
  for (int i = 0; i < 64; ++i) there[i] = 1;
  backend.ops->row_norm({there, 4, 16, 16, there + 64});
  backend.ops->wait();
  CHECK(there[67] == 4.0f);
  backend.device->release(there, 68 * sizeof(float));
}

TEST_CASE("sums that an op takes for zeros are zeroed when what was asked for before has read them") {
  const Backend backend = make_shim();
  auto* const there = static_cast<float*>(backend.device->allocate(64 * sizeof(float)));
  float *const sum = there, *const k = there + 16, *const score = there + 32;
  auto* const count = reinterpret_cast<int32_t*>(there + 33);
  auto* const place = count + 1;
  std::fill_n(there, 33, 1.0f);
  *count = 1, *place = 0;
  backend.ops->temporal_redundancy({k, place, 1, 16, 16, sum, count, score});
  PotArgs pot;
  pot.shape = {1, 16}, pot.places = 1, pot.sum = sum, pot.count = count;
  backend.ops->Ops::add_recent_pages({&pot, 1});  // as of a backend that has no quicker way
  backend.ops->wait();
  CHECK(*score == doctest::Approx(-4.0f));
  CHECK(sum[0] == 0.0f);
  CHECK(*count == 0);
  backend.device->release(there, 64 * sizeof(float));
}

TEST_CASE("a build runs on the GPUs its code and its PTX are for, and on no others") {
  using cuda::has_code_for;
  const char* const shipped = "80 86-real 87-real 89-real 90 110";
  for (const int there : {80, 86, 87, 89, 90, 100, 110, 120}) CHECK(has_code_for(shipped, there / 10, there % 10));
  CHECK(!has_code_for(shipped, 7, 5));
  CHECK(has_code_for("86-real", 8, 9));   // a later minor of the same kind
  CHECK(!has_code_for("89-real", 8, 6));  // an earlier one
  CHECK(!has_code_for("87-real", 9, 0));  // no PTX to compile there
  CHECK(has_code_for("80-virtual", 9, 0));
  CHECK(has_code_for("90a", 9, 0));
  CHECK(!has_code_for("90a", 10, 0));
  CHECK(has_code_for("native", 7, 5));
  CHECK(!has_code_for("", 9, 0));
}

TEST_CASE("an absent GPU is explained: no driver, an old one, no device, no code for it") {
  using cuda::Probe;
  using cuda::why_absent;
  Probe p;
  p.runtime = 13000;
  CHECK(why_absent(p) == "no NVIDIA driver; install one for CUDA 13.0 or later");
  p.driver = 12060, p.too_old = true;
  CHECK(why_absent(p) ==
        "the driver is for CUDA 12.6, this build needs 13.0; update the driver, or build with an older nvcc");
  p.driver = 13000, p.too_old = false;
  CHECK(why_absent(p).find("CUDA_VISIBLE_DEVICES") != std::string::npos);
  p.devices = 1, p.device = "GPU", p.major = 7, p.minor = 5, p.architectures = "800,870";
  CHECK(why_absent(p) == "GPU (sm_75) has no code in this build (800,870); build with CMAKE_CUDA_ARCHITECTURES=75");
  p.has_code = true;
  CHECK(why_absent(p).empty());
  p.error = "lost";
  CHECK(why_absent(p) == "lost");
}
