// Bad calls and bad input: one line that names the knob or the fault, and nothing changed.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "support/memory_fakes.h"
#include "support/played_stream.h"

namespace {

using namespace mosaic;
using mosaic::testing::PlayedStream;
using mosaic::testing::small_config;

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}
bool says(const std::string& message, const char* what) { return message.find(what) != std::string::npos; }

TEST_CASE("a cap that cannot work is refused before anything is taken, naming memory=") {
  for (const std::string& policy : policy_names()) {
    MemoryConfig config = small_config(1 << 10);
    CHECK_THROWS_AS(PlayedStream(config, policy), MemoryCapError);
    const std::string message = message_of([&] { PlayedStream stream(config, policy); });
    CHECK(says(message, "memory="));
    CHECK(says(message, "1.0 KiB"));
    CHECK(message.find('\n') == std::string::npos);
  }
}

TEST_CASE("a configuration that makes no sense is refused by name") {
  const auto refused = [](const std::function<void(MemoryConfig*)>& change, const char* what) {
    MemoryConfig config = small_config();
    change(&config);
    const std::string message = message_of([&] { PlayedStream stream(config); });
    INFO(message);
    CHECK(says(message, what));
  };
  refused([](MemoryConfig* c) { c->model.kv_heads = 3; }, "q_heads");
  refused([](MemoryConfig* c) { c->model.frame_tokens = 0; }, "frame_tokens");
  refused([](MemoryConfig* c) { c->disk_bytes = 1 << 20; }, "spill_dir");
  refused([](MemoryConfig* c) { c->disk_bytes = 1 << 20, c->spill_dir = "/no/such/directory"; }, "spill_dir");
  refused([](MemoryConfig* c) { c->exact = CodecId::kInt4; }, "exact");
  refused([](MemoryConfig* c) { c->model.video_window = 9, c->window_frames = 3; }, "window_frames");
  refused([](MemoryConfig* c) { c->max_cluster_tokens = 1; }, "max_cluster_tokens");
  // 68,719,460,000 tokens, which no int holds.
  refused([](MemoryConfig* c) { c->window_frames = 16'777'214, c->model.frame_tokens = 4096; },
          "window_frames=16777214 frames of frame_tokens=4096 are 68719472640 tokens");
  refused([](MemoryConfig* c) { c->model.layers = 1 << 20; }, "layers x kv_heads");
}

TEST_CASE("sizes at the end of what an int holds are refused by a name, whatever the policy") {
  mosaic::testing::TemporaryDirectory directory;
  const Backend backend = make_backend("cpu", 1);
  const std::vector<std::function<void(MemoryConfig*)>> changes = {
      [](MemoryConfig* c) { c->window_frames = 1 << 24; },
      [](MemoryConfig* c) { c->window_frames = 1 << 24, c->model.frame_tokens = 31; },
      [](MemoryConfig* c) { c->model.frame_tokens = 1 << 24; },
      [](MemoryConfig* c) { c->prefix_tokens = c->branch_tokens = 1 << 24; },
      [](MemoryConfig* c) { c->retrieve_tokens = c->max_cluster_tokens = 1 << 24; },
      [](MemoryConfig* c) { c->clusters = 1 << 24, c->scenes = 1 << 24; },
      [](MemoryConfig* c) { c->model.head_dim = 1 << 22; },
      [](MemoryConfig* c) { c->model.embedding_dim = 1 << 24; },
      [](MemoryConfig* c) { c->window_frames = std::numeric_limits<int>::max(); },
      [](MemoryConfig* c) { c->positions = Positions::kOriginal, c->model.context = 1 << 24; },
  };
  for (const std::string& name : policy_names())
    for (size_t i = 0; i < changes.size(); ++i)
      for (const uint64_t disk : {uint64_t{0}, uint64_t{1} << 40}) {
        MemoryConfig config = small_config();
        config.disk_bytes = disk, config.spill_dir = directory.path;
        changes[i](&config);
        const auto policy = make_policy(name, {});
        const std::string message = message_of([&] {
          if (make_plan(config, *policy, backend).total_bytes > config.cap_bytes) throw InvariantError("over the cap");
        });
        INFO(name << ", change " << i << ": " << message);
        CHECK((message.empty() || says(message, "=") || says(message, "must be at most")));
        CHECK(message.find("over the cap") == std::string::npos);
      }
}

