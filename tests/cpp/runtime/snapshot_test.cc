// A session that was saved and restored is the one that was not: every answer to the bit, every counter, whatever the policy,
// wherever its pages lie, and however the disk fares. The oracle is a session that nobody ever saved.
#include <doctest/doctest.h>

#include <cstring>
#include <string>

#include "policy/by_worth.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"
#include "support/shim_backend.h"
#include "support/snapshot_file.h"

namespace {

using namespace mosaic;
using mosaic::testing::is_played;
using mosaic::testing::least_cap;
using mosaic::testing::PlayedStream;
using mosaic::testing::pressed_rounds;
using mosaic::testing::small_config;
using mosaic::testing::SnapshotFile;
using mosaic::testing::TemporaryDirectory;

MemoryConfig config_for(const std::string& policy, const std::string& spill_dir, uint64_t spare = 30 << 10) {
  MemoryConfig c = small_config();
  c.model.frame_tokens = 13;
  c.window_frames = 2, c.prefix_tokens = 3, c.branch_tokens = 24;
  c.max_cluster_tokens = 20, c.retrieve_tokens = 64, c.scenes = 4;
  if (!spill_dir.empty()) c.disk_bytes = 96 << 10, c.spill_dir = spill_dir;
  if (!make_policy(policy, {})->needs().group.records) c.packed = CodecId::kInt4;
  c.cap_bytes = least_cap(c, policy) + spare;
  return c;
}

// Steps of a stream by chance: frames, questions with and without since=, kept and not, blocks that are given up.
class Player {
 public:
  Player(PlayedStream* stream, unsigned seed) : stream_(*stream), random_(seed) {}
  void step() {
    const int what = below(16);
    stream_.noise = below(4) == 0 ? 0.6f : 0.03f;
    if (below(6) == 0) stream_.room = below(6);
    if (what < 12) {
      try {
        stream_.frame(1 + below(stream_.config.model.frame_tokens));
      } catch (const MemoryCapError&) {  // full refuses
        stream_.out.clear();
      }
    } else if (what < 15) {
      stream_.ask(1 + below(6), below(3), below(2) == 0, false, below(3) == 0 ? below(stream_.now_ms + 1) : INT32_MIN);
    } else {
      stream_.open_question();
      stream_.imagine(2);
      stream_.memory->begin_text(2);
      stream_.attend_layers(1);
      stream_.memory->abort();
      stream_.close_question(true);
    }
  }

