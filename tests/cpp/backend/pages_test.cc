// encode, decode and gather of every instruction set; the device, the backends and the threads under the kernels.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "backend/backend.h"
#include "backend/cpu/thread_pool.h"
#include "core/error.h"
#include "support/ops_world.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

// Decoded numbers of two implementations. A record's are a scale times a sign plus a mean, which may be fused: a rounding of
// the sum, whose terms here are below 64.
bool near(float a, float b, CodecId codec) {
  const bool fused = codec_is_record(codec) && !codec_is_exact(codec);
  return std::abs(a - b) <= 1e-6f * std::abs(a) + (fused ? 8e-6f : 0.0f);
}

// The first number that is not near the expected one, or -1. One assertion an array: there are thirty million numbers.
ptrdiff_t first_off(const std::vector<float>& got, const std::vector<float>& expected, CodecId codec) {
  if (got.size() != expected.size()) return 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!near(got[i], expected[i], codec)) return static_cast<ptrdiff_t>(i);
  }
  return -1;
}

}  // namespace

TEST_CASE("every instruction set writes and reads the pages of the plain loops") {
  Random random(8);
  for (const PageShape shape : {PageShape{1, 1}, {2, 5}, {2, 32}, {3, 33}, {1, 80}, {4, 128}}) {
    for (int count : {0, 1, 5, 7, 13, 15, 16}) {
      const size_t stride = static_cast<size_t>(shape.row() + 2);
      const auto k = random.normals(stride * 16, 3), v = random.normals(stride * 16, 3);
      const auto mean = random.normals(static_cast<size_t>(shape.row()), 3);
      for (int codec = 0; codec < kCodecs; ++codec) {
        const CodecId id = static_cast<CodecId>(codec);
        const Ops::Limits limits{.tokens = 1, .q_heads = shape.heads, .shape = shape, .rows = 1};
        Kernels plain("plain", 1, limits);
        std::vector<std::byte> expected(data_bytes(id, shape));
        plain->encode(id, shape, k.data(), v.data(), stride, count, expected.data(), mean.data());
        const int begins[] = {0, count / 2, count - (count > 0)};
        std::vector<float> expected_k[3], expected_v[3];
        for (int i = 0; i < 3; ++i) {
          expected_k[i].assign(stride * 16, -1), expected_v[i].assign(stride * 16, -1);
          plain->decode(id, shape, expected.data(), begins[i], count, expected_k[i].data(), expected_v[i].data(),
                        stride, mean.data());
        }
        for (const std::string& name : implementations()) {
          CAPTURE(name);
          CAPTURE(codec_name(id));
          CAPTURE(count);
          Kernels kernels(name, 2, limits);
          std::vector<std::byte> page(expected.size(), std::byte{0xff});
          kernels->encode(id, shape, k.data(), v.data(), stride, count, page.data(), mean.data());
          CHECK(page == expected);
          if (codec_is_record(id)) {
            std::memset(page.data(), 0, page.size());
            for (int t = count; t-- > 0;) {
              const size_t at = static_cast<size_t>(t) * stride;
              kernels->encode_row(id, shape, &k[at], &v[at], t, page.data(), mean.data());
            }
            CHECK(page == expected);
          }
          for (int i = 0; i < 3; ++i) {
            std::vector<float> got_k(stride * 16, -1), got_v(stride * 16, -1);
            kernels->decode(id, shape, page.data(), begins[i], count, got_k.data(), got_v.data(), stride, mean.data());
            REQUIRE(first_off(got_k, expected_k[i], id) == -1);
            REQUIRE(first_off(got_v, expected_v[i], id) == -1);
          }
        }
      }
    }
  }
}

