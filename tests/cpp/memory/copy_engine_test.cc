// CopyEngine: order, backpressure, and that every request is answered once and truly.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "core/error.h"
#include "memory/copy_engine.h"
#include "support/allocation_counter.h"
#include "support/memory_fakes.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

constexpr size_t kPage = 700;

struct Setup {
  Setup(int slots, int ring, ScriptedIo* faults = nullptr)
      : file_memory(SpillFile::bytes_for(slots) / 8 + 1),
        ring_memory(CopyEngine::bytes_for(ring) / 8 + 1, 0x5555555555555555),
        file(directory.path, kPage, slots, file_memory.data(), faults),
        engine(std::make_unique<CopyEngine>(file, ring, ring_memory.data())) {
    all.resize(static_cast<size_t>(slots));
    REQUIRE(file.acquire_run(slots, all.data()) == slots);
  }
  TemporaryDirectory directory;
  std::vector<uint64_t> file_memory, ring_memory;
  SpillFile file;
  std::vector<SlotId> all;  // every slot, in use
  std::unique_ptr<CopyEngine> engine;
};

using Page = std::array<std::byte, kPage>;

void wait_for_stalls(const CopyEngine& engine, uint64_t stalls) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (engine.stats().stalls < stalls && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  REQUIRE(engine.stats().stalls >= stalls);
}

TEST_CASE("a read queued after a write of the same slot sees it, and a read before it sees what was there") {
  ScriptedIo io;
  Setup s(4, 16, &io);
  Page old, fresh, before, after;
  fill(old.data(), kPage, 1);
  fill(fresh.data(), kPage, 2);
  CHECK(s.file.write(2, old.data()) == Status::ok);
  io.close_gate();
  Completion done[3];
  s.engine->read(2, before.data(), &done[0]);
  s.engine->write(2, fresh.data(), &done[1]);
  s.engine->read(2, after.data(), &done[2]);
  for (const auto& completion : done) CHECK(!completion.done());
  io.open_gate();
  for (const auto& completion : done) CHECK(s.engine->wait(completion) == Status::ok);
  CHECK(holds(before.data(), kPage, 1));
  CHECK(holds(after.data(), kPage, 2));
  // Asked again, the answer is the same.
  CHECK(done[2].done());
  CHECK(done[2].status() == Status::ok);
  CHECK(s.engine->wait(done[2]) == Status::ok);
}

TEST_CASE("what is expected is asked for in its turn, neighbours together, and dropped where it would be waited for") {
  ScriptedIo io;
  Setup s(50, 3, &io);
  constexpr off_t kStride = SpillFile::stride_of(kPage);
  Page page;
  fill(page.data(), kPage, 5);
  Completion written, asked, again;
  io.close_gate();
  s.engine->write(5, page.data(), &written);
  REQUIRE(io.entered());  // the ring is empty
  const std::array<SlotId, 6> slots{2, 3, 4, 9, 11, 12};
  s.engine->expect(slots.data(), 6, &asked);
  s.engine->expect(slots.data(), 1, &asked);  // the one before has not run
  CHECK(!asked.done());
  CHECK(io.ahead.empty());
  std::array<Completion, 2> reads;
  std::array<Page, 2> pages;
  for (size_t i = 0; i < 2; ++i) s.engine->read(5, pages[i].data(), &reads[i]);
  s.engine->expect(slots.data(), 1, &again);  // the ring is full
  CHECK(again.done());
  io.open_gate();
  s.engine->drain();
  CHECK(asked.done());
  CHECK(io.ahead == std::vector<std::pair<off_t, off_t>>{
                        {2 * kStride, 3 * kStride}, {9 * kStride, kStride}, {11 * kStride, 2 * kStride}});
  for (const Page& read : pages) CHECK(holds(read.data(), kPage, 5));
  const CopyStats stats = s.engine->stats();
  CHECK(stats.reads == 2);
  CHECK(stats.runs == 3);
  CHECK(stats.stalls == 0);
}

TEST_CASE("a completion that was never used is done and ok") {
  Setup s(1, 1);
  const Completion idle;
  CHECK(idle.done());
  CHECK(s.engine->wait(idle) == Status::ok);
  s.engine->drain();
}

