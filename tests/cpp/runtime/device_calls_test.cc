// How often a session calls the driver of its device - launches, waits, looks at pointers, copies, bytes over the link - for a
// frame, a question and a token of its answer, counted by the shim. Each call has a price on a GPU that no kernel can make
// up for, so the counts are held here. MOSAIC_DEVICE_CALLS=1 prints them as the table of docs/results/gpu-counts.md.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "support/device_arrays.h"
#include "support/memory_fakes.h"

using namespace mosaic;
using mosaic::testing::DeviceCalls;
using mosaic::testing::OnDevice;
using mosaic::testing::PlayedStream;

namespace {

constexpr int kLayers = 2, kFrameTokens = 32, kQuestionTokens = 12;
constexpr int kCounted = 4, kAnswer = 4;  // frames, tokens of the answer
constexpr double kTokenBytes = 170;       // over the link: what is new of a token, in the tables of two lanes

struct Case {
  const char* name;
  const char* policy;
  PolicySettings settings;
  uint64_t cap_bytes;
  bool disk;
  int frames;  // before those that count
  struct Most {
    double frame, question, token;
  } launches, waits;      // a layer, and of the whole block
  int scanned_pages = 0;  // fewer than there are: then coarse keys say which
};

// Caps that so many frames pass, but for a policy that refuses; the larger ones keep more for each call of a frame.
const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"edge", "edge", {}, 420 << 10, false, 36, {5.5, 3, 3}, {2, 1, 1}},
      {"edge, disk", "edge", {}, 260 << 10, true, 40, {8.5, 6, 3}, {7, 5, 3}},
      {"edge, disk, coarse keys", "edge", {}, 700 << 10, true, 60, {12, 7, 3}, {7, 5, 3}, 16},
      {"edge, unit=summaries", "edge", {{"unit", "summaries"}}, 260 << 10, false, 20, {8, 6, 3}, {7, 3, 1}},
      {"full", "full", {}, 4 << 20, false, 20, {3, 3, 3}, {1, 1, 1}},
      {"infinipot-v", "infinipot-v", {}, 260 << 10, false, 20, {7.5, 3, 3}, {3, 1, 1}},
      {"mosaic", "mosaic", {}, 264 << 10, false, 20, {94, 6, 3}, {54.6, 3, 1}},
      {"mosaic, disk", "mosaic", {}, 340 << 10, true, 20, {22.9, 7.5, 3}, {19.6, 5, 2}},
      {"mukv", "mukv", {}, 380 << 10, false, 20, {4, 3, 3}, {2.3, 3, 1}},
      {"rekv", "rekv", {}, 260 << 10, false, 20, {4, 6, 3}, {3, 3, 1}},
      {"edge, disk, 1 MiB", "edge", {}, 1 << 20, true, 80, {10.5, 6, 3}, {5, 3, 1}},
      {"mosaic, unit=tokens, disk", "mosaic", {{"unit", "tokens"}}, 340 << 10, true, 40, {9, 6, 3}, {5, 3, 1}},
      {"mosaic, unit=tokens, disk, 1 MiB", "mosaic", {{"unit", "tokens"}}, 1 << 20, true, 80, {11, 6, 3}, {5, 3, 1}},
      {"infinipot-v, 1 MiB", "infinipot-v", {}, 1 << 20, false, 60, {4.9, 3, 3}, {1.5, 1, 1}},
      {"mukv, 1 MiB", "mukv", {}, 1 << 20, false, 60, {4.3, 3, 3}, {2.3, 3, 1}},
      {"uniform", "uniform", {}, 450 << 10, false, 20, {4, 3, 3}, {1, 1, 1}},
      {"window", "window", {}, 260 << 10, false, 20, {4, 3, 3}, {1, 1, 1}},
  };
  return all;
}

DeviceCalls operator-(DeviceCalls a, const DeviceCalls& b) {
  a.launches -= b.launches, a.waits -= b.waits, a.queries -= b.queries;
  a.copies -= b.copies, a.link_bytes -= b.link_bytes;
  for (const auto& [kernel, n] : b.launches_of) a.launches_of[kernel] -= n;
  return a;
}