TEST_CASE("a page that grows has the bytes of one that is written from what it held and the rows behind it") {
  Random random(14);
  for (const PageShape shape : {PageShape{2, 5}, {1, 80}, {3, 128}}) {
    const size_t stride = static_cast<size_t>(shape.row() + 2);
    const auto k = random.normals(stride * 32, 3), v = random.normals(stride * 32, 3);
    const Ops::Limits limits{.tokens = 1, .q_heads = shape.heads, .shape = shape, .rows = 1};
    for (const std::string& name : implementations()) {
      Kernels kernels(name, 1, limits);
      for (const auto& [from, to] : {std::pair{CodecId::kInt4, CodecId::kInt4},
                                     {CodecId::kInt8, CodecId::kFp16},
                                     {CodecId::kInt4, CodecId::kFp32},
                                     {CodecId::kK5V3, CodecId::kK5V3}}) {
        for (const auto& [held, count] : {std::pair{1, 1}, {7, 9}, {13, 1}, {15, 1}, {1, 15}, {11, 0}}) {
          CAPTURE(name);
          CAPTURE(codec_name(from));
          CAPTURE(held);
          const size_t behind = static_cast<size_t>(held) * stride;
          std::vector<std::byte> page(std::max(data_bytes(from, shape), data_bytes(to, shape))), other(page);
          kernels->encode(from, shape, k.data(), v.data(), stride, held, page.data());
          std::vector<float> rows_k(stride * 16), rows_v(rows_k);
          kernels->decode(from, shape, page.data(), 0, held, rows_k.data(), rows_v.data(), stride);
          std::copy_n(&k[behind], static_cast<size_t>(count) * stride, &rows_k[behind]);
          std::copy_n(&v[behind], static_cast<size_t>(count) * stride, &rows_v[behind]);
          std::vector<std::byte> expected(page);
          kernels->encode(to, shape, rows_k.data(), rows_v.data(), stride, held + count, expected.data());
          std::vector<float> room_k(stride * 16), room_v(room_k);
          GrowArgs grow{from,       page.data(), held,   to,    other.data(),  shape,
                        &k[behind], &v[behind],  stride, count, room_k.data(), room_v.data()};
          kernels->grow_page(grow);
          CHECK(std::memcmp(other.data(), expected.data(), data_bytes(to, shape)) == 0);
          if (from != to) continue;
          grow.to = page.data();  // where it lies
          kernels->grow_page(grow);
          CHECK(std::memcmp(page.data(), expected.data(), data_bytes(to, shape)) == 0);
        }
      }
    }
  }
}

TEST_CASE("copy moves bytes; check_numbers finds the one number that is not finite, counts and cuts what passes half") {
  for (const std::string& name : implementations()) {
    CAPTURE(name);
    Kernels kernels(name, 1, {.tokens = 1, .q_heads = 1, .shape = {1, 16}, .rows = 1});
    for (const size_t n : {1u, 5u, 129u, 4097u}) {
      std::vector<float> x = Random(3).normals(n), y(n, -1.0f);
      kernels->copy(y.data(), x.data(), n * sizeof(float));
      CHECK(x == y);
      NumberFaults faults;
      std::vector<float> cut(n, -1.0f);
      x[n / 2] = -65504.0f;
      kernels->check_numbers(x.data(), n, &faults, nullptr);
      CHECK(faults.not_finite + faults.beyond == 0);
      for (const float poison : {std::nanf(""), -INFINITY}) {
        for (const size_t at : {size_t{0}, n / 2, n - 1}) {
          y = x;
          y[at] = poison;
          faults = {};
          kernels->check_numbers(y.data(), n, &faults, nullptr);
          CHECK(faults.not_finite == 1);
          CHECK(faults.beyond == 0);
        }
      }
      for (const float large : {65504.01f, -70000.0f, 3e38f}) {
        y = x;
        y[0] = y[n - 1] = y[n / 3] = large;
        const int expected = n == 1 ? 1 : 3;
        faults = {0, 7};  // is added to
        kernels->check_numbers(y.data(), n, &faults, cut.data());
        CHECK(faults.not_finite == 0);
        CHECK(faults.beyond == 7 + expected);
        for (float& value : y) value = std::clamp(value, -65504.0f, 65504.0f);
        CHECK(cut == y);
      }
    }
  }
}

