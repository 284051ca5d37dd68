// Trace: what is written is read back, bounded and counted; and a run shows the reads of the next layer under the
// attention of this one.
#include "core/trace.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "backend/cpu/plain_ops.h"
#include "support/allocation_counter.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

struct Event {
  std::string name;
  int thread, lane;
  double begin, end;  // microseconds
};

// The spans of a trace, one a line. Every line that claims to be one must be readable.
std::vector<Event> spans_of(const std::string& json) {
  std::vector<Event> all;
  int unreadable = 0;
  for (size_t at = 0; at < json.size();) {
    const size_t next = json.find('\n', at);
    const std::string line = json.substr(at, next - at);
    at = next == std::string::npos ? json.size() : next + 1;
    if (line.find("\"ph\": \"X\"") == std::string::npos) continue;
    char name[32];
    Event e{"", 0, trace::kNoLane, 0, 0};
    const int read =
        std::sscanf(line.c_str(),
                    "{\"name\": \"%31[^\"]\", \"ph\": \"X\", \"pid\": 1, \"tid\": %d, \"ts\": %lf, \"dur\": %lf, "
                    "\"args\": {\"lane\": %d}}",
                    name, &e.thread, &e.begin, &e.end, &e.lane);
    unreadable += read < 4;
    e.name = name;
    e.end += e.begin;
    all.push_back(e);
  }
  REQUIRE(unreadable == 0);
  return all;
}

uint64_t count_of(const std::string& json, const std::string& name) {
  const size_t at = json.find("\"" + name + "\": ");
  REQUIRE(at != std::string::npos);
  return std::stoull(json.substr(at + name.size() + 4));
}

TEST_CASE("a span that is closed while no trace runs leaves nothing, and stopping nothing gives nothing") {
  {
    const trace::Span span("attend", 1);
  }
  CHECK(trace::stop().empty());
  trace::start();
  CHECK(spans_of(trace::stop()).empty());
}

