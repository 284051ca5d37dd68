// Archive: what was given up comes back as it was written, as long as there is room; what a disk loses is counted. Coarse
// keys: means of neighbours, of more of them as the stream grows.
#include "store/archive.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "backend/backend.h"
#include "memory/faulty_io.h"
#include "support/counted.h"
#include "support/memory_fakes.h"
#include "support/snapshot_file.h"

namespace mosaic::testing {

namespace {

constexpr int kLanes = 3, kDim = 16, kMostTokens = 150;  // of a frame

struct ArchiveWorld {
  TemporaryDirectory directory;
  Backend backend = make_backend("cpu", 1);
  ArchiveShape shape;
  std::unique_ptr<Region> region;
  std::vector<std::byte> scratch;
  std::unique_ptr<Archive> archive;
  std::mt19937 random{7};
  std::vector<TokenMeta> metas;
  std::vector<float> keys[kLanes], values[kLanes];
  std::vector<float> key_means = std::vector<float>(kLanes * kDim, 0.25f);
  std::set<int64_t> gone[kLanes];
  int64_t lost = 0;
  bool together;  // lanes are added together

  explicit ArchiveWorld(int pages, CodecId codec = CodecId::kFp32, bool places = false, SpillIo* io = nullptr,
                        int stretch = 0, bool lanes_together = false)
      : together(lanes_together) {
    shape = {.lanes = kLanes,
             .pages = pages,
             .page = {1, kDim},
             .codec = codec,
             .places = places,
             .most_read = 6,
             .folder = directory.path,
             .stretch = stretch};
    region = std::make_unique<Region>(*backend.device, counted([&](Region& r) {
      Archive one(r, shape, *backend.ops, nullptr);
      if (together) one.take_together(r, kLanes, kMostTokens);
    }));
    const Ops::Limits limits{64, 1, shape.page, 16, 0};
    scratch.resize(backend.ops->scratch_bytes(limits) + 64);
    backend.ops->set_scratch(scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64, limits);
    archive = std::make_unique<Archive>(*region, shape, *backend.ops, io);
    if (together) archive->take_together(*region, kLanes, kMostTokens);
    CHECK(region->left() == 0);
  }
  void frame(int n) {
    const size_t from = metas.size();
    const auto at = static_cast<int32_t>(from);
    for (int i = 0; i < n; ++i)
      metas.push_back(shape.places
                          ? TokenMeta{at / 40, at * 10, static_cast<uint16_t>(i / 4), static_cast<uint16_t>(i % 4)}
                          : TokenMeta{at + i, at * 10 + i, 0, 0});
    std::normal_distribution<float> normal;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int i = 0; i < n * kDim; ++i) keys[lane].push_back(normal(random)), values[lane].push_back(normal(random));
    lost += archive->begin(&metas[from], n, key_means.data());
    if (together) {
      add_lanes(0, 2, from, n), add_lanes(2, 1, from, n);
    } else {
      for (int lane = 0; lane < kLanes; ++lane)
        archive->add(lane, {&keys[lane][from * kDim], &values[lane][from * kDim], &metas[from], n},
                     &key_means[static_cast<size_t>(lane) * kDim]);
    }
    lost += archive->end();
    archive->check_invariants();
  }
  void add_lanes(int first, int lanes, size_t from, int n) {
    std::vector<float> k, v;
    for (int lane = first; lane < first + lanes; ++lane)
      for (auto [all, rows] : {std::pair{&keys[lane], &k}, {&values[lane], &v}})
        rows->insert(rows->end(), all->begin() + static_cast<ptrdiff_t>(from * kDim), all->end());
    archive->add_lanes(first, lanes, n, k.data(), v.data(), key_means.data());
  }
  void give_up(int lane, int64_t token) {
    if (archive->mark_given_up(lane, static_cast<uint32_t>(token))) gone[lane].insert(token);
    CHECK(!archive->mark_given_up(lane, static_cast<uint32_t>(token)));  // not twice
  }
  // Which token a row of a page holds.
  int64_t token_at(int lane, int64_t page, int row) const {
    if (shape.stretch == 0) return page * kPageTokens + row;
    uint64_t left = archive->clusters().members(lane, static_cast<int>(page % shape.pages));
    for (; row > 0; --row) left &= left - 1;
    return page / shape.pages_at_once() * shape.stretch + std::countr_zero(left);
  }
  // The page's tokens that were given up, as they come back; wrong: how many are not what was written.
  std::set<int64_t> read(int lane, int64_t page, int* wrong) {
    archive->forget_choices();
    const auto place = static_cast<int32_t>(page % shape.pages);
    archive->pieces(lane)[0] = {place, archive->gone(lane, place)};
    archive->set_count(lane, 1);
    lost += archive->fetch(lane);
    std::set<int64_t> found;
    std::vector<float> k(kDim), v(kDim);
    for (int i = 0; i < kPageTokens; ++i) {
      if ((archive->pieces(lane)[0].rows >> i & 1) == 0) continue;
      const int64_t token = token_at(lane, page, i);
      found.insert(token);
      backend.ops->decode(shape.codec, shape.page, archive->copy(lane, 0), i, i + 1, k.data(), v.data(), kDim,
                          &key_means[static_cast<size_t>(lane) * kDim]);
      const auto from = static_cast<ptrdiff_t>(token) * kDim;
      if (!std::equal(k.begin(), k.end(), keys[lane].begin() + from)) ++*wrong;
      if (!std::equal(v.begin(), v.end(), values[lane].begin() + from)) ++*wrong;
      const TokenMeta& meta = metas[static_cast<size_t>(token)];
      CHECK(archive->time_low(lane, place, i) == meta.time_low);
      CHECK(archive->position(lane, place, i) == meta.position);
      if (shape.places) CHECK(archive->place(lane, place, i)[1] == meta.w);
    }
    return found;
  }
};

}  // namespace