TEST_CASE("queued neighbours move with one call; another direction or a gap starts a new one") {
  ScriptedIo io;
  Setup s(50, 64, &io);
  std::vector<Page> pages(50);
  std::vector<Completion> done(50);
  std::vector<CopyRequest> requests;
  const auto add = [&](CopyRequest::Kind kind, SlotId slot) {
    const size_t i = requests.size();
    fill(pages[i].data(), kPage, static_cast<uint64_t>(slot));
    requests.push_back({kind, -1, slot, pages[i].data(), &done[i]});
  };
  for (SlotId slot = 0; slot < 40; ++slot) add(CopyRequest::Kind::write, slot);  // 32 + 8
  for (const SlotId slot : {45, 46, 44}) add(CopyRequest::Kind::write, slot);    // 2 + 1
  for (const SlotId slot : {45, 46}) add(CopyRequest::Kind::read, slot);         // 1 run
  s.engine->submit(requests.data(), static_cast<int>(requests.size()));
  s.engine->drain();
  for (size_t i = 0; i < requests.size(); ++i) {
    CHECK(done[i].done());
    CHECK(done[i].status() == Status::ok);
  }
  CHECK(holds(pages[43].data(), kPage, 45));
  CHECK(io.writes == 4);
  CHECK(io.reads == 1);
  const CopyStats stats = s.engine->stats();
  CHECK(stats.runs == 5);
  CHECK(stats.writes == 43);
  CHECK(stats.reads == 2);
  CHECK(stats.failed == 0);
  CHECK(stats.bytes == 45 * kPage);
  CHECK(stats.stalls == 0);
  CHECK(stats.busy_seconds > 0);
}

TEST_CASE("a full ring makes the submitter wait, counts it, and loses nothing") {
  ScriptedIo io;
  Setup s(20, 4, &io);
  const uint64_t guard = s.ring_memory.back();
  std::vector<Page> pages(12);
  std::vector<Completion> done(12);
  for (size_t i = 0; i < 12; ++i) fill(pages[i].data(), kPage, i);
  io.close_gate();
  s.engine->write(0, pages[0].data(), &done[0]);
  io.entered();  // the thread holds the first; the ring is empty
  for (int i = 1; i <= 4; ++i)
    s.engine->write(2 * i % 20, pages[static_cast<size_t>(i)].data(), &done[static_cast<size_t>(i)]);
  CHECK(s.engine->stats().stalls == 0);
  std::atomic<bool> through{false};
  std::thread submitter([&] {
    for (size_t i = 5; i < 12; ++i)
      s.engine->write(static_cast<SlotId>(i < 10 ? 2 * i : 2 * i - 19), pages[i].data(), &done[i]);
    through = true;
  });
  wait_for_stalls(*s.engine, 1);
  CHECK(!through);
  CHECK(!done[0].done());
  io.open_gate();
  submitter.join();
  s.engine->drain();
  for (auto& completion : done) CHECK(completion.done());
  CHECK(s.engine->stats().writes == 12);
  CHECK(s.engine->stats().stall_seconds > 0);
  CHECK(s.ring_memory.back() == guard);
  Page back;
  for (size_t i = 0; i < 10; ++i) {
    CHECK(s.file.read(static_cast<SlotId>(2 * i % 20), back.data()) == Status::ok);
    CHECK(holds(back.data(), kPage, i));
  }
}

TEST_CASE("one batch larger than the ring goes through, even with a ring of one") {
  for (const int ring : {1, 2, 3}) {
    Setup s(40, ring);
    std::vector<Page> pages(40);
    std::vector<Completion> done(40);
    std::vector<CopyRequest> requests;
    for (size_t i = 0; i < 40; ++i) {
      fill(pages[i].data(), kPage, i);
      requests.push_back({CopyRequest::Kind::write, -1, static_cast<SlotId>(i), pages[i].data(), &done[i]});
    }
    s.engine->submit(requests.data(), 40);
    s.engine->drain();
    Page back;
    for (size_t i = 0; i < 40; ++i) {
      CHECK(s.file.read(static_cast<SlotId>(i), back.data()) == Status::ok);
      CHECK(holds(back.data(), kPage, i));
    }
  }
}