TEST_CASE("a cap of many gigabytes is planned without allocating it, whatever reads everything") {
  const Backend backend = make_backend("cpu", 1);
  for (const std::string& name : policy_names()) {
    MemoryConfig config = small_config(uint64_t{1} << 42);
    config.model.layers = config.model.q_heads = config.model.kv_heads = 1;
    const auto policy = make_policy(name, {});
    const Plan plan = make_plan(config, *policy, backend);
    INFO(name);
    CHECK(plan.total_bytes <= config.cap_bytes);
    CHECK(plan.total_bytes > uint64_t{1} << 23);
  }
}

TEST_CASE("NaN and infinity are refused wherever they are, and leave no trace") {
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity()}) {
    for (int where = 0; where < 3; ++where)
      for (const bool asking : {false, true}) {
        MemoryConfig config = small_config();
        config.window_codec = CodecId::kFp16;
        PlayedStream stream(config), twin(config);
        for (int i = 0; i < 14; ++i) stream.frame(7), twin.frame(7);
        const MemoryStats before = stream.memory->stats();
        const std::mt19937 random = stream.random;
        if (asking) {
          stream.open_question();
          stream.imagine(3);
          stream.memory->begin_text(3);
        } else {
          stream.begin_frame(7);
        }
        std::vector<float>* const target[] = {&stream.q, &stream.k, &stream.v};
        target[where]->back() = poison;  // the last number of the last layer
        const std::string message = message_of([&] { stream.attend_layers(3); });
        CHECK(says(message, "layer 2"));
        CHECK(says(message, "NaN"));
        CHECK_THROWS_AS(stream.memory->commit(), InvalidInput);
        if (asking) stream.close_question(true);
        stream.memory->check_invariants();
        const MemoryStats after = stream.memory->stats();
        CHECK(after.tokens.seen == before.tokens.seen);
        CHECK(after.frames == before.frames);
        // What follows is as if it had never been.
        stream.random = twin.random = random;
        CHECK(stream.frame(7, true) < 2e-5);
        twin.frame(7);
        CHECK(stream.out == twin.out);
        stream.ask(4, 1, false), twin.ask(4, 1, false);
        CHECK(stream.out == twin.out);
      }
  }
}

constexpr float kTooLarge[] = {65505, -70000, 3e38f};

TEST_CASE("a number beyond half precision is refused with its block, naming layer and head, and leaves no trace") {
  for (const std::string& policy : policy_names())
    for (const float large : kTooLarge)
      for (int where = 0; where < 3; ++where) {
        INFO(policy << ", " << large << ", " << where);
        PlayedStream stream(small_config(), policy), twin(small_config(), policy);
        for (int i = 0; i < 14; ++i) stream.frame(7), twin.frame(7);
        const std::mt19937 random = stream.random;
        stream.begin_frame(7);
        std::vector<float>* const target[] = {&stream.q, &stream.k, &stream.v};
        target[where]->back() = large;
        const std::string message = message_of([&] { stream.attend_layers(3); });
        CHECK(says(message, where == 0 ? "layer 2, query head 3: q holds " : "layer 2, KV head 1: "));
        CHECK(says(message, "beyond 65504"));
        CHECK(says(message, "overflow=\"saturate\""));
        stream.memory->check_invariants();
        CHECK(stream.memory->stats().refused_overflows == 1);
        CHECK(stream.memory->stats().saturated_numbers == 0);
        stream.random = twin.random = random;
        stream.frame(7), twin.frame(7);
        CHECK(stream.out == twin.out);
        stream.ask(4, 1, false), twin.ask(4, 1, false);
        CHECK(stream.out == twin.out);
      }
}

TEST_CASE("with overflow=saturate such numbers are taken as the nearest that half precision holds, and counted") {
  for (const std::string& policy : policy_names())
    for (const CodecId exact : {CodecId::kFp16, CodecId::kFp32})
      for (const float large : kTooLarge) {
        INFO(policy << ", " << codec_name(exact) << ", " << large);
        MemoryConfig config = small_config(600 << 10);
        config.overflow = Overflow::kSaturate, config.exact = exact;
        PlayedStream stream(config, policy), twin(config, policy);
        const auto play = [&](PlayedStream& s, float number, bool asking) {
          if (asking) {
            s.open_question();
            s.imagine(3);
            s.memory->begin_text(3);
          } else {
            s.begin_frame(7);
          }
          s.q[4 * 16 + 3] = s.k[16 + 5] = number;
          s.v.back() = -number;
          s.attend_layers(3);
          s.memory->commit();
          CHECK(s.finite());
          if (asking) s.close_question(true);
        };
        int spoilt = 0;
        for (int i = 0; i < 20; ++i) {
          if (policy == "full" && i > 10) break;
          if (i % 5 == 1) {
            play(stream, large, false);
            play(twin, std::clamp(large, -65504.0f, 65504.0f), false);
            ++spoilt;
          } else {
            stream.frame(7), twin.frame(7);
          }
          CHECK(stream.out == twin.out);
          if (i % 10 != 9) continue;
          play(stream, large, true);
          play(twin, std::clamp(large, -65504.0f, 65504.0f), true);
          ++spoilt;
          CHECK(stream.out == twin.out);
          stream.ask(3, 1, false), twin.ask(3, 1, false);
          CHECK(stream.finite());
        }
        CHECK(stream.memory->stats().saturated_numbers == 3 * spoilt);
        CHECK(twin.memory->stats().saturated_numbers == 0);
        stream.memory->check_invariants();
        stream.begin_frame(7);  // NaN stays refused
        stream.k[0] = std::numeric_limits<float>::infinity();
        CHECK(says(message_of([&] { stream.attend_layers(3); }), "NaN or infinity"));
        CHECK(stream.memory->stats().refused_overflows == 0);
      }
}