TEST_CASE("every token that was given up comes back from the archive as it was written, until its page must go") {
  for (const auto& [places, stretch, together] : {std::tuple{false, 0, false},
                                                  {true, 0, false},
                                                  {false, 64, false},
                                                  {true, 32, false},
                                                  {false, 0, true},
                                                  {false, 64, true},
                                                  {true, 32, true}}) {
    CAPTURE(stretch);
    CAPTURE(together);
    ArchiveWorld world(32, CodecId::kFp32, places, nullptr, stretch, together);
    for (int f = 0; f < 90; ++f) {
      const auto before = static_cast<int64_t>(world.metas.size());
      world.frame(f % 10 == 9 ? kMostTokens - f : 1 + f * 7 % 23);
      for (int lane = 0; lane < kLanes; ++lane)
        for (int64_t token = std::max<int64_t>(0, before - 40); token < before; ++token)
          if (world.random() % 3 == 0 && !world.gone[lane].contains(token)) world.give_up(lane, token);
      world.archive->check_invariants();
    }
    const int64_t first = world.archive->first(), whole = world.archive->written() / kPageTokens;
    CHECK(first > 0);
    CHECK(whole - first / kPageTokens > 32 - world.shape.pages_at_once() - 1);
    int wrong = 0;
    int64_t spilled = 0, dropped = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      std::set<int64_t> found, expected;
      for (int64_t page = first / kPageTokens; page < whole; ++page) found.merge(world.read(lane, page, &wrong));
      for (const int64_t token : world.gone[lane]) {
        if (token < first) ++dropped;
        if (token >= first) ++spilled;
        if (token >= first && token < whole * kPageTokens) expected.insert(token);
      }
      CHECK(found == expected);
      CHECK(found.size() > 100);
    }
    CHECK(wrong == 0);
    CHECK(world.archive->spilled() == spilled);
    CHECK(world.lost == dropped);
    CHECK(world.archive->counters().lost_pages == 0);
  }
}