TEST_CASE("a run of pages is written and read as its tokens are one by one, and nothing else is touched") {
  Random random(18);
  const PageShape shape{2, 33};
  const size_t stride = 69;
  const auto k = random.normals(stride * 70, 3), v = random.normals(stride * 70, 3);
  for (int codec = 0; codec < kCodecs; ++codec) {
    const CodecId id = static_cast<CodecId>(codec);
    if (!codec_is_record(id)) continue;
    const size_t bytes = data_bytes(id, shape), pitch = bytes + 192;
    for (int first : {0, 1, 15})
      for (int count : {0, 1, 5, 15, 16, 17, 31, 32, 33, 64, 70}) {
        const int pages = (first + count + kPageTokens - 1) / kPageTokens;
        const Ops::Limits limits{.tokens = 1, .q_heads = 2, .shape = shape, .rows = 1};
        Kernels plain("plain", 1, limits);
        std::vector<std::byte> written(static_cast<size_t>(pages + 1) * pitch, std::byte{0x55});
        for (int p = 0; p < pages; ++p)
          std::fill_n(written.data() + static_cast<size_t>(p) * pitch, bytes, std::byte{});
        std::vector<std::byte> expected = written;
        std::vector<float> expected_k(stride * 71, -1), expected_v(expected_k);
        for (int i = 0; i < count; ++i) {
          const size_t at = static_cast<size_t>(i) * stride;
          const int row = (first + i) % kPageTokens;
          std::byte* const page = expected.data() + static_cast<size_t>((first + i) / kPageTokens) * pitch;
          plain->encode_row(id, shape, &k[at], &v[at], row, page);
          plain->decode(id, shape, page, row, row + 1, &expected_k[at], &expected_v[at], stride);
        }
        for (const std::string& name : implementations()) {
          CAPTURE(name);
          CAPTURE(codec_name(id));
          CAPTURE(first);
          CAPTURE(count);
          Kernels kernels(name, 2, limits);
          std::vector<std::byte> run = written;
          kernels->encode_run(id, shape, k.data(), v.data(), stride, first, count, run.data(), pitch);
          CHECK(run == expected);
          std::vector<float> got_k(stride * 71, -1), got_v(got_k);
          kernels->decode_run(id, shape, run.data(), pitch, first, count, got_k.data(), got_v.data(), stride);
          CHECK(first_off(got_k, expected_k, id) == -1);
          CHECK(first_off(got_v, expected_v, id) == -1);
        }
      }
  }
}

TEST_CASE("keys are written, read and weighed alone in pages that end behind them") {
  Random random(23);
  for (const int d : {16, 33, 64}) {
    const PageShape shape{1, d};
    const auto row = static_cast<size_t>(d);
    const auto k = random.normals(row * 20, 1), v = random.normals(row * 20, 1), q = random.normals(row * 6, 1);
    std::vector<int32_t> positions(32, 0), q_positions(9, 0);
    for (int codec = 0; codec < kCodecs; ++codec) {
      const auto id = static_cast<CodecId>(codec);
      if (!codec_is_record(id)) continue;
      const size_t keys = k_panel_bytes(id, d), whole = data_bytes(id, shape);
      for (const std::string& name : implementations()) {
        CAPTURE(name);
        CAPTURE(codec_name(id));
        CAPTURE(d);
        if (name == "shim") continue;  // its mirror copies whole pages; see the shim's own test of archives
        Kernels kernels(name, 2, {.tokens = 3, .q_heads = 2, .shape = shape, .rows = 1});
        const auto memory = [](size_t bytes) {  // to the byte, so that ASan sees one too far
          auto* const piece = static_cast<std::byte*>(std::aligned_alloc(64, bytes));
          std::memset(piece, 0, bytes);
          return std::unique_ptr<std::byte, decltype(&std::free)>(piece, &std::free);
        };
        const auto two = memory(2 * whole), alone = memory(2 * keys);
        std::vector<std::byte*> with_values, without;
        std::vector<int32_t> at;
        for (int i = 0; i < 20; ++i) {
          with_values.push_back(two.get() + (i % 2) * whole);
          without.push_back(alone.get() + (i % 2) * keys);
          at.push_back(i / 2 + 3);
        }
        kernels->encode_rows(id, shape, k.data(), v.data(), row, 20, with_values.data(), at.data(), nullptr);
        kernels->encode_rows(id, shape, k.data(), nullptr, row, 20, without.data(), at.data(), nullptr);
        for (const int page : {0, 1})
          CHECK(std::equal(alone.get() + page * keys, alone.get() + (page + 1) * keys, two.get() + page * whole));
        std::vector<float> got(row), expected(row), unused(row);
        kernels->decode(id, shape, two.get() + whole, 5, 6, expected.data(), unused.data(), row, nullptr);
        kernels->decode(id, shape, alone.get() + keys, 5, 6, got.data(), nullptr, row, nullptr);
        CHECK(got == expected);
        std::vector<float> mass[2] = {std::vector<float>(32), std::vector<float>(32)}, lse(6, 0.5f);
        for (const bool all : {false, true}) {
          const PageEntry entries[2] = {{all ? two.get() : alone.get(), 0, 0x1ff8, id},
                                        {all ? two.get() + whole : alone.get() + keys, 10, 0x1ff8, id}};
          AttendArgs args;
          args.q = q.data(), args.tokens = 3, args.q_heads = 2, args.q_stride = 2 * row;
          args.q_positions = q_positions.data(), args.shape = shape, args.scale = 0.3f;
          args.pages = entries, args.n_pages = 2, args.positions = positions.data(), args.lse = lse.data();
          MassArgs wanted;
          wanted.attend = &args, wanted.page_mass = mass[all].data(), wanted.first_query = 0;
          kernels->attention_mass(wanted);
        }
        CHECK(mass[0] == mass[1]);
        CHECK(mass[0][3] > 0);
      }
    }
  }
}

