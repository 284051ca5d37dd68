// A stream played to a KvMemory: a simulated model (random q, k, v around a few prototypes, so that tokens cluster) that
// also remembers everything it ever said, so that the full attention of any block can be computed beside it.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "runtime/kv_memory.h"

namespace mosaic::testing {

ModelShape small_model();
MemoryConfig small_config(uint64_t cap_bytes = 4 << 20);

// The least cap that a plan accepts without choosing the sizes of a smaller one.
uint64_t least_cap(MemoryConfig c, const std::string& policy, const PolicySettings& settings = {});

struct SeenToken;

struct PlayedStream {
  struct Token {
    int position, time, h, w;
    std::vector<float> k, v;  // [layers, row], as stored: rounded to half when the session is fp16
  };
  MemoryConfig config;
  std::unique_ptr<KvMemory> memory;
  std::mt19937 random;
  int prototypes = 10;
  float noise = 0.03f;
  std::vector<std::vector<float>> prototype_k, prototype_v;  // [prototypes][layers * row]
  std::vector<std::vector<float>> rooms;                     // frame embeddings
  std::vector<Token> prefix, video, dialogue, question;
  std::vector<int> frame_starts;  // of each frame in `video`
  int now_ms = 0;
  int next_position = 0;
  int32_t since_ms = INT32_MIN;
  // Of the last block.
  std::vector<float> q, k, v, out;  // [layers, T, ...]
  int block_tokens = 0;

  explicit PlayedStream(const MemoryConfig& c, const std::string& policy = "mosaic",
                        const PolicySettings& settings = {}, unsigned seed = 1, SpillIo* io = nullptr, int threads = 1)
      : PlayedStream(c, make_policy(policy, settings), seed, io, threads) {}
  PlayedStream(const MemoryConfig& c, std::unique_ptr<Policy> policy, unsigned seed = 1, SpillIo* io = nullptr,
               int threads = 1)
      : PlayedStream(c, std::move(policy), make_backend("cpu", threads), seed, io) {}
  PlayedStream(const MemoryConfig& c, std::unique_ptr<Policy> policy, Backend backend, unsigned seed = 1,
               SpillIo* io = nullptr);

  size_t row() const { return static_cast<size_t>(config.model.kv_heads * config.model.head_dim); }
  size_t q_row() const { return static_cast<size_t>(config.model.q_heads * config.model.head_dim); }
  // A normal number by summing uniforms: the same on every library.
  float normal();
  int below(int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); }
  std::vector<float> normals(size_t n);

  // q, k, v of a block for every layer.
  void imagine(int tokens);
  // How an engine hands its arrays over; for those that do not lie in host memory. Called with all layers to attend.
  std::function<void(PlayedStream*, int layers)> hand_over;
  // Every layer in order, up to (not including) `layers`.
  void attend_layers(int layers);
  void begin_frame(int tokens, int grid_w = 4);
  void remember(std::vector<Token>* to, const std::vector<SeenToken>& block, bool video_block);
  float stored(float x) const;

  // A frame, whole. Returns the largest difference to full attention over what it may see (0 without `judge`).
  double frame(int tokens, bool judge = false, int grid_w = 4);
  double prefix_block(int tokens, bool judge = false);
  void open_question(int32_t since = INT32_MIN);
  // One forward pass of a question: its first text, or a token of the answer.
  double pass(int tokens, bool judge = false);
  void rewind_question(int tokens);
  void close_question(bool keep);
  // A question of `tokens` and an answer of `answer` single tokens.
  double ask(int tokens, int answer, bool keep, bool judge = false, int32_t since = INT32_MIN);
  // A question of `tokens` about what came since then: moments that it read, or -1 where one of them was before.
  int moments_since(int32_t since, int tokens);
  bool finite() const;

  int room = 0;
  int trail = 0;  // tokens of text behind a frame's picture; frames of as many have none
  std::vector<float> embedding;

 private:
  std::vector<const Token*> see_stored() const;
  std::vector<const Token*> see_frame();

  // Positions as DESIGN.md has them: contiguous in time order (tokens of one moment share it under M-RoPE) or the
  // original ones; then the branch, then the block. Fills the block's positions and compares `out` with the truth.
  double expected(const std::vector<const Token*>& seen, const std::vector<const Token*>& branch, bool video_block,
                  int grid_w, std::vector<SeenToken>* block, bool judge);
};

}  // namespace mosaic::testing