TEST_CASE("a failed copy is that copy's status and no other's") {
  ScriptedIo io;
  Setup s(8, 32, &io);
  std::vector<Page> pages(8);
  std::vector<Completion> done(8);
  std::vector<CopyRequest> requests;
  for (size_t i = 0; i < 8; ++i) {
    fill(pages[i].data(), kPage, i);
    requests.push_back({CopyRequest::Kind::write, -1, static_cast<SlotId>(i), pages[i].data(), &done[i]});
  }
  io.disk_bytes = 1024 * 5;
  s.engine->submit(requests.data(), 8);
  for (size_t i = 0; i < 8; ++i) CHECK(s.engine->wait(done[i]) == (i < 5 ? Status::ok : Status::no_space));
  for (auto& request : requests) request.kind = CopyRequest::Kind::read;
  io.flip_call = io.calls;
  s.engine->submit(requests.data(), 8);
  s.engine->drain();
  CHECK(done[0].status() == Status::bad_checksum);
  for (size_t i = 1; i < 5; ++i) CHECK(done[i].status() == Status::ok);
  for (size_t i = 5; i < 8; ++i) CHECK(done[i].status() == Status::bad_checksum);
  CHECK(s.engine->stats().failed == 3 + 4);
  CHECK(s.engine->stats().bytes == 9 * kPage);
}

TEST_CASE("a completion still under way is refused for a second copy, and the first is unharmed") {
  ScriptedIo io;
  Setup s(3, 8, &io);
  Page page;
  fill(page.data(), kPage, 3);
  Completion done;
  io.close_gate();
  s.engine->write(0, page.data(), &done);
  CHECK_THROWS_AS(s.engine->write(1, page.data(), &done), InvariantError);
  io.open_gate();
  CHECK(s.engine->wait(done) == Status::ok);
  s.engine->write(1, page.data(), &done);  // free for the next one
  CHECK(s.engine->wait(done) == Status::ok);
  CHECK(s.engine->stats().writes == 2);
}

TEST_CASE("the destructor finishes everything that is queued") {
  ScriptedIo io;
  Setup s(30, 30, &io);
  std::vector<Page> pages(30);
  std::vector<Completion> done(30);
  io.close_gate();
  for (size_t i = 0; i < 30; ++i) {
    fill(pages[i].data(), kPage, i + 7);
    s.engine->write(static_cast<SlotId>((i * 7) % 30), pages[i].data(), &done[i]);
  }
  std::thread opener([&] {
    io.entered();
    io.open_gate();
  });
  s.engine.reset();
  opener.join();
  Page back;
  for (size_t i = 0; i < 30; ++i) {
    CHECK(done[i].done());
    CHECK(s.file.read(static_cast<SlotId>((i * 7) % 30), back.data()) == Status::ok);
    CHECK(holds(back.data(), kPage, i + 7));
  }
}

TEST_CASE("an engine without room is refused") {
  Setup s(1, 1);
  uint64_t memory[8];
  CHECK_THROWS_AS(CopyEngine(s.file, 0, memory), InvalidInput);
  CHECK_THROWS_AS(CopyEngine(s.file, -5, memory), InvalidInput);
}

// Random copies of one submitter on its own slots, checked against what a plain map says they should be.
// Returns the number of answers that were wrong.
int stress(CopyEngine& engine, const std::vector<SlotId>& slots, unsigned seed, int steps) {
  constexpr size_t kInFlight = 24;
  struct Flight {
    Page page;
    Completion done;
    bool active = false, reading = false;
    SlotId slot = kNone;
    uint64_t expected = 0;
  };
  std::vector<Flight> flights(kInFlight);
  std::map<SlotId, uint64_t> model;  // what a read queued now must see
  std::mt19937 random(seed);
  uint64_t serial = uint64_t{seed} << 32;
  int wrong = 0;
  const auto finish = [&](Flight& flight) {
    if (!flight.active) return;
    const Status status = engine.wait(flight.done);
    flight.active = false;
    if (flight.expected == 0) {
      wrong += status == Status::ok ? 1 : 0;  // never written
    } else {
      wrong += status != Status::ok || !holds(flight.page.data(), kPage, flight.expected) ? 1 : 0;
    }
  };
  for (int step = 0; step < steps; ++step) {
    Flight& flight = flights[random() % kInFlight];
    finish(flight);
    // Often the next slot, so that runs form.
    const SlotId slot = slots[random() % 3 == 0 ? random() % slots.size() : static_cast<size_t>(step) % slots.size()];
    flight.slot = slot;
    flight.active = true;
    flight.reading = random() % 2 == 0;
    if (flight.reading) {
      flight.expected = model.contains(slot) ? model[slot] : 0;
      engine.read(slot, flight.page.data(), &flight.done);
    } else {
      flight.expected = model[slot] = ++serial;
      fill(flight.page.data(), kPage, serial);
      engine.write(slot, flight.page.data(), &flight.done);
    }
    if (random() % 200 == 0) engine.drain();
  }
  for (auto& flight : flights) finish(flight);
  return wrong;
}