TEST_CASE("gather picks single tokens out of pages of several codecs") {
  AttendWorld world({.heads = 2, .head_dim = 20, .pages = 9}, 4);
  const PageShape shape = world.args.shape;
  for (const std::string& name : implementations()) {
    Kernels kernels(name, 1, {.tokens = 1, .q_heads = 2, .shape = shape, .rows = 1});
    std::vector<PageEntry> pages;
    std::vector<int32_t> at;
    for (int p : {8, 0, 3, 3, 6}) {
      pages.push_back(world.pages[static_cast<size_t>(p)]);
      at.push_back(world.pages[static_cast<size_t>(p)].begin());
    }
    std::vector<float> k(5 * 41, -1), v(5 * 41, -1), one_k(40), one_v(40);
    kernels->gather(pages.data(), at.data(), 5, shape, k.data(), v.data(), 41);
    for (size_t i = 0; i < 5; ++i) {
      kernels->decode(pages[i].codec, shape, pages[i].data, at[i], at[i] + 1, one_k.data(), one_v.data(), 40);
      CHECK(std::equal(one_k.begin(), one_k.end(), k.begin() + static_cast<ptrdiff_t>(i) * 41));
      CHECK(std::equal(one_v.begin(), one_v.end(), v.begin() + static_cast<ptrdiff_t>(i) * 41));
      CHECK(k[i * 41 + 40] == -1);
    }
  }
}

TEST_CASE("the device's memory is zeroed, aligned and counted, and more than there is names the knob") {
  const Backend backend = make_backend("cpu", 1);
  Device& device = *backend.device;
  CHECK(device.is_integrated());
  CHECK(device.free_bytes() > (1u << 20));
  auto* const memory = static_cast<unsigned char*>(device.allocate(100001));
  CHECK(reinterpret_cast<uintptr_t>(memory) % 64 == 0);
  for (int i = 0; i < 100001; i += 97) CHECK(memory[i] == 0);
  const char text[] = "moved";
  device.copy_async(memory + 1, text, sizeof text);
  device.wait(device.record());
  CHECK(std::memcmp(memory + 1, text, sizeof text) == 0);
  device.release(memory, 100001);
  CHECK_THROWS_WITH_AS(device.allocate(size_t{1} << 60), doctest::Contains("Lower memory="), DeviceError);
}

TEST_CASE("backends are listed with a reason when absent, and an unknown one names those there are") {
  CHECK(list_backends()[0].available);
  CHECK(list_backends()[1].name == "cuda");
  CHECK_FALSE(list_backends()[1].detail.empty());
  CHECK(make_backend("cpu", 0).ops->name() == cpu::implementations().back());
  CHECK_THROWS_WITH_AS(make_backend("tpu", 0), doctest::Contains("cpu, cuda"), DeviceError);
  CHECK_THROWS_AS(make_backend("cpu", -1), DeviceError);
  CHECK_THROWS_WITH_AS(cpu::make_ops("mmx", 1), doctest::Contains("plain"), InvalidInput);
}

TEST_CASE("a thread pool runs every task once, job after job, and wakes from sleep") {
  for (int threads : {1, 2, 5}) {
    cpu::ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    std::vector<int> done(1000, 0);
    long jobs = 0;
    for (int round = 0; round < 300; ++round) {
      const int tasks = round % 11 == 0 ? 1000 : round % 7;
      std::atomic<int> outside{0};
      pool.run(tasks, [&](int task, int worker) {
        done[static_cast<size_t>(task)] += 1;
        if (worker < 0 || worker >= threads) ++outside;
      });
      CHECK(outside == 0);
      jobs += tasks;
      if (round % 100 == 50) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    long sum = 0;
    for (int count : done) sum += count;
    CHECK(sum == jobs);
  }
}
