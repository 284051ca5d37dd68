#include "support/played_stream.h"

#include <algorithm>
#include <cmath>

#include "core/dtype.h"
#include "core/error.h"
#include "support/reference_attention.h"

namespace mosaic::testing {

ModelShape small_model() {
  ModelShape m;
  m.layers = 3;
  m.q_heads = 4;
  m.kv_heads = 2;
  m.head_dim = 16;
  m.rope.head_dim = m.rope.rotary_dim = 16;
  m.embedding_dim = 8;
  m.frame_tokens = 16;
  return m;
}

MemoryConfig small_config(uint64_t cap_bytes) {
  MemoryConfig c;
  c.model = small_model();
  c.cap_bytes = cap_bytes;
  return c;
}

uint64_t least_cap(MemoryConfig c, const std::string& policy, const PolicySettings& settings) {
  const auto p = make_policy(policy, settings);
  const Backend backend = make_backend("cpu", 1);
  uint64_t low = 0, high = 64 << 20;
  while (low + 64 < high) {
    c.cap_bytes = low + (high - low) / 2;
    bool fits = false;
    try {
      fits = make_plan(c, *p, backend).sized_for_bytes == c.cap_bytes;
    } catch (const MemoryCapError&) {
    }
    (fits ? high : low) = c.cap_bytes;
  }
  return high;
}

PlayedStream::PlayedStream(const MemoryConfig& c, std::unique_ptr<Policy> policy, Backend backend, unsigned seed,
                           SpillIo* io)
    : config(c), random(seed) {
  memory = std::make_unique<KvMemory>(c, std::move(policy), std::move(backend), io);
  const size_t all = static_cast<size_t>(c.model.layers) * row();
  for (int p = 0; p < 16; ++p) {
    prototype_k.push_back(normals(all));
    prototype_v.push_back(normals(all));
  }
  for (int r = 0; r < 6; ++r) rooms.push_back(normals(static_cast<size_t>(c.model.embedding_dim)));
}

float PlayedStream::normal() {
  double sum = 0;
  for (int i = 0; i < 12; ++i) sum += random() / 4294967296.0;
  return static_cast<float>(sum - 6);
}

std::vector<float> PlayedStream::normals(size_t n) {
  std::vector<float> x(n);
  for (float& value : x) value = normal();
  return x;
}

void PlayedStream::imagine(int tokens) {
  block_tokens = tokens;
  const auto n = static_cast<size_t>(tokens), layers = static_cast<size_t>(config.model.layers);
  q = normals(layers * n * q_row());
  k.resize(layers * n * row());
  v.resize(k.size());
  out.assign(q.size(), -77.0f);
  for (size_t t = 0; t < n; ++t) {
    const auto p = static_cast<size_t>(below(prototypes));
    for (size_t l = 0; l < layers; ++l)
      for (size_t i = 0; i < row(); ++i) {
        k[(l * n + t) * row() + i] = prototype_k[p][l * row() + i] + noise * normal();
        v[(l * n + t) * row() + i] = prototype_v[p][l * row() + i] + noise * normal();
      }
  }
}

void PlayedStream::attend_layers(int layers) {
  if (hand_over) return hand_over(this, layers);
  const auto n = static_cast<size_t>(block_tokens);
  for (int l = 0; l < layers; ++l) {
    const auto at = static_cast<size_t>(l) * n;
    memory->attend(l, &q[at * q_row()], &k[at * row()], &v[at * row()], &out[at * q_row()]);
  }
}

void PlayedStream::begin_frame(int tokens, int grid_w) {
  imagine(tokens);
  embedding = rooms[static_cast<size_t>(room)];
  for (float& x : embedding) x += 0.02f * normal();
  memory->begin_frame({now_ms, embedding.data(), tokens, grid_w, 0, tokens > trail ? trail : 0});
}

void PlayedStream::remember(std::vector<Token>* to, const std::vector<SeenToken>& block, bool video_block) {
  const auto n = static_cast<size_t>(block_tokens), layers = static_cast<size_t>(config.model.layers);
  const bool multi = config.model.rope.is_multi();
  for (size_t t = 0; t < n; ++t) {
    Token token;
    token.position = next_position + (video_block && multi ? 0 : static_cast<int>(t));
    token.time = video_block ? now_ms : -1;
    token.h = block[t].at[1], token.w = block[t].at[2];
    for (size_t l = 0; l < layers; ++l)
      for (size_t i = 0; i < row(); ++i) {
        token.k.push_back(stored(k[(l * n + t) * row() + i]));
        token.v.push_back(stored(v[(l * n + t) * row() + i]));
      }
    to->push_back(std::move(token));
  }
  if (to == &video) next_position += multi ? 1 : block_tokens;
  if (to == &prefix) next_position += block_tokens;
}

float PlayedStream::stored(float x) const {
  return config.exact == CodecId::kFp16 ? half_to_float(float_to_half(x)) : x;
}

double PlayedStream::frame(int tokens, bool judge, int grid_w) {
  begin_frame(tokens, grid_w);
  attend_layers(config.model.layers);
  std::vector<SeenToken> block;
  std::vector<const Token*> seen = see_frame();
  const double worst = expected(seen, {}, true, grid_w, &block, judge);
  memory->commit();
  frame_starts.push_back(static_cast<int>(video.size()));
  remember(&video, block, true);
  now_ms += 500;
  return worst;
}

double PlayedStream::prefix_block(int tokens, bool judge) {
  imagine(tokens);
  memory->begin_text(tokens);
  attend_layers(config.model.layers);
  std::vector<const Token*> seen;
  for (const Token& t : prefix) seen.push_back(&t);
  std::vector<SeenToken> block;
  const double worst = expected(seen, {}, false, 1, &block, judge);
  memory->commit();
  remember(&prefix, block, false);
  return worst;
}

void PlayedStream::open_question(int32_t since) {
  since_ms = since;
  memory->open_question(since);
  question.clear();
}

double PlayedStream::pass(int tokens, bool judge) {
  imagine(tokens);
  memory->begin_text(tokens);
  attend_layers(config.model.layers);
  std::vector<const Token*> seen = see_stored(), branch;
  for (const Token& t : dialogue) branch.push_back(&t);
  for (const Token& t : question) branch.push_back(&t);
  std::vector<SeenToken> block;
  const double worst = expected(seen, branch, false, 1, &block, judge);
  memory->commit();
  remember(&question, block, false);
  return worst;
}

void PlayedStream::rewind_question(int tokens) {
  memory->rewind_question(tokens);
  question.erase(question.begin() + tokens, question.end());
}

void PlayedStream::close_question(bool keep) {
  memory->close_question(keep);
  if (keep) dialogue.insert(dialogue.end(), question.begin(), question.end());
  question.clear();
}

double PlayedStream::ask(int tokens, int answer, bool keep, bool judge, int32_t since) {
  open_question(since);
  double worst = pass(tokens, judge);
  for (int i = 0; i < answer; ++i) worst = std::max(worst, pass(1, judge));
  close_question(keep);
  return worst;
}

int PlayedStream::moments_since(int32_t since, int tokens) {
  open_question(since);
  pass(tokens);
  const Evidence& evidence = memory->evidence();
  int moments = 0;
  bool before = false;
  for (int i = 0; i < evidence.capacity(); ++i) {
    if (!(evidence.moment(i).mass > 0)) continue;
    ++moments;
    before = before || evidence.moment(i).first_ms < since;
  }
  close_question(false);
  return before ? -1 : moments;
}

bool PlayedStream::finite() const {
  for (const float x : out)
    if (!std::isfinite(x)) return false;
  return true;
}

std::vector<const PlayedStream::Token*> PlayedStream::see_stored() const {
  std::vector<const Token*> seen;
  for (const Token& t : prefix) seen.push_back(&t);
  for (const Token& t : video)
    if (t.time >= since_ms) seen.push_back(&t);
  return seen;
}

std::vector<const PlayedStream::Token*> PlayedStream::see_frame() {
  since_ms = INT32_MIN;
  const int window = config.model.video_window, frames = static_cast<int>(frame_starts.size());
  if (window == 0) return see_stored();
  std::vector<const Token*> seen;
  for (const Token& t : prefix) seen.push_back(&t);
  const int first = std::max(0, frames - (window - 1));
  if (first < frames)
    for (size_t i = static_cast<size_t>(frame_starts[static_cast<size_t>(first)]); i < video.size(); ++i)
      seen.push_back(&video[i]);
  return seen;
}

double PlayedStream::expected(const std::vector<const Token*>& seen, const std::vector<const Token*>& branch,
                              bool video_block, int grid_w, std::vector<SeenToken>* block, bool judge) {
  const ModelShape& m = config.model;
  const bool multi = m.rope.is_multi();
  std::vector<SeenToken> all;
  int time = -1, highest = -1, last = -1;
  for (const Token* t : seen) {
    int at = t->position;
    if (config.positions != Positions::kOriginal) {
      if (!multi || t->position != last) ++time;
      at = time;
    } else {
      time = std::max(time, at);
    }
    last = t->position;
    all.push_back({nullptr, nullptr, {at, t->h, t->w}});
    highest = std::max({highest, at, multi ? t->h : 0, multi ? t->w : 0});
  }
  int base = highest + 1;
  if (config.positions == Positions::kOriginal) base = std::max(base, next_position);
  for (size_t i = 0; i < branch.size(); ++i) {
    const int at = base++;
    all.push_back({nullptr, nullptr, {at, at, at}});
  }
  for (int i = 0; i < block_tokens; ++i) {
    SeenToken t{nullptr, nullptr, {base + i, base + i, base + i}};
    if (video_block && multi) {
      t.at[0] = config.positions == Positions::kOriginal ? next_position : time + 1;
      t.at[1] = static_cast<int>(prefix.size()) + i / grid_w;
      t.at[2] = static_cast<int>(prefix.size()) + i % grid_w;
    }
    block->push_back(t);
  }
  if (!judge) return 0;
  const size_t before = all.size(), n = static_cast<size_t>(block_tokens);
  all.insert(all.end(), block->begin(), block->end());
  const double scale = m.scale != 0 ? static_cast<double>(m.scale) : 1 / std::sqrt(static_cast<double>(m.head_dim));
  std::vector<double> truth(q_row());
  double worst = 0;
  for (int l = 0; l < m.layers; ++l) {
    const size_t at = static_cast<size_t>(l) * row();
    for (size_t i = 0; i < seen.size(); ++i) all[i].k = &seen[i]->k[at], all[i].v = &seen[i]->v[at];
    for (size_t i = 0; i < branch.size(); ++i)
      all[seen.size() + i].k = &branch[i]->k[at], all[seen.size() + i].v = &branch[i]->v[at];
    for (size_t i = 0; i < n; ++i) {
      all[before + i].k = &k[(static_cast<size_t>(l) * n + i) * row()];
      all[before + i].v = &v[(static_cast<size_t>(l) * n + i) * row()];
    }
    const std::vector<double> keys = rotated_keys(m.rope, m.kv_heads, m.head_dim, all);
    for (size_t i = 0; i < n; ++i) {
      const size_t here = (static_cast<size_t>(l) * n + i) * q_row();
      attend_in_double(m.rope, m.q_heads, m.kv_heads, m.head_dim, scale, &q[here], (*block)[i].at, all.data(),
                       keys.data(), before + i + 1, truth.data());
      for (size_t e = 0; e < q_row(); ++e) {
        const double difference = std::abs(truth[e] - static_cast<double>(out[here + e]));
        worst = std::max(worst, difference);
        if (!(difference == difference)) return INFINITY;
      }
    }
  }
  return worst;
}

}  // namespace mosaic::testing