 private:
  int below(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  PlayedStream& stream_;
  std::mt19937 random_;
};

void check_same(const MemoryStats& a, const MemoryStats& b) {
  CHECK(std::memcmp(&a.tokens, &b.tokens, sizeof a.tokens) == 0);
  CHECK(std::memcmp(&a.counters, &b.counters, sizeof a.counters) == 0);
  CHECK(a.taken_bytes == b.taken_bytes);
  CHECK(a.frames == b.frames);
  CHECK(a.questions == b.questions);
  CHECK(a.frame_reads == b.frame_reads);
  CHECK(a.question_reads == b.question_reads);
  CHECK(a.unread_pages == b.unread_pages);
  CHECK(a.dropped_dialogue == b.dropped_dialogue);
  CHECK(a.clusters == b.clusters);
  CHECK(a.scenes == b.scenes);
  for (int t = 0; t < a.tiers; ++t) {
    CHECK(a.tier[t].used_bytes == b.tier[t].used_bytes);
    CHECK(a.tier[t].peak_bytes == b.tier[t].peak_bytes);
  }
}

void check_same(const Evidence& a, const Evidence& b) {
  CHECK(a.other() == b.other());
  CHECK(a.lost() == b.lost());
  bool same = true;
  for (int i = 0; i < a.capacity(); ++i)
    same &= a.moment(i).mass == b.moment(i).mass &&
            (a.moment(i).mass == 0 ||
             (a.moment(i).first_ms == b.moment(i).first_ms && a.moment(i).last_ms == b.moment(i).last_ms));
  CHECK(same);
}

struct Kind {
  const char* policy;
  PolicySettings settings;
};

// Two sessions with one history; one is saved, ended, restored, again and again, every `every` steps.
MemoryStats play(
    const MemoryConfig& config, const Kind& kind, unsigned seed, int steps, int every,
    const std::function<Backend()>& backend = [] { return make_backend("cpu", 1); }) {
  const auto policy = [&] { return make_policy(kind.policy, kind.settings); };
  PlayedStream whole(config, policy(), backend(), seed), stopped(config, policy(), backend(), seed);
  Player one(&whole, seed), other(&stopped, seed);
  for (PlayedStream* stream : {&whole, &stopped})
    if (seed % 2 == 0) stream->prefix_block(3);
  SnapshotFile file;
  for (int step = 0; step < steps; ++step) {
    if (step % every == every - 1) {
      file.save(stopped.memory.get());
      stopped.memory.reset();
      stopped.memory = file.restore(config, policy(), backend());
      stopped.memory->check_invariants();
      check_same(whole.memory->stats(), stopped.memory->stats());
      check_same(whole.memory->evidence(), stopped.memory->evidence());
    }
    one.step();
    other.step();
    const bool same = whole.out.size() == stopped.out.size() &&
                      std::memcmp(whole.out.data(), stopped.out.data(), whole.out.size() * sizeof(float)) == 0;
    CHECK(same);
    if (!same) break;
  }
  for (const PlayedStream* stream : {&whole, &stopped}) stream->memory->drain();  // what the copy thread has counted
  const MemoryStats a = whole.memory->stats(), b = stopped.memory->stats();
  check_same(a, b);
  CHECK(a.disk.bytes_written == b.disk.bytes_written);
  CHECK(a.disk.bytes_read == b.disk.bytes_read);
  CHECK(a.copies.reads == b.copies.reads);
  CHECK(a.copies.writes == b.copies.writes);
  if (config.disk_bytes == 0) {  // else the seconds of the copy thread are in it
    SnapshotFile saved;
    saved.save(whole.memory.get());
    file.save(stopped.memory.get());
    CHECK(saved.bytes() == file.bytes());
  }
  stopped.memory->check_invariants();
  return stopped.memory->stats();
}

TEST_CASE("a session of any policy goes on after it was restored as if it had never been saved") {
  std::vector<Kind> kinds;
  const std::vector<std::string> names = policy_names();
  for (const std::string& name : names) kinds.push_back({name.c_str(), {}});
  kinds.push_back({"edge", {{"unit", "summaries"}}});
  kinds.push_back({"edge", {{"unit", "summaries"}, {"members", "always"}}});
  for (const Score& score : Score::all()) kinds.push_back({"edge", {{"score", score.name}}});
  kinds.push_back({"mosaic", {{"tau", "quantile"}}});
  kinds.push_back({"mosaic", {{"levels", "visual"}}});
  kinds.push_back({"mosaic", {{"split", "eager"}}});
  for (const Kind& kind : kinds) {
    for (unsigned seed = 1; seed < 3; ++seed) {
      CAPTURE(std::string(kind.policy));
      CAPTURE(kind.settings.size());
      play(config_for(kind.policy, ""), kind, seed, 60, seed == 1 ? 11 : 3);
    }
  }
}

TEST_CASE("what lies on disk, or is on its way there, is restored as it was") {
  struct OnDisk {
    Kind kind;
    uint64_t spare;  // of the cap: enough for a disk to be worth having, and little enough that it is used
    int steps;
  };
  TemporaryDirectory directory;
  for (const auto& [kind, spare, steps] : std::vector<OnDisk>{{{"edge", {}}, 30 << 10, 90},
                                                              {{"edge", {{"unit", "summaries"}}}, 230 << 10, 260},
                                                              {{"mosaic", {}}, 30 << 10, 90},
                                                              {{"mosaic", {{"unit", "tokens"}}}, 60 << 10, 90},
                                                              {{"mosaic", {{"split", "eager"}}}, 30 << 10, 90},
                                                              {{"mukv", {}}, 130 << 10, 90},
                                                              {{"rekv", {}}, 30 << 10, 90}}) {
    for (unsigned seed = 1; seed < 3; ++seed) {
      CAPTURE(std::string(kind.policy));
      CAPTURE(kind.settings.size());
      MemoryConfig config = config_for(kind.policy, directory.path, spare);
      const bool by_record = make_policy(kind.policy, kind.settings)->retention() != nullptr;
      if (!kind.settings.empty()) config.packed = by_record ? CodecId::kK5V3 : CodecId::kInt4;
      if (by_record) config.disk_bytes = 192 << 10;
      const MemoryStats stats = play(config, kind, seed, steps, seed == 1 ? 17 : 2);
      CHECK(stats.disk.bytes_written > 0);
      CHECK(stats.tokens.spilled > 0);
    }
  }
}

TEST_CASE("a session whose kernels have memory of their own is restored as one whose kernels have not") {
  const auto shim = [] { return testing::make_shim(3, nullptr); };
  int variant = 0;
  for (const Kind& kind : std::vector<Kind>{{"mosaic", {}}, {"edge", {}}, {"mukv", {}}}) {
    if (!is_played(variant++, 3)) continue;
    CAPTURE(std::string(kind.policy));
    play(config_for(kind.policy, "", 300 << 10), kind, 2, 9, 4, shim);
  }
  variant = 0;
  // A log so small that no exact page fits it while it learns, and one that gives tokens up.
  for (const uint64_t spare : {60 << 10, 120 << 10})
    if (is_played(variant++, 2)) play(config_for("edge", "", spare), {"edge", {}}, 2, 60, 4, shim);
  TemporaryDirectory directory;
  MemoryConfig config = config_for("edge", directory.path, 90 << 10);
  config.disk_bytes = 1 << 20;
  const MemoryStats stats = play(config, {"mosaic", {{"unit", "tokens"}}}, 2, pressed_rounds(75), 4, shim);
  CHECK(stats.counters.fetched_pages > 0);
}

TEST_CASE("records with places and a log that still learns are restored") {
  MemoryConfig config = config_for("edge", "", 200 << 10);
  config.model.rope.sections[0] = 2, config.model.rope.sections[1] = config.model.rope.sections[2] = 3;
  play(config, {"edge", {}}, 1, 30, 4);
  TemporaryDirectory directory;
  config.disk_bytes = 96 << 10, config.spill_dir = directory.path;
  play(config, {"edge", {}}, 1, 60, 4);
  config.disk_bytes = 1 << 20, config.cap_bytes += 60 << 10;
  play(config, {"mosaic", {{"unit", "tokens"}}}, 1, 90, 4);
}

TEST_CASE("a page that rotted on disk before it was saved is lost to the restored session, and counted") {
  TemporaryDirectory directory;
  const MemoryConfig config = config_for("rekv", directory.path);
  testing::ScriptedIo io;
  PlayedStream stream(config, make_policy("rekv", {}), 1, &io);
  for (int i = 0; i < 40; ++i) stream.frame(13);
  stream.memory->drain();
  REQUIRE(stream.memory->stats().tokens.spilled > 0);
  const std::vector<char> zeros(1 << 20);
  const auto size = lseek(io.fd, 0, SEEK_END);
  REQUIRE(pwrite(io.fd, zeros.data(), static_cast<size_t>(size), 0) == size);
  SnapshotFile file;
  file.save(stream.memory.get());
  CHECK(stream.memory->stats().disk.bad_checksums == 0);
  stream.memory = file.restore(config, make_policy("rekv", {}), make_backend("cpu", 1));
  CHECK(stream.memory->stats().counters.lost_pages == 0);
  stream.ask(4, 1, false);
  CHECK(stream.memory->stats().counters.lost_pages > 0);
  stream.memory->check_invariants();
}

std::string refusal(const SnapshotFile& file, const MemoryConfig& config, const Kind& kind) {
  try {
    (void)file.restore(config, make_policy(kind.policy, kind.settings), make_backend("cpu", 1));
  } catch (const InvalidInput& error) {
    return error.what();
  } catch (const MemoryCapError& error) {
    return std::string("cap: ") + error.what();
  }
  return "";
}

TEST_CASE("a snapshot of another model, policy, setting or format is refused, naming it, both values and the knob") {
  const MemoryConfig config = config_for("mosaic", "");
  PlayedStream stream(config, "mosaic");
  stream.frame(9);
  SnapshotFile file;
  file.save(stream.memory.get());
  const auto says = [&](const std::string& text, const MemoryConfig& other, const Kind& kind = {"mosaic", {}}) {
    const std::string said = refusal(file, other, kind);
    CAPTURE(said);
    CHECK(said.find(text) != std::string::npos);
    CHECK(said.find('\n') == std::string::npos);
  };
  CHECK(refusal(file, config, {"mosaic", {}}) == "");
  MemoryConfig other = config;
  other.model.layers = 4;
  other.cap_bytes *= 2;
  says("layers is '3' in the file and '4' in this session", other);
  other = config;
  other.model.rope.theta = 5000;
  says("rope is '", other);
  says("policy is 'mosaic' in the file and 'window' in this session. Change policy=", config, {"window", {}});
  says("policy_settings is '' in the file and 'radius=0.03'", config, {"mosaic", {{"radius", 0.03}}});
  other = config;
  other.packed = CodecId::kInt8;
  says("packed is 'int4' in the file and 'int8' in this session", other);
  other = config;
  other.cap_bytes += 64;
  says("memory is '", other);
  std::vector<std::byte> bytes = file.bytes();
  bytes[8] = std::byte{Snapshot::kFormat + 1};
  file.set_bytes(bytes);
  says("the first bytes do not match their checksum", config);
}

TEST_CASE("a file that is cut, changed, or goes on behind its end is refused with one line") {
  const MemoryConfig config = config_for("edge", "");
  PlayedStream stream(config, "edge");
  for (int i = 0; i < 20; ++i) stream.frame(13);
  SnapshotFile file;
  file.save(stream.memory.get());
  const std::vector<std::byte> good = file.bytes();
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    std::vector<std::byte> bad = good;
    const size_t at = random() % bad.size();
    if (i % 3 == 0) {
      bad.resize(at);
    } else if (i % 3 == 1) {
      bad[at] ^= static_cast<std::byte>(1 << random() % 8);
    } else {
      bad.insert(bad.end(), 1 + random() % 9, std::byte{7});
    }
    file.set_bytes(bad);
    const std::string said = refusal(file, config, {"edge", {}});
    CAPTURE(i);
    CHECK(said.find("snapshot: ") == 0);
    CHECK(said.find('\n') == std::string::npos);
  }
}

TEST_CASE("nothing is saved while a block or a question is open, and saving changes nothing") {
  const MemoryConfig config = config_for("mosaic", "");
  PlayedStream stream(config, "mosaic");
  stream.frame(9);
  SnapshotFile file;
  stream.begin_frame(5);
  CHECK_THROWS_WITH_AS(file.save(stream.memory.get()),
                       "KvMemory: a block is open; commit() or abort() it before save().", InvalidInput);
  stream.memory->abort();
  stream.open_question();
  CHECK_THROWS_WITH_AS(file.save(stream.memory.get()), "KvMemory: a question is open; close_question() before save().",
                       InvalidInput);
  stream.close_question(false);
  file.save(stream.memory.get());
  const std::vector<std::byte> first = file.bytes();
  file.save(stream.memory.get());
  CHECK(file.bytes() == first);
}

TEST_CASE("a disk that is full ends the saving with an error, and the session goes on") {
  const MemoryConfig config = config_for("mosaic", "");
  PlayedStream stream(config, "mosaic");
  for (int i = 0; i < 5; ++i) stream.frame(9);
  const int full = open("/dev/full", O_WRONLY);
  REQUIRE(full >= 0);
  std::string said;
  try {
    SnapshotWriter writer(full);
    stream.memory->save(writer);
    writer.finish();
  } catch (const SpillError& error) {
    said = error.what();
  }
  close(full);
  CHECK(said.find("No space left on device") != std::string::npos);
  stream.frame(9);
  stream.memory->check_invariants();
}

}  // namespace