TEST_CASE("a frame that is refused leaves no mark on the attention that earlier tokens received") {
  MemoryConfig config = small_config();
  config.cap_bytes = 450 << 10;
  PlayedStream stream(config, "mukv"), twin(config, "mukv");
  for (int i = 0; i < 24; ++i) {
    const std::mt19937 random = stream.random;
    if (i % 3 == 1) {  // most layers are attended, then it breaks off
      stream.begin_frame(11);
      stream.attend_layers(2);
      stream.memory->abort();
    }
    stream.random = twin.random = random;
    stream.frame(16), twin.frame(16);
  }
  REQUIRE(twin.memory->stats().tokens.dropped > 0);  // tokens were chosen by what they received
  stream.ask(4, 1, false), twin.ask(4, 1, false);
  CHECK(stream.out == twin.out);
}

TEST_CASE("an embedding that is missing or not finite is refused") {
  PlayedStream stream(small_config());
  std::vector<float> embedding(8, 1.0f);
  CHECK(says(message_of([&] { stream.memory->begin_frame({0, nullptr, 4, 2}); }), "embedding"));
  embedding[7] = std::nanf("");
  CHECK(says(message_of([&] { stream.memory->begin_frame({0, embedding.data(), 4, 2}); }), "embedding"));
  CHECK(stream.frame(4, true) < 2e-5);
}

TEST_CASE("frames of a wrong size or time, and calls out of order, are refused") {
  MemoryConfig config = small_config();
  config.window_codec = CodecId::kFp16;
  PlayedStream stream(config);
  KvMemory& memory = *stream.memory;
  const std::vector<float> embedding(8, 1.0f);
  for (const int tokens : {0, -1, 17})
    CHECK(says(message_of([&] { memory.begin_frame({0, embedding.data(), tokens, 2}); }), "frame_tokens="));
  CHECK(says(message_of([&] { memory.begin_frame({0, embedding.data(), 4, 0}); }), "grid_w"));
  CHECK(says(message_of([&] { memory.commit(); }), "without a block"));
  CHECK(says(message_of([&] { memory.attend(0, nullptr, nullptr, nullptr, nullptr); }), "without a block"));
  CHECK(says(message_of([&] { memory.close_question(false); }), "no question"));
  stream.frame(4);
  stream.now_ms = 10000;
  stream.frame(4);
  stream.now_ms = 9000;
  CHECK(says(message_of([&] { stream.frame(4); }), "pts"));
  stream.now_ms = 10000;

  stream.begin_frame(4);
  stream.attend_layers(1);
  CHECK(says(message_of([&] { stream.attend_layers(1); }), "expected layer 1"));
  stream.begin_frame(4);
  stream.attend_layers(2);
  CHECK(says(message_of([&] { memory.commit(); }), "2 of 3 layers"));
  stream.begin_frame(4);
  CHECK(says(message_of([&] { stream.begin_frame(4); }), "block is open"));
  CHECK(says(message_of([&] { memory.open_question(); }), "block is open"));
  memory.abort();
  memory.open_question();
  CHECK(says(message_of([&] { memory.open_question(); }), "open already"));
  CHECK(says(message_of([&] { stream.begin_frame(4); }), "question is open"));
  CHECK(says(message_of([&] { memory.begin_text(0); }), "at least one"));
  memory.close_question(false);
  CHECK(says(message_of([&] { memory.begin_text(1); }), "prefix_tokens="));
  CHECK(stream.frame(5, true) < 2e-5);
  CHECK(memory.stats().frames == 3);
}