// Of one block each, on average.
struct Calls {
  double launches, queries, copies, link_bytes;  // a layer
  double waits;
};
Calls of_blocks(const DeviceCalls& c, int blocks) {
  const auto each = [&](int64_t n, int by) { return static_cast<double>(n) / (blocks * by); };
  return {each(c.launches, kLayers), each(c.queries, kLayers), each(c.copies, kLayers), each(c.link_bytes, kLayers),
          each(c.waits, 1)};
}

struct Counted {
  Calls frame, question, token;
};

void print_kernels(const char* block, const DeviceCalls& c, int blocks) {
  std::printf("<!-- %s:", block);
  for (const auto& [kernel, n] : c.launches_of)
    if (n > 0) std::printf(" %s %.2f", kernel.c_str(), static_cast<double>(n) / (blocks * kLayers));
  std::printf(" -->\n");
}

Counted count(const Case& c, bool print) {
  mosaic::testing::TemporaryDirectory directory;
  MemoryConfig config = mosaic::testing::small_config(c.cap_bytes);
  config.model.layers = kLayers, config.model.frame_tokens = kFrameTokens;
  config.scanned_pages = c.scanned_pages;
  if (c.scanned_pages > 0) config.index_share = 0.5;  // many pages on disk, few tokens kept
  if (c.disk) config.disk_bytes = 8 << 20, config.spill_dir = directory.path;
  // As at the caps of devices, of which a window takes little: these are small, that frames soon fill them.
  if (std::string(c.policy) != "edge") config.window_codec = CodecId::kFp16;
  testing::ShimControl control;
  PlayedStream stream(config, make_policy(c.policy, c.settings), testing::make_shim(3, &control));
  const OnDevice arrays(&stream, &control, nullptr, true);
  for (int i = 0; i < c.frames; ++i) stream.room = i / 6 % 6, stream.frame(kFrameTokens);
  DeviceCalls before = control.calls;
  for (int i = 0; i < kCounted; ++i) stream.frame(kFrameTokens);
  const DeviceCalls frames = control.calls - before;
  control.ops->wait();  // what the last frame held back: the first of those counted had it of the one before
  before = control.calls;
  stream.open_question();
  stream.pass(kQuestionTokens);
  const DeviceCalls question = control.calls - before;
  before = control.calls;
  for (int i = 0; i < kAnswer; ++i) stream.pass(1);
  const DeviceCalls tokens = control.calls - before;
  stream.close_question(false);
  stream.memory->check_invariants();
  if (print) {
    std::printf("<!-- %s -->\n", c.name);
    print_kernels("frame", frames, kCounted);
    print_kernels("question", question, 1);
    print_kernels("token", tokens, kAnswer);
  }
  return {of_blocks(frames, kCounted), of_blocks(question, 1), of_blocks(tokens, kAnswer)};
}

void check_most(const Case::Most& most, double frame, double question, double token) {
  CHECK(frame <= most.frame);
  CHECK(question <= most.question);
  CHECK(token <= most.token);
}

void print_row(const char* policy, const char* block, const Calls& c) {
  std::printf("| %s | %s | %.1f | %.1f | %.1f | %.1f | %.0f |\n", policy, block, c.launches, c.waits, c.queries,
              c.copies, c.link_bytes);
}

}  // namespace

TEST_CASE("a frame, a question and a token call the device no more often than they have to" *
          doctest::test_suite("counts")) {
  const char* const wanted = std::getenv("MOSAIC_DEVICE_CALLS");
  const bool print = wanted != nullptr, kernels = print && std::string(wanted) == "kernels";
  for (const Case& c : cases()) {
    CAPTURE(std::string(c.name));
    const Counted counted = count(c, kernels);
    const auto& [frame, question, token] = counted;
    check_most(c.launches, frame.launches, question.launches, token.launches);
    check_most(c.waits, frame.waits, question.waits, token.waits);
    CHECK(token.link_bytes <= kTokenBytes);
    for (const Calls& calls : {frame, question, token}) {
      CHECK(calls.queries == 0);  // where the arrays lie is said, where the rest does is known
      CHECK(calls.copies <= 1);
    }
    if (!print) continue;
    print_row(c.name, "frame", counted.frame);
    print_row(c.name, "question", counted.question);
    print_row(c.name, "token", counted.token);
  }
}
