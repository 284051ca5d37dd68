// TokenLog: every token is found where it was put, whatever was given up, moved and settled around it.
#include "store/token_log.h"

#include <doctest/doctest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include "backend/backend.h"
#include "store/listening.h"

namespace mosaic::testing {

namespace {

struct LogWorld {
  LogShape shape;
  Backend backend = make_backend("cpu", 1);
  std::unique_ptr<Region> region;
  std::vector<std::byte> scratch;
  std::unique_ptr<TokenLog> log;
  std::mt19937 random{7};
  int position = 0;

  explicit LogWorld(int pages, CodecId codec = CodecId::kFp16, bool places = false) {
    shape = {.lanes = 2, .pages = pages, .page = {1, 8}, .codec = codec, .places = places};
    region = std::make_unique<Region>(*backend.device, size_t{1} << 20);
    const Ops::Limits limits{64, 1, shape.page, 16, 0};
    scratch.resize(backend.ops->scratch_bytes(limits) + 64);
    backend.ops->set_scratch(scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64, limits);
    log = std::make_unique<TokenLog>(*region, shape, *backend.ops);
    log->end_learning();
  }
  // A token whose numbers say its position, exactly representable in half precision.
  std::vector<TokenSlot> add(int lane, int n) {
    std::vector<float> k, v;
    std::vector<TokenMeta> meta;
    for (int i = 0; i < n; ++i) {
      for (int c = 0; c < 8; ++c)
        k.push_back(static_cast<float>(position + c)), v.push_back(static_cast<float>(-c - position));
      meta.push_back(
          {position, position * 10, static_cast<uint16_t>(position % 7), static_cast<uint16_t>(position % 5)});
      ++position;
    }
    if (!log->knows_mean(lane)) log->learn_mean(lane, k.data(), v.data(), n);
    std::vector<TokenSlot> slots(static_cast<size_t>(n));
    log->add(lane, {k.data(), v.data(), meta.data(), n}, slots.data());
    return slots;
  }
  // Positions that the log's pages really hold, read out of their data.
  std::set<int> read(int lane) {
    std::set<int> found;
    std::vector<float> k(8), v(8);
    for (TokenSlot s = 0; s < log->capacity(); ++s) {
      if (!log->holds(lane, s)) continue;
      backend.ops->decode(shape.codec, shape.page, log->data(lane, s / kPageTokens), s % kPageTokens,
                          s % kPageTokens + 1, k.data(), v.data(), 8, log->key_mean(lane));
      const int p = log->positions(lane)[s];
      CHECK(k[0] == static_cast<float>(p));
      CHECK(v[7] == static_cast<float>(-7 - p));
      CHECK(log->time_lows(lane)[s] == p * 10);
      if (shape.places) CHECK(log->places(lane)[2 * s] == p % 7);
      found.insert(p);
    }
    return found;
  }
};

}  // namespace

TEST_CASE("a log holds exactly the tokens that were added and not given up, under any order of both") {
  for (const int pages : {1, 2, 5, 9}) {
    for (const bool places : {false, true}) {
      LogWorld world(pages, CodecId::kFp16, places);
      std::map<int, std::set<int>> kept;                          // by lane
      std::vector<std::vector<std::pair<TokenSlot, int>>> heard;  // tokens by frame, and their lane
      for (int step = 0; step < 120; ++step) {
        const int lane = static_cast<int>(world.random() % 2), n = 1 + static_cast<int>(world.random() % 13);
        // Make room among settled and heard tokens alike.
        while (world.log->free(lane) < std::min(n, world.log->capacity())) {
          const auto slot = static_cast<TokenSlot>(world.random() % static_cast<unsigned>(world.log->capacity()));
          if (!world.log->holds(lane, slot)) continue;
          kept[lane].erase(world.log->positions(lane)[slot]);
          world.log->erase(lane, slot);
          for (auto& frame : heard) std::erase(frame, std::pair{slot, lane});
        }
        const int first = world.position;
        std::vector<std::pair<TokenSlot, int>> frame;
        for (const TokenSlot s : world.add(lane, std::min(n, world.log->free(lane)))) frame.emplace_back(s, lane);
        for (int p = first; p < world.position; ++p) kept[lane].insert(p);
        heard.push_back(frame);
        if (heard.size() > 3) {
          for (const auto& [slot, of] : heard.front()) world.log->settle(of, slot, static_cast<float>(step));
          heard.erase(heard.begin());
        }
        world.log->check_invariants();
        for (const int l : {0, 1}) CHECK(world.read(l) == kept[l]);
      }
    }
  }
}

TEST_CASE("every slot of a log can be taken, however its tokens went") {
  LogWorld world(4);
  const auto slots = world.add(0, 64);
  CHECK(world.log->free(0) == 0);
  for (const TokenSlot s : slots) world.log->settle(0, s, 1);
  for (size_t i = 0; i < slots.size(); i += 3) world.log->erase(0, slots[i]);
  world.add(0, world.log->free(0));
  CHECK(world.log->free(0) == 0);
  CHECK(world.read(0).size() == 64);
}

TEST_CASE("what is still heard stands in few pages: a settled page is emptied for it") {
  LogWorld world(8);
  const auto old = world.add(0, 128);
  for (const TokenSlot s : old) world.log->settle(0, s, 1);
  for (size_t i = 0; i < old.size(); i += 8) world.log->erase(0, old[i]);  // two holes in every page
  std::map<TokenSlot, int> before;                                         // positions of what is kept
  for (TokenSlot s = 0; s < world.log->capacity(); ++s)
    if (world.log->holds(0, s)) before[s] = world.log->positions(0)[s];
  world.add(0, 16);
  int pages = 0;
  for (int p = 0; p < 8; ++p) pages += world.log->heard(0, p) != 0 ? 1 : 0;
  CHECK(pages == 1);
  int moved = 0;
  for (const auto& [slot, position] : before)
    moved += world.log->holds(0, slot) && world.log->positions(0)[slot] == position ? 0 : 1;
  CHECK(moved == 14);  // the page that was emptied, into holes
  CHECK(world.read(0).size() == 128);
}

TEST_CASE("more tokens than free slots are refused before anything changes") {
  LogWorld world(1);
  world.add(0, 10);
  CHECK_THROWS_AS(world.add(0, 7), InvariantError);
  CHECK(world.read(0).size() == 10);
}

TEST_CASE("a frame that is refused leaves no mark on the attention received") {
  LogWorld world(1);
  Listening heard(*world.region, {.lanes = 1, .frames = 2, .frame_tokens = 3});
  const auto pay = [&](float first, float own) {
    for (int f = 0; f < heard.frames(); ++f)
      for (int i = 0; i < heard.frame(f).tokens; ++i) heard.now(0, f)[i] = float_to_half(first);
    for (int i = 0; i < 3; ++i) heard.now(0, heard.frames())[i] = float_to_half(own);
  };
  pay(0, 0.5f);
  heard.file(3);
  pay(99, 99);  // refused
  pay(0.25f, 1);
  heard.file(2);
  CHECK(heard.received(0, 0, 2) == 0.75f);
  CHECK(heard.received(0, 1, 1) == 1.0f);
  pay(0.25f, 1);
  heard.file(3);
  CHECK(heard.full());
  CHECK(heard.received(0, 0, 0) == 1.0f);
  heard.forget_oldest();
  CHECK(heard.frame(0).tokens == 2);
  CHECK(heard.received(0, 0, 1) == 1.25f);
}

TEST_CASE("a log that learns keeps tokens exact, and packs every one of them where it lies") {
  for (const CodecId codec : {CodecId::kK5V3, CodecId::kK3V3, CodecId::kFp16, CodecId::kFp32}) {
    for (const int tokens : {1, 15, 16, 17, 40}) {
      CAPTURE(codec_name(codec));
      CAPTURE(tokens);
      LogWorld world(40, codec);
      TokenLog log(*world.region, world.shape, *world.backend.ops);
      const int step = log.step();
      CHECK(log.is_learning());
      CHECK(log.codec() == CodecId::kFp16);
      CHECK(log.free(0) == 40 / step * kPageTokens);
      if (codec == CodecId::kFp16 || codec == CodecId::kFp32) CHECK(step == 1);
      std::vector<float> k, v, mean(8, 0.0f);
      std::vector<TokenMeta> meta;
      std::normal_distribution<float> normal;
      for (int i = 0; i < tokens; ++i) {
        meta.push_back({i, 10 * i, 0, 0});
        for (int c = 0; c < 8; ++c) {
          k.push_back(half_to_float(float_to_half(5.0f + normal(world.random))));
          v.push_back(half_to_float(float_to_half(normal(world.random))));
          mean[static_cast<size_t>(c)] += k.back() / static_cast<float>(tokens);
        }
      }
      std::vector<TokenSlot> slots(static_cast<size_t>(tokens));
      for (const int lane : {0, 1}) {
        log.learn_mean(lane, k.data(), v.data(), tokens);
        log.add(lane, {k.data(), v.data(), meta.data(), tokens}, slots.data());
      }
      std::vector<float> got_k(16 * 8), got_v(16 * 8), one_k(8), one_v(8);
      const auto token = [&](TokenSlot slot) {
        const int page = slot / kPageTokens, row = slot % kPageTokens;
        world.backend.ops->decode(log.codec(), world.shape.page, log.data(1, page), row, row + 1, one_k.data(),
                                  one_v.data(), 8, log.key_mean(1));
      };
      for (int i = 0; i < tokens; ++i) {
        token(slots[static_cast<size_t>(i)]);
        CHECK(std::equal(one_k.begin(), one_k.end(), k.begin() + i * 8));
        CHECK(std::equal(one_v.begin(), one_v.end(), v.begin() + i * 8));
      }
      for (int page = 0; page + step <= 40; page += step)
        for (const int lane : {0, 1}) {
          if (log.rows(lane, page) == 0) continue;
          log.unpack(lane, page, got_k.data(), got_v.data());
          log.pack(lane, page, got_k.data(), got_v.data());
        }
      log.end_learning();
      CHECK(log.codec() == codec);
      CHECK(log.free(1) == 40 * kPageTokens - tokens);
      double error = 0, power = 0;
      for (int i = 0; i < tokens; ++i) {
        const TokenSlot slot = slots[static_cast<size_t>(i)];
        CHECK(log.holds(1, slot));
        CHECK(log.positions(1)[slot] == i);
        token(slot);
        for (size_t c = 0; c < 8; ++c) {
          const double x = k[static_cast<size_t>(i) * 8 + c], off = x - mean[c];
          error += (x - one_k[c]) * (x - one_k[c]), power += off * off;
        }
      }
      if (tokens > 1) CHECK(error <= power * (codec == CodecId::kK5V3 ? 0.01 : codec == CodecId::kK3V3 ? 0.1 : 1e-12));
      log.check_invariants();
      // From here on it is full pages of packed tokens.
      std::vector<TokenSlot> more(16);
      for (int n = 0; log.free(1) >= 16; ++n)
        log.add(1, {k.data(), v.data(), meta.data(), std::min(16, tokens)}, more.data());
      log.check_invariants();
    }
  }
}

}  // namespace mosaic::testing