TEST_CASE("random copies equal a plain map, with short, interrupted calls and every ring size") {
  for (const int ring : {1, 3, 64}) {
    ScriptedIo io;
    io.at_most = ring == 3 ? 900 : SIZE_MAX;
    io.interrupt_every = ring == 64 ? 5 : 0;
    Setup s(40, ring, &io);
    CHECK(stress(*s.engine, s.all, static_cast<unsigned>(ring), 6000) == 0);
    s.engine->drain();
    const CopyStats stats = s.engine->stats();
    CHECK(stats.reads + stats.writes == 6000);
    CHECK(stats.runs <= 6000);
  }
}

TEST_CASE("four submitters at once, each with its own slots, all see their own writes") {
  Setup s(80, 8);
  std::vector<int> wrong(4, -1);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::vector<SlotId> mine(s.all.begin() + 20 * t, s.all.begin() + 20 * (t + 1));
      wrong[t] = stress(*s.engine, mine, t + 1, 3000);
    });
  }
  for (auto& thread : threads) thread.join();
  for (const int count : wrong) CHECK(count == 0);
  CHECK(s.engine->stats().reads + s.engine->stats().writes == 12000);
}

TEST_CASE("slots are taken, written, read, released and taken again while copies run") {
  Setup s(16, 4);
  for (const SlotId slot : s.all) s.file.release(slot);
  std::mt19937 random(3);
  struct Held {
    SlotId slot = kNone;
    uint64_t seed = 0;
    Page page;
    Completion done;
  };
  std::vector<Held> held(20);  // more than there are slots
  uint64_t serial = 0;
  int wrong = 0, full = 0;
  for (int step = 0; step < 8000; ++step) {
    Held& h = held[random() % held.size()];
    s.engine->wait(h.done);
    if (h.slot == kNone) {
      h.slot = s.file.try_acquire();
      if (h.slot == kNone) {
        ++full;
        continue;
      }
      h.seed = ++serial;
      fill(h.page.data(), kPage, h.seed);
      s.engine->write(h.slot, h.page.data(), &h.done);
    } else if (random() % 2 == 0) {
      h.page.fill(std::byte{0});
      s.engine->read(h.slot, h.page.data(), &h.done);
      wrong += s.engine->wait(h.done) != Status::ok || !holds(h.page.data(), kPage, h.seed) ? 1 : 0;
    } else {
      s.file.release(h.slot);
      h.slot = kNone;
    }
  }
  s.engine->drain();
  CHECK(wrong == 0);
  CHECK(full > 0);
  s.file.check_invariants();
}

TEST_CASE("nothing in the copy engine allocates after it is built: stalls, failures and waits included") {
  ScriptedIo io;
  Setup s(32, 4, &io);
  std::vector<Page> pages(32);
  std::vector<Completion> done(32);
  std::vector<CopyRequest> requests;
  for (size_t i = 0; i < 32; ++i) {
    requests.push_back({CopyRequest::Kind::write, -1, static_cast<SlotId>(i), pages[i].data(), &done[i]});
  }
  s.engine->drain();
  const AllocationScope scope;
  for (int round = 0; round < 50; ++round) {
    io.fail_call = io.calls + 1;
    io.fail_errno = round % 2 == 0 ? EIO : ENOSPC;
    for (auto& request : requests) request.kind = round % 2 == 0 ? CopyRequest::Kind::write : CopyRequest::Kind::read;
    s.engine->submit(requests.data(), 32);
    for (auto& completion : done) s.engine->wait(completion);
    s.engine->drain();
    s.engine->stats();
  }
  const uint64_t made = scope.count();
  CHECK(made == 0);
  CHECK(s.engine->stats().failed > 0);
  CHECK(s.engine->stats().stalls > 0);
}

}  // namespace