TEST_CASE("a question that outgrows its room is refused naming branch_tokens=, and can be closed") {
  MemoryConfig config = small_config();
  config.branch_tokens = 20;
  PlayedStream stream(config);
  for (int i = 0; i < 6; ++i) stream.frame(16);
  stream.open_question();
  stream.pass(18);
  stream.pass(1);
  stream.imagine(2);
  CHECK(says(message_of([&] { stream.memory->begin_text(2); }), "branch_tokens="));
  CHECK(stream.pass(1, true) < 2e-5);
  CHECK(says(message_of([&] { stream.memory->begin_text(1); }), "branch_tokens="));
  stream.close_question(false);
  CHECK(stream.ask(20, 0, false, true) < 2e-5);
}

TEST_CASE("dialogue keeps the newest turns that fit, whole, and says how much was dropped") {
  MemoryConfig config = small_config();
  config.branch_tokens = 40;
  PlayedStream stream(config);
  for (int i = 0; i < 6; ++i) stream.frame(16);
  std::vector<int> turns;
  for (int turn = 0; turn < 90; ++turn) {
    const int tokens = 1 + stream.below(17), answer = stream.below(4);
    // The turns that leave before this one can stand, as close to what is kept as whole turns allow.
    const auto make_room = [&](int need) {
      int held = static_cast<int>(stream.dialogue.size());
      while (!turns.empty() && held + need > 40) {
        stream.dialogue.erase(stream.dialogue.begin(), stream.dialogue.begin() + turns.front());
        held -= turns.front();
        turns.erase(turns.begin());
      }
    };
    stream.open_question();
    make_room(tokens);
    CHECK(stream.pass(tokens, true) < 2e-5);
    for (int i = 0; i < answer; ++i) {
      make_room(tokens + i + 1);
      CHECK(stream.pass(1, true) < 2e-5);
    }
    const bool keep = turn % 3 != 2;
    stream.close_question(keep);
    if (keep) turns.push_back(tokens + answer);
    if (turn % 30 == 5) stream.frame(9);
  }
  CHECK(stream.memory->stats().dropped_dialogue > 0);
}

TEST_CASE("an answer that was rewound goes on behind what is left, as if the rest had never been said") {
  MemoryConfig config = small_config();
  config.branch_tokens = 40;
  PlayedStream stream(config);
  for (int i = 0; i < 6; ++i) stream.frame(16);
  stream.ask(5, 2, true);
  stream.open_question();
  for (const int tokens : {7, 1, 13, 1}) CHECK(stream.pass(tokens, true) < 2e-5);
  for (const int left : {17, 16, 5, 1}) {  // a page's end, one beside it, inside the question's own block
    stream.rewind_question(left);
    CHECK(stream.pass(1, true) < 2e-5);
    CHECK(stream.pass(5, true) < 2e-5);
  }
  stream.close_question(true);
  CHECK(stream.dialogue.size() == size_t{14});
  CHECK(stream.ask(3, 2, true, true) < 2e-5);
  stream.frame(9);
  CHECK(stream.ask(3, 2, false, true) < 2e-5);
}

TEST_CASE("what cannot be rewound is refused by name, and the question goes on") {
  MemoryConfig config = small_config();
  config.window_codec = CodecId::kFp16;
  PlayedStream stream(config);
  for (int i = 0; i < 3; ++i) stream.frame(16);
  CHECK(says(message_of([&] { stream.memory->rewind_question(1); }), "no question"));
  stream.open_question();
  CHECK(says(message_of([&] { stream.memory->rewind_question(1); }), "have 0 tokens"));
  CHECK(stream.pass(5, true) < 2e-5);
  for (const int tokens : {-1, 0, 6})
    CHECK(says(message_of([&] { stream.memory->rewind_question(tokens); }), "have 5 tokens"));
  stream.memory->begin_text(1);
  CHECK(says(message_of([&] { stream.memory->rewind_question(1); }), "a block is open"));
  stream.memory->abort();
  CHECK(stream.pass(1, true) < 2e-5);
  stream.close_question(false);
  stream.memory->check_invariants();
}

TEST_CASE("more than 64 short turns are kept as long as their tokens fit") {
  MemoryConfig config = small_config();
  config.branch_tokens = 150;
  PlayedStream stream(config);
  for (int i = 0; i < 3; ++i) stream.frame(16);
  for (int turn = 0; turn < 70; ++turn) stream.ask(2, 0, true);
  CHECK(stream.ask(3, 1, true, true) < 2e-5);
  CHECK(stream.memory->stats().dropped_dialogue == 0);
}

}  // namespace
