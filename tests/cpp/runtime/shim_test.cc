// The store, the policies and the runtime over the CUDA backend's kernels, unchanged: on the shim, whose kernels have
// memory that the host cannot touch, reach nothing of the host's but what the device gave out, and run when waited for.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>

#include "backend/cuda/simt.h"
#include "support/device_arrays.h"
#include "support/memory_fakes.h"
#include "support/played_stream.h"
#include "support/rounds.h"
#include "support/shim_backend.h"

using namespace mosaic;
using mosaic::testing::OnDevice;
using mosaic::testing::PlayedStream;

namespace {

PlayedStream on_shim(const MemoryConfig& config, const std::string& policy, testing::ShimControl* control = nullptr,
                     const PolicySettings& settings = {}) {
  return PlayedStream(config, make_policy(policy, settings), testing::make_shim(3, control));
}

// Frames are attended by tensor cores, whose factors are halves where pages are.
constexpr double kHalf = 2e-3;

// A memory that holds and reads everything.
MemoryConfig everything(bool multi = false, CodecId codec = CodecId::kFp16) {
  MemoryConfig config = mosaic::testing::small_config(16 << 20);
  config.exact = codec;
  config.packed = codec;
  config.retrieve_tokens = 4000, config.window_frames = 4, config.prefix_tokens = 7, config.branch_tokens = 64;
  config.clusters = 512, config.max_cluster_tokens = 1024;
  if (multi) config.model.rope.sections[0] = 2, config.model.rope.sections[1] = config.model.rope.sections[2] = 3;
  return config;
}

}  // namespace

TEST_CASE("a memory on the CUDA kernels that holds and reads everything answers as full attention does") {
  // mosaic reads a cluster of one token through its mean, a half: it is not exact in fp32 either.
  for (const auto& [policy, codec, tolerance] :
       {std::tuple{"full", CodecId::kFp32, 3e-5}, {"full", CodecId::kFp16, kHalf}, {"mosaic", CodecId::kFp16, kHalf}}) {
    for (const bool multi : {false, true}) {
      CAPTURE(policy);
      CAPTURE(multi);
      PlayedStream stream = on_shim(everything(multi, codec), policy);
      CHECK(stream.memory->plan().private_bytes > 0);
      CHECK(stream.prefix_block(5, true) < tolerance);
      for (const int tokens : {16, 1, 13, 16, 7, 16, 16, 5, 16, 16, 16, 16}) {
        CHECK(stream.frame(tokens, true) < tolerance);
        stream.memory->check_invariants();
      }
      REQUIRE(stream.memory->stats().tokens.collapsed == 0);
      CHECK(stream.ask(3, 2, true, true) < tolerance);
      CHECK(stream.memory->stats().unread_pages == 0);
    }
  }
}

TEST_CASE("pages pass from the kernels' memory to the host's and to disk, and come back whole") {
  mosaic::testing::TemporaryDirectory directory;
  const PolicySettings from_disk{{"frames_read", "chosen"}};  // frames read pages of the disk too
  for (const bool disk : {false, true}) {
    MemoryConfig config = everything(true);
    config.device_bytes = disk ? 12 << 10 : 60 << 10;  // some of them; the rest are the host's
    if (disk) {
      config.disk_bytes = 8 << 20, config.spill_dir = directory.path;
      config.retrieve_tokens = 1000, config.cap_bytes = 1 << 20;
      const auto policy = make_policy("rekv", from_disk);
      const Backend backend = testing::make_shim();
      for (bool fits = false; !fits;
           config.cap_bytes += 16 << 10) {  // little more than it needs: most pages go to disk
        try {
          fits = make_plan(config, *policy, backend).sized_for_bytes == config.cap_bytes;
        } catch (const MemoryCapError&) {
        }
      }
    }
    CAPTURE(disk);
    PlayedStream stream = disk ? on_shim(config, "rekv", nullptr, from_disk) : on_shim(config, "full");
    for (int i = 0; i < 40; ++i) {
      CHECK(stream.frame(i % 3 == 0 ? 13 : 16, true) < kHalf);
      stream.memory->check_invariants();
    }
    const MemoryStats stats = stream.memory->stats();
    CHECK(stats.tier[0].medium == Medium::device);
    CHECK(stats.tier[1].medium == Medium::host);
    CHECK(stats.tier[0].used_bytes > 0);
    CHECK(stats.tier[1].used_bytes > 0);
    if (disk) CHECK(stats.tokens.spilled > 0);
    CHECK(stats.tokens.dropped == 0);
    CHECK(stream.ask(3, 2, true, true) < kHalf);
    CHECK(stream.ask(5, 1, false, true) < kHalf);
    CHECK(stream.memory->stats().unread_pages == 0);
  }
}