TEST_CASE("what waits in an archive that is saved has zeros behind its tokens, whatever came to lie there") {
  for (const bool together : {false, true}) {
    CAPTURE(together);
    ArchiveWorld world(16, CodecId::kFp32, false, nullptr, 64, together);
    Archive& archive = *world.archive;
    for (const int tokens : {124, 20, 101}) world.frame(tokens);
    const auto waiting = static_cast<int>(archive.tokens() - archive.written());
    REQUIRE(waiting == 53);  // 3 pages and 5 tokens
    const auto rows_behind = [&](int lane) {
      archive.forget_choices();
      archive.pieces(lane)[0] = {static_cast<int32_t>((archive.written() + 48) / kPageTokens), 0xffff};
      archive.set_count(lane, 1);
      CHECK(archive.fetch(lane) == 0);
      std::vector<float> k(kPageTokens * kDim), v(k);
      world.backend.ops->decode(world.shape.codec, world.shape.page, archive.copy(lane, 0), 0, kPageTokens, k.data(),
                                v.data(), kDim);
      CHECK(std::count(k.begin(), k.begin() + 5 * kDim, 0.0f) == 0);
      return 2 * 11 * kDim - std::count(k.begin() + 5 * kDim, k.end(), 0.0f) -
             std::count(v.begin() + 5 * kDim, v.end(), 0.0f);
    };
    CHECK(rows_behind(1) > 0);
    SnapshotFile file;
    SnapshotWriter writer(file.from_start());
    RestoredPage room(*world.backend.ops, world.shape.page, {1 << 20, 0});
    archive.serialize(writer, world.key_means.data(), &room);
    for (int lane = 0; lane < kLanes; ++lane) CHECK(rows_behind(lane) == 0);
  }
}

TEST_CASE(
    "an archive on a disk that fails now and then loses pages, counts their tokens, and never gives a wrong one") {
  const PageShape page{1, kDim};
  for (const int stretch : {0, 64}) {
    CAPTURE(stretch);
    FaultyIo io(5, SpillFile::stride_of(data_bytes(CodecId::kFp32, page)));
    ArchiveWorld world(32, CodecId::kFp32, false, &io, stretch);
    int64_t given_up = 0, refused = 0;
    for (int f = 0; f < 40; ++f) {
      world.frame(13);
      if (f < 2) continue;
      for (int lane = 0; lane < kLanes; ++lane)
        for (int64_t token = (f - 2) * 13; token < (f - 1) * 13; ++token) {
          const size_t before = world.gone[lane].size();
          world.give_up(lane, token);
          ++(world.gone[lane].size() > before ? given_up : refused);
        }
    }
    int wrong = 0;
    int64_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int64_t page_at = world.archive->first() / kPageTokens; page_at < world.archive->written() / kPageTokens;
           ++page_at)
        found += static_cast<int64_t>(world.read(lane, page_at, &wrong).size());
    CHECK(wrong == 0);
    CHECK(refused > 0);
    CHECK(world.archive->counters().failed_spills > 0);
    CHECK(world.archive->counters().lost_pages > 0);
    CHECK(found > 0);
    CHECK(world.archive->spilled() == given_up - world.lost);
    world.archive->check_invariants();
  }
}

// Whose reads or writes fail while they are set to.
struct BrokenIo : SpillIo {
  bool no_reads = false, no_writes = false;
  int reads = 0, writes = 0;
  ssize_t preadv(int fd, const iovec* parts, int n, off_t at) override {
    ++reads;
    errno = EIO;
    return no_reads ? -1 : SpillIo::preadv(fd, parts, n, at);
  }
  ssize_t pwritev(int fd, const iovec* parts, int n, off_t at) override {
    ++writes;
    errno = EIO;
    return no_writes ? -1 : SpillIo::pwritev(fd, parts, n, at);
  }
};