TEST_CASE("spans come back with their thread, lane and nesting, and a second trace holds none of the first's") {
  trace::start();
  {
    const trace::Span outer("select", 5);
    const trace::Span inner("copy_wait");
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  std::thread([] { const trace::Span other("admit", 7); }).join();
  const auto all = spans_of(trace::stop());
  REQUIRE(all.size() == 3);
  CHECK(all[0].name == "copy_wait");
  CHECK(all[0].lane == trace::kNoLane);
  CHECK(all[1].name == "select");
  CHECK(all[1].lane == 5);
  CHECK(all[1].begin <= all[0].begin);
  CHECK(all[1].end >= all[0].end);
  CHECK(all[0].end - all[0].begin >= 2000);
  CHECK(all[2].thread != all[0].thread);
  CHECK(all[2].lane == 7);
  trace::start();
  const uint64_t at = trace::now();
  trace::add("attend", at, at + 1500, 0);
  const auto second = spans_of(trace::stop());
  REQUIRE(second.size() == 1);
  CHECK(second[0].end - second[0].begin == doctest::Approx(1.5));
}

TEST_CASE("a second trace is refused while one runs, and the first goes on") {
  trace::start();
  CHECK_THROWS_AS(trace::start(), InvalidInput);
  {
    const trace::Span span("attend", 0);
  }
  CHECK(spans_of(trace::stop()).size() == 1);
}

TEST_CASE(
    "the newest spans of a thread stay, older ones and those of threads too many are counted, nothing allocates") {
  trace::start();
  const uint64_t begin = trace::now();
  trace::add("attend", begin, begin, 0);  // this thread's ring is taken
  const AllocationScope allocated;
  for (uint64_t i = 1; i < trace::kSpans + 13; ++i) trace::add("attend", begin + i, begin + i, static_cast<int>(i));
  if (allocation_counting_available()) CHECK(allocated.count() == 0);
  for (int i = 0; i < trace::kThreads; ++i) std::thread([] { const trace::Span span("admit"); }).join();
  const std::string json = trace::stop();
  CHECK(count_of(json, "overwritten_spans") == 13);
  CHECK(count_of(json, "spans_without_ring") == 1);  // one ring was this thread's
  CHECK(count_of(json, "ring_bytes") == trace::ring_bytes());
  const auto all = spans_of(json);
  REQUIRE(all.size() == trace::kSpans + trace::kThreads - 1);
  CHECK(all[0].lane == 13);
  CHECK(all[trace::kSpans - 1].lane == static_cast<int>(trace::kSpans) + 12);
}

TEST_CASE("a trace that ends while other threads write holds only whole spans") {
  for (int round = 0; round < 2; ++round) {
    trace::start();
    std::atomic<bool> going{true};
    std::atomic<int> at_work{0};
    std::vector<std::thread> writers;
    for (int t = 0; t < 3; ++t)
      writers.emplace_back([&, t] {
        for (bool first = true; going; first = false) {
          const uint64_t at = trace::now();
          trace::add("attend", at, at + 1000 * static_cast<uint64_t>(t + 1), t);  // its length says its lane
          at_work += first ? 1 : 0;
        }
      });
    while (at_work < 3) std::this_thread::yield();  // a busy machine may start them late
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const auto all = spans_of(trace::stop());
    going = false;
    for (auto& writer : writers) writer.join();
    REQUIRE(!all.empty());
    int torn = 0;
    for (const Event& e : all) torn += e.end - e.begin > e.lane + 0.99 && e.end - e.begin < e.lane + 1.01 ? 0 : 1;
    CHECK(torn == 0);
  }
}

// Kernels that hold the disk back, once they are told to: what is asked for ahead of a lane's attention is read while that
// attention runs, not before and not after. A lane's own pages have been waited for when the next one's choice is scored.
struct GatedOps : cpu::PlainOps {
  ScriptedIo& io;
  bool armed = false;
  int scored = 0;
  explicit GatedOps(ScriptedIo& with) : io(with) {}
  void score(const ScoreArgs& args) override {  // by turns for a lane itself and ahead for the next one
    if (armed && scored++ % 2 == 1) io.close_gate();
    PlainOps::score(args);
  }
  void attend(const AttendArgs& args) override {
    if (armed && io.gate_is_closed()) {
      CHECK(io.entered());  // a read has begun, and ends when this has
      PlainOps::attend(args);
      return io.open_gate();
    }
    PlainOps::attend(args);
  }
};

TEST_CASE("the trace shows the next layer's pages being read while this layer attends") {
  MemoryConfig config = small_config();
  config.retrieve_tokens = 64;
  config.disk_bytes = 1 << 20;
  TemporaryDirectory directory;
  config.spill_dir = directory.path;
  config.cap_bytes = least_cap(config, "rekv") + (96 << 10);
  ScriptedIo io;
  PlayedStream stream(config, "rekv", {}, 3, &io);
  auto made = std::make_unique<GatedOps>(io);
  GatedOps& ops = *made;
  stream.memory = std::make_unique<KvMemory>(config, make_policy("rekv", {}),
                                             Backend{make_backend("cpu", 1).device, std::move(made)}, &io);
  trace::start();
  for (int frame = 0; frame < 150; ++frame) stream.frame(16);
  stream.memory->drain();
  ops.armed = true;
  stream.ask(5, 0, false);
  const auto all = spans_of(trace::stop());
  std::map<std::string, int> seen;
  for (const Event& e : all) ++seen[e.name];
  for (const char* name : {"attend", "select", "prefetch", "copy_wait", "admit", "spill_read", "spill_write"}) {
    CAPTURE(name);
    CHECK(seen[name] > 0);
  }
  int overlaps = 0;
  for (const Event& attend : all)
    for (const Event& read : all)
      overlaps += attend.name == "attend" && read.name == "spill_read" && read.lane == attend.lane + 1 &&
                  read.thread != attend.thread && read.begin < attend.end && attend.begin < read.end;
  CHECK(overlaps > 0);
}

}  // namespace