TEST_CASE("arrays of the device and arrays of the host give the same bits under every policy and a small cap") {
  for (const std::string& policy : policy_names()) {
    if (make_policy(policy, {})->needs().share.refuses) continue;  // the frames are more than this cap holds
    MemoryConfig config = mosaic::testing::small_config();
    config.cap_bytes = 450 << 10;
    CAPTURE(policy);
    std::vector<float> answers[3];
    for (const int kind : {0, 1, 2}) {  // the host's; the device's, queued; the device's, waited for
      testing::ShimControl control;
      PlayedStream stream = on_shim(config, policy, &control);
      std::optional<OnDevice> arrays;
      if (kind == 1) arrays.emplace(&stream, &control, nullptr);
      if (kind == 2) arrays.emplace(&stream, &control, std::nullopt);
      for (int i = 0; i < 20; ++i) {
        stream.frame(16);
        if (i % 10 == 9) stream.memory->check_invariants();
      }
      stream.ask(3, 1, false);
      const MemoryStats stats = stream.memory->stats();
      REQUIRE(stats.tokens.quantised + stats.tokens.collapsed + stats.tokens.dropped > 0);  // the cap was felt
      CHECK(stream.finite());
      answers[kind] = stream.out;
    }
    CHECK(answers[0] == answers[1]);
    CHECK(answers[0] == answers[2]);
  }
}

TEST_CASE("a device that is late changes nothing: what kernels made is waited for before the host reads it") {
  struct Case {
    const char* policy;
    PolicySettings settings;
    int frames;
    bool disk;
    uint64_t cap = 500 << 10;
    int scanned_pages = 0;  // fewer than there are: then coarse keys say which
  };
  for (const Case& c : std::vector<Case>{
           {"edge", {}, 20, false, 300 << 10},
           {"edge", {{"rest", 1}}, 24, true, 300 << 10},
           {"edge", {}, 24, true, 300 << 10, 10},
           {"edge", {{"rest", 1}}, 24, true, 300 << 10, 10},
           {"edge", {{"score", "tar"}}, 20, false, 300 << 10},
           {"edge", {{"score", "tar"}}, 24, true, 300 << 10},
           {"edge", {{"unit", "summaries"}}, 30, true},
           {"mosaic", {}, 30, true},
           {"mosaic", {{"unit", "tokens"}}, 40, true},
           {"mukv", {}, 30, true},
           {"rekv", {}, 30, true},
           {"infinipot-v", {}, 40, false},
       }) {
    if (c.scanned_pages > 0 && !mosaic::testing::is_played(c.settings.empty() ? 0 : 1, 2)) continue;
    CAPTURE(std::string(c.policy));
    CAPTURE(c.frames);
    mosaic::testing::TemporaryDirectory directory;
    MemoryConfig config = mosaic::testing::small_config(c.cap);
    config.window_frames = 2, config.branch_tokens = 16;
    config.retrieve_tokens = 96, config.scanned_pages = c.scanned_pages;
    if (c.scanned_pages > 0) config.index_share = 0.6;  // many pages on disk, few tokens kept
    if (c.disk) config.disk_bytes = 8 << 20, config.spill_dir = directory.path;
    std::vector<float> said[2];
    MemoryStats stats;
    for (const bool late : {false, true}) {
      testing::ShimControl control;
      control.at_once = !late;
      PlayedStream stream = on_shim(config, c.policy, &control, c.settings);
      const int frames = c.scanned_pages > 0 ? c.frames : mosaic::testing::pressed_rounds(c.frames);
      for (int i = 0; i < frames; ++i) {
        stream.room = i / 5 % 4;
        stream.frame(16);
        said[late].insert(said[late].end(), stream.out.begin(), stream.out.end());
      }
      stream.ask(3, 2, false);
      said[late].insert(said[late].end(), stream.out.begin(), stream.out.end());
      stats = stream.memory->stats();
      if (c.scanned_pages > 0) {
        const Archive& archive = *stream.memory->records()->archive();
        REQUIRE(archive.keys().groups() > 0);
        CHECK(archive.spilled(0) > int64_t{c.scanned_pages} * kPageTokens);
      }
    }
    CHECK(said[0] == said[1]);
    CHECK(stats.tokens.dropped + stats.tokens.spilled + stats.tokens.collapsed + stats.tokens.quantised > 0);
  }
}

