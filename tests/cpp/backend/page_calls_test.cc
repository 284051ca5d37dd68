// Pages are written and read a call each, and go to the device together (cuda/page_calls.h). That must not show in any
// number, whatever stands in the way of what, and must show in how often the device is called.
#include <doctest/doctest.h>

#include <cstring>

#include "support/ops_world.h"
#include "support/shim_backend.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

constexpr PageShape kShape{2, 32};
constexpr size_t kRow = 64, kRows = 160;
constexpr int kPages = 5;
constexpr CodecId kCodecsUsed[] = {CodecId::kFp16, CodecId::kInt8, CodecId::kInt4, CodecId::kK5V3};

struct Memory {
  float *k, *v;
  std::byte* pages;
  size_t pitch;
  float *room_k = nullptr, *room_v = nullptr;  // for kernels that have none
  std::byte* page(int i) const { return pages + static_cast<size_t>(i) * pitch; }
};

// The same calls for any kernels: pages, rows and codecs that meet again and again.
void call_at_random(Ops& ops, const Memory& m, unsigned seed, int calls) {
  Random random(seed);
  std::vector<CodecId> codecs(kPages, CodecId::kFp16);
  const auto pick = [&] { return kCodecsUsed[random.below(4)]; };
  for (int i = 0; i < calls; ++i) {
    const int page = random.below(kPages), count = 1 + random.below(kPageTokens);
    const size_t row = static_cast<size_t>(random.below(static_cast<int>(kRows) - kPageTokens)) * kRow;
    const int what = random.below(4);
    CodecId& codec = codecs[static_cast<size_t>(page)];
    if (what == 0) {
      codec = pick();
      ops.encode(codec, kShape, m.k + row, m.v + row, kRow, count, m.page(page), nullptr);
    } else if (what == 1 && count < kPageTokens) {  // of itself, or of another one
      const int other = random.below(2) == 0 ? page : random.below(kPages);
      const CodecId from = codecs[static_cast<size_t>(other)];
      if (other != page) codec = pick();
      ops.grow_page({from, m.page(other), count, codec, m.page(page), kShape, m.k + row, m.v + row, kRow,
                     1 + random.below(kPageTokens - count), m.room_k, m.room_v});
    } else if (what == 2 && codec_is_record(codec)) {
      ops.encode_row(codec, kShape, m.k + row, m.v + row, count - 1, m.page(page), nullptr);
    } else {
      ops.decode(codec, kShape, m.page(page), 0, count, m.k + row, m.v + row, kRow, nullptr);
    }
  }
}

}  // namespace

TEST_CASE("pages written and read a call each give the numbers of one call after the other, whatever meets what") {
  const size_t pitch = page_bytes(CodecId::kFp32, kShape), bytes = pitch * kPages;
  for (unsigned seed = 1; seed < 9; ++seed) {
    CAPTURE(seed);
    Random random(seed);
    const auto k = random.normals(kRows * kRow), v = random.normals(kRows * kRow);
    auto want_k = k, want_v = v, room_k = k, room_v = v;
    std::vector<std::byte> want(bytes + 64);
    std::byte* const aligned = want.data() + (64 - reinterpret_cast<uintptr_t>(want.data()) % 64) % 64;
    call_at_random(*cpu::make_ops("plain", 1),
                   {want_k.data(), want_v.data(), aligned, pitch, room_k.data(), room_v.data()}, seed, 300);

    ShimControl control;
    const Backend shim = make_shim(3, &control);
    const size_t row_bytes = k.size() * sizeof(float);
    const auto take = [&](size_t n) { return shim.device->allocate(n); };
    const Memory there{static_cast<float*>(take(row_bytes)), static_cast<float*>(take(row_bytes)),
                       static_cast<std::byte*>(take(bytes)), pitch};
    std::memcpy(there.k, k.data(), row_bytes);
    std::memcpy(there.v, v.data(), row_bytes);
    call_at_random(*shim.ops, there, seed, 300);
    shim.ops->wait();
    CHECK(std::memcmp(there.k, want_k.data(), row_bytes) == 0);
    CHECK(std::memcmp(there.v, want_v.data(), row_bytes) == 0);
    CHECK(std::memcmp(there.pages, aligned, bytes) == 0);
    for (void* piece : {static_cast<void*>(there.k), static_cast<void*>(there.v), static_cast<void*>(there.pages)})
      shim.device->release(piece, 0);
  }
}

TEST_CASE("pages that are read, and pages that are written from what was read, are a launch each until 80 wait") {
  constexpr int kMany = 80;
  ShimControl control;
  const Backend shim = make_shim(3, &control);
  const size_t pitch = page_bytes(CodecId::kFp16, kShape);
  auto* const from = static_cast<std::byte*>(shim.device->allocate(pitch * (kMany + 1)));
  auto* const to = static_cast<std::byte*>(shim.device->allocate(pitch * (kMany + 1)));
  auto* const rows = static_cast<float*>(shim.device->allocate(2 * (kMany + 1) * kRow * sizeof(float)));
  const auto move = [&](int pages) {
    const int64_t before = control.calls.launches;
    for (int i = 0; i < pages; ++i) {
      const auto at = static_cast<size_t>(i);
      float *const k = rows + 2 * at * kRow, *const v = k + kRow;
      shim.ops->decode(CodecId::kFp16, kShape, from + at * pitch, 0, 1, k, v, kRow, nullptr);
      shim.ops->encode(CodecId::kFp16, kShape, k, v, kRow, 1, to + at * pitch, nullptr);
    }
    shim.ops->wait();
    return control.calls.launches - before;
  };
  CHECK(move(1) == 2);
  CHECK(move(kMany) == 2);
  CHECK(move(kMany + 1) == 3);
  shim.device->release(from, 0), shim.device->release(to, 0), shim.device->release(rows, 0);
}

TEST_CASE("a page that is written again and again is one launch, whatever it takes from which page") {
  ShimControl control;
  const Backend shim = make_shim(3, &control);
  const size_t pitch = page_bytes(CodecId::kFp32, kShape);
  auto* const pages = static_cast<std::byte*>(shim.device->allocate(pitch * kPages));
  auto* const rows = static_cast<float*>(shim.device->allocate(2 * kPageTokens * kRow * sizeof(float)));
  const auto page = [&](int i) { return pages + static_cast<size_t>(i) * pitch; };
  const auto grow = [&](int from, int held, int to) {
    shim.ops->grow_page({CodecId::kInt4, page(from), held, CodecId::kInt4, page(to), kShape, rows, rows, kRow, 1});
  };
  const auto launches = [&](const auto& calls) {
    shim.ops->wait();
    const int64_t before = control.calls.launches;
    calls();
    shim.ops->wait();
    return control.calls.launches - before;
  };
  const auto write = [&](int to) { shim.ops->encode(CodecId::kInt4, kShape, rows, rows, kRow, 1, page(to)); };
  CHECK(launches([&] {
          for (int i = 0; i < 3; ++i) write(i);
          for (int held = 1; held < kPageTokens; ++held)
            for (int i = 0; i < 3; ++i) grow(i, held, i);
        }) == 1);
  CHECK(launches([&] { write(0), grow(0, 1, 1), grow(1, 2, 2), write(0); }) == 1);  // one chain, to its end
  CHECK(launches([&] { write(0), write(1), grow(0, 1, 1); }) == 2);                 // of two
  shim.device->release(pages, 0), shim.device->release(rows, 0);
}