TEST_CASE("an archive whose disk cannot be read leaves it alone, and between rests loses one page") {
  BrokenIo io;
  ArchiveWorld world(64, CodecId::kFp32, false, &io);
  for (int f = 0; f < 30; ++f) world.frame(16);
  for (int64_t token = 0; token < 20 * 16; ++token) world.give_up(1, token);
  world.archive->drain();
  int wrong = 0;
  CHECK(world.read(1, 0, &wrong).size() == 16);
  io.no_reads = true;
  for (int64_t page = 1; page <= 8; ++page) {
    CHECK(world.archive->counters().read_pauses == 0);
    CHECK(world.read(1, page, &wrong).empty());
  }
  CHECK(world.archive->counters().read_pauses == 1);
  CHECK(world.archive->counters().lost_pages == 8);
  const int asked = io.reads;
  for (int frame = 0; frame < 4; ++frame) {
    CHECK(world.read(1, 9, &wrong).empty());
    world.frame(16);
  }
  CHECK(io.reads == asked);
  CHECK(world.archive->counters().lost_pages == 8);
  CHECK(world.archive->counters().paused_frames == 4);
  CHECK(world.read(1, 9, &wrong).empty());
  CHECK(world.archive->counters().lost_pages == 9);
  CHECK(world.archive->counters().read_pauses == 2);
  io.no_reads = false;
  for (int frame = 0; frame < 8; ++frame) world.frame(16);
  for (int64_t page = 10; page < 20; ++page) CHECK(world.read(1, page, &wrong).size() == 16);
  CHECK(wrong == 0);
  CHECK(world.lost == 9 * 16);
}

TEST_CASE("an archive whose disk cannot be written leaves it alone for longer and longer, and goes on when it can") {
  BrokenIo io;
  io.no_writes = true;
  ArchiveWorld world(64, CodecId::kFp32, false, &io);
  for (int f = 0; f < 60; ++f) world.frame(16);
  world.archive->drain();
  CHECK(world.archive->counters().spill_pauses >= 2);
  CHECK(world.archive->counters().paused_frames > 30);
  CHECK(io.writes < 60);  // of 60 pages of every lane
  io.no_writes = false;
  for (int f = 0; f < 64; ++f) world.frame(16);
  for (int64_t token = 120 * 16; token < 124 * 16; ++token) world.give_up(0, token);
  world.archive->drain();
  int wrong = 0;
  CHECK(world.read(0, 121, &wrong).size() == 16);
  CHECK(wrong == 0);
}

namespace {

void check_coarse_keys(bool together) {
  constexpr int kPages = 320;
  ArchiveWorld world(kPages, CodecId::kFp32, false, nullptr, 0, together);
  std::set<int> sizes;
  for (int f = 0; f < 160; ++f) {
    world.frame(29);
    const CoarseKeys& keys = world.archive->keys();
    const int each = keys.group_tokens();
    sizes.insert(each);
    CHECK(world.archive->tokens() - world.archive->first() <= int64_t{kPages} * kPageTokens);
    if (each < CoarseKeys::kMostTokens) CHECK(world.archive->tokens() <= int64_t{keys.groups()} * each);
    if (f % 8 != 0 && f != 159) continue;
    double cosine = 0;
    int groups = 0;
    for (int lane = 0; lane < kLanes; ++lane)
      for (int64_t group = world.archive->first() / each; group < world.archive->tokens() / each; ++group) {
        const auto at = static_cast<int>(group % keys.groups());
        std::vector<float> got(kDim), mean(kDim, 0.0f);
        world.backend.ops->decode(CoarseKeys::kCodec, world.shape.page, keys.page(lane, at / kPageTokens),
                                  at % kPageTokens, at % kPageTokens + 1, got.data(), nullptr, kDim,
                                  &world.key_means[static_cast<size_t>(lane) * kDim]);
        double xy = 0, xx = 0, yy = 0;
        for (size_t c = 0; c < kDim; ++c) {
          for (int64_t t = group * each; t < (group + 1) * each; ++t)
            mean[c] += world.keys[lane][static_cast<size_t>(t) * kDim + c] / static_cast<float>(each);
          const double x = mean[c] - 0.25, y = got[c] - 0.25;
          xy += x * y, xx += x * x, yy += y * y;
        }
        cosine += xy / std::sqrt(xx * yy);
        ++groups;
      }
    if (groups > 0) CHECK(cosine / groups > (each == 1 ? 0.91 : 0.75));  // halves of halves are coded each time
  }
  CHECK(sizes == std::set<int>{1, 2, 4, 8, 16, 32, 64});
}

}  // namespace

TEST_CASE("coarse keys are the means of their groups, and groups grow as the stream does") {
  CHECK(ArchiveWorld(256).archive->keys().groups() == 0);  // a question looks through as many pages
  for (const bool together : {false, true}) check_coarse_keys(together);
}

}  // namespace mosaic::testing