TEST_CASE(
    "clusters join, merge and are cut on the CUDA kernels as on the CPU's, many asked for at once or few by the host") {
  int variant = 0;
  for (const auto& [policy, settings] :
       {std::pair<std::string, PolicySettings>{"mosaic", {}}, {"edge", {{"unit", "summaries"}}}}) {
    if (!mosaic::testing::is_played(variant++, 2)) continue;
    CAPTURE(policy);
    MemoryConfig config = mosaic::testing::small_config(8 << 20);
    config.clusters = 280, config.model.layers = 2, config.model.frame_tokens = 32;
    PlayedStream host(config, make_policy(policy, settings)), stream = on_shim(config, policy, nullptr, settings);
    host.noise = stream.noise = 0.3f;  // most tokens open a cluster
    for (int i = 0; i < 40; ++i) {
      host.room = stream.room = i / 6 % 6;
      host.frame(32), stream.frame(32);
    }
    host.ask(3, 1, false), stream.ask(3, 1, false);
    const MemoryStats want = host.memory->stats(), got = stream.memory->stats();
    REQUIRE(want.counters.merges > 300);
    CHECK(got.clusters == want.clusters);
    CHECK(got.counters.merges == want.counters.merges);
    CHECK(got.counters.splits == want.counters.splits);
    CHECK(got.tokens.collapsed == want.tokens.collapsed);
    float worst = 0;
    for (size_t i = 0; i < host.out.size(); ++i) worst = std::max(worst, std::abs(stream.out[i] - host.out[i]));
    CHECK(worst < kHalf);
    stream.memory->check_invariants();
  }
}

TEST_CASE("NaN in an array of the device is found by the kernels and the block refused before it is filed") {
  testing::ShimControl control;
  PlayedStream stream = on_shim(everything(), "mosaic", &control);
  const OnDevice arrays(&stream, &control);
  for (int i = 0; i < 6; ++i) CHECK(stream.frame(16, true) < kHalf);
  const int64_t seen = stream.memory->stats().tokens.seen;
  stream.begin_frame(16);
  stream.v[stream.v.size() - 5] = std::numeric_limits<float>::quiet_NaN();
  stream.attend_layers(stream.config.model.layers);
  CHECK_THROWS_WITH_AS(stream.memory->commit(), doctest::Contains("NaN or infinity"), InvalidInput);
  CHECK(stream.memory->stats().tokens.seen == seen);
  stream.memory->check_invariants();
  CHECK(stream.frame(16, true) < kHalf);
  CHECK(stream.ask(3, 1, false, true) < kHalf);
}

TEST_CASE("a number beyond half precision in an array of the device is refused before it is filed, or saturated") {
  for (const Overflow overflow : {Overflow::kRefuse, Overflow::kSaturate}) {
    MemoryConfig config = everything();
    config.overflow = overflow;
    testing::ShimControl control, twin_control;
    PlayedStream stream = on_shim(config, "mosaic", &control), twin = on_shim(config, "mosaic", &twin_control);
    const OnDevice arrays(&stream, &control), twin_arrays(&twin, &twin_control);
    for (int i = 0; i < 6; ++i) stream.frame(16), twin.frame(16);
    const std::mt19937 random = stream.random;
    const auto spoil = [](PlayedStream& s, float large) {
      s.begin_frame(16);
      s.v[s.v.size() - 5] = large;
      s.q[3] = -large;
      s.attend_layers(s.config.model.layers);
    };
    spoil(stream, 1e30f);
    if (overflow == Overflow::kRefuse) {
      CHECK_THROWS_WITH_AS(stream.memory->commit(), doctest::Contains("layer 0: q, k or v holds numbers, beyond 65504"),
                           InvalidInput);
      CHECK(stream.memory->stats().refused_overflows == 1);
      stream.random = twin.random = random;
    } else {
      spoil(twin, 65504.0f);
      stream.memory->commit();
      twin.memory->commit();
      CHECK(stream.out == twin.out);
      CHECK(stream.memory->stats().saturated_numbers == 2);
    }
    stream.memory->check_invariants();
    for (int i = 0; i < 6; ++i) {
      stream.frame(16), twin.frame(16);
      CHECK(stream.out == twin.out);
    }
    CHECK(stream.finite());
  }
}

TEST_CASE("out is not written after attend has thrown, whatever was queued before") {
  struct Throws : Policy {  // the third lane's choice fails
    std::unique_ptr<Policy> real = make_policy("rekv", {});
    const char* name() const override { return "throws"; }
    PolicyNeeds needs() const override {
      PolicyNeeds needs = real->needs();
      needs.group.per_head = true;
      return needs;
    }
    void bind(const StoreShape& shape, Region& region) override { real->bind(shape, region); }
    void serialize(Snapshot& s, const ClusterStore& store) override { real->serialize(s, store); }
    void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override {
      real->admit(store, batch, out);
    }
    void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
                SelectResult* out) override {
      if (armed && query.lane == 1) throw InvalidInput("this lane's choice failed");
      real->select(store, query, scratch, out);
    }
    int evict(const ClusterStore& store, const Need& need, Eviction* out, int most) override {
      return real->evict(store, need, out, most);
    }
    bool armed = false;
  };
  testing::ShimControl control;
  auto made = std::make_unique<Throws>();
  Throws* const policy = made.get();
  PlayedStream stream(everything(), std::move(made), testing::make_shim(3, &control));
  const OnDevice arrays(&stream, &control);
  for (int i = 0; i < 6; ++i) stream.frame(16);
  policy->armed = true;
  stream.open_question();
  CHECK_THROWS_WITH_AS(stream.pass(3), doctest::Contains("choice failed"), InvalidInput);
  const int done = control.work;
  control.ops->wait();
  CHECK(control.work == done);  // nothing was left in the stream
}

TEST_CASE("out of device memory is one error that says need, have and knob, and leaves nothing behind") {
  for (int nth = 1; nth <= 2; ++nth) {
    testing::ShimControl control;
    control.fail_allocation = nth;
    CHECK_THROWS_WITH_AS(on_shim(everything(), "mosaic", &control), doctest::Contains("Lower memory="), DeviceError);
    CHECK(control.allocations == nth);
  }
  PlayedStream another = on_shim(everything(), "mosaic");
  CHECK(another.frame(16, true) < kHalf);
}

TEST_CASE("a failed launch ends the session with a typed error wherever it strikes, and another can be opened") {
  MemoryConfig config = mosaic::testing::small_config();
  config.cap_bytes = 450 << 10;
  const auto play = [](PlayedStream* stream) {
    for (int i = 0; i < 16; ++i) stream->frame(16);
    stream->ask(3, 1, true);
  };
  testing::ShimControl counted;
  {
    PlayedStream whole = on_shim(config, "mosaic", &counted);
    counted.work = 0;
    play(&whole);
  }
  REQUIRE(counted.work > 100);
  for (const bool lost : {false, true}) {
    for (int nth = 1; nth <= counted.work; nth += counted.work / (lost ? 5 : 17)) {
      CAPTURE(nth);
      testing::ShimControl control;
      PlayedStream stream = on_shim(config, "mosaic", &control);
      control.work = 0, control.fail_work = nth, control.lost = lost;
      CHECK_THROWS_WITH_AS(play(&stream), doctest::Contains("injected"), DeviceError);
      // What the device holds is not known any more: no call answers from it.
      if (stream.memory->asking()) stream.memory->close_question(false);
      CHECK_THROWS_WITH_AS(stream.memory->begin_frame({9000, stream.embedding.data(), 16, 4}),
                           doctest::Contains("Close the session and open another"), DeviceError);
      CHECK(stream.memory->stats().frames <= 16);  // the books can still be read
    }
  }
  PlayedStream another = on_shim(everything(), "mosaic");
  CHECK(another.frame(16, true) < kHalf);
}

TEST_CASE("arrays that are complete only behind their producers' streams are read after them") {
  testing::ShimControl control;
  MemoryConfig config = everything();
  KvMemory memory(config, make_policy("full", {}), testing::make_shim(3, &control));
  const auto q_row = static_cast<size_t>(config.model.q_heads) * static_cast<size_t>(config.model.head_dim);
  const auto kv_row = static_cast<size_t>(config.model.kv_heads) * static_cast<size_t>(config.model.head_dim);
  const int tokens = 3;
  const auto room = [&](size_t row) {
    return static_cast<float*>(control.device->allocate_private(tokens * row * sizeof(float)));
  };
  float *const q = room(q_row), *const k = room(kv_row), *const v = room(kv_row), *const out = room(q_row);
  std::vector<float> values(tokens * kv_row), read(tokens * q_row);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 11) - 5;
  shim::simt::Stream first, second;  // nothing of them has run when attend() is called
  first.push([&] { std::memcpy(v, values.data(), values.size() * sizeof(float)); });
  second.push([&] { q[0] = k[0] = 1; });
  memory.begin_text(tokens);
  void* const producers[] = {&first, &second};
  memory.attend(0, q, k, v, out, nullptr, tokens, producers);
  control.device->copy_async(read.data(), out, read.size() * sizeof(float));
  control.ops->wait();
  // The first token sees itself alone: its KV head's value, for every head of the group.
  const size_t d = static_cast<size_t>(config.model.head_dim), group = q_row / kv_row;
  for (size_t i = 0; i < q_row; ++i) CHECK(read[i] == doctest::Approx(values[i / d / group * d + i % d]).epsilon(2e-3));
  for (float* piece : {q, k, v, out}) control.device->release(piece, 0);
}
