#include "runtime/kv_memory.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/finite.h"
#include "core/trace.h"

namespace mosaic {

namespace {

RopeTable take_rope(Region& region, const Plan& plan, Ops& ops) {
  const RopeSpec& spec = plan.config.model.rope;
  const size_t bytes = RopeTable::bytes_for(spec, plan.rope_positions);
  if (!region.has_private()) return RopeTable(spec, plan.rope_positions, region.take<std::byte>("rope", bytes));
  std::vector<std::byte> built(bytes);
  const RopeTable table(spec, plan.rope_positions, built.data());
  std::byte* const there = region.take_private("rope", bytes);
  if (bytes > 0) ops.copy(there, built.data(), bytes);
  ops.wait();
  return table.at(there);
}

}  // namespace

KvMemory::KvMemory(const MemoryConfig& config, std::unique_ptr<Policy> policy, Backend backend, SpillIo* io)
    : backend_(std::move(backend)),
      policy_(std::move(policy)),
      plan_(make_plan(config, *policy_, backend_)),
      region_(*backend_.device, plan_.total_bytes - plan_.private_bytes, plan_.private_bytes),
      window_(region_, plan_.window),
      store_(region_, plan_.store, *backend_.ops, io),
      rope_(take_rope(region_, plan_, *backend_.ops)),
      shared_(BlockSelection::make_shared(region_, plan_)),
      scratch_(region_, plan_),
      staging_(region_, plan_),
      evidence_(region_, Evidence::capacity_for(plan_.config.cap_bytes)) {
  selection_.reserve(static_cast<size_t>(lanes()));
  for (int l = 0; l < lanes(); ++l) selection_.emplace_back(region_, plan_, shared_);
  const Ops::Limits limits = ops_limits(plan_);
  const size_t scratch = backend_.ops->scratch_bytes(limits);
  backend_.ops->set_scratch(region_.has_private() ? region_.take_private("kernel scratch", scratch)
                                                  : region_.take<std::byte>("kernel scratch", scratch),
                            limits);
  if (Ops& host = backend_.ops->for_host(); &host != backend_.ops.get()) {
    const Ops::Limits rows = host_limits(plan_);
    host.set_scratch(region_.take<std::byte>("kernel scratch", host.scratch_bytes(rows)), rows);
  }
  policy_->bind(store_, region_);
  if (region_.used() != plan_.total_bytes)
    throw InvariantError("KvMemory: took " + std::to_string(region_.used()) + " bytes, planned " +
                         std::to_string(plan_.total_bytes) + ".");
}

void KvMemory::begin(Block kind, int tokens) {
  if (block_ != Block::kNone) throw InvalidInput("KvMemory: a block is open; commit() or abort() it first.");
  on_device([&] { backend_.ops->wait(); });  // tables that a block before this one queued are about to change
  staging_.clear();
  block_ = kind;
  block_tokens_ = tokens;
  next_layer_ = 0;
}

void KvMemory::begin_frame(const FrameInfo& frame) {
  if (asking_) throw InvalidInput("KvMemory: a question is open; close_question() before the next frame.");
  if (frame.tokens < 1 || frame.tokens > model().frame_tokens)
    throw InvalidInput("KvMemory: a frame of " + std::to_string(frame.tokens) + " tokens; frame_tokens= is " +
                       std::to_string(model().frame_tokens) + ".");
  if (frame.grid_w < 1)
    throw InvalidInput("KvMemory: a frame needs grid_w of at least 1, got " + std::to_string(frame.grid_w) + ".");
  if (frame.embedding == nullptr || !all_finite(frame.embedding, static_cast<size_t>(model().embedding_dim)))
    throw InvalidInput("KvMemory: the frame's embedding is missing or not finite; the frame was refused.");
  if (window_.frames() > 0 && frame.time_ms < window_.frame(window_.frames() - 1).time_ms)
    throw InvalidInput("KvMemory: frame at " + std::to_string(frame.time_ms) +
                       " ms comes before the last one; pts must not fall.");
  if (frame.lead < 0 || frame.trail < 0 || frame.lead + frame.trail >= frame.tokens)
    throw InvalidInput("KvMemory: lead=" + std::to_string(frame.lead) + " and trail=" + std::to_string(frame.trail) +
                       " leave nothing of a frame of " + std::to_string(frame.tokens) + " tokens.");
  const bool absolute = frame.moment >= 0 && model().rope.is_multi() && !model().rope.grid_follows_time;
  // Compared before adding: a moment may be any number.
  if (absolute && frame.moment < next_position_ - 1 - window_.prefix_tokens && frames_ > 0)
    throw InvalidInput("KvMemory: moment=" + std::to_string(frame.moment) + " comes before the last frame's, " +
                       std::to_string(next_position_ - 1 - window_.prefix_tokens) + "; moments must not fall.");
  if (frame.moment > plan_.config.max_position)
    throw InvalidInput("KvMemory: moment=" + std::to_string(frame.moment) +
                       " is beyond max_position=" + std::to_string(plan_.config.max_position) + ".");
  const int32_t position = absolute ? window_.prefix_tokens + frame.moment : next_position_;
  if (plan_.config.original_positions && position + frame.tokens >= plan_.config.max_position)
    throw InvalidInput("KvMemory: positions=\"original\" reached max_position=" +
                       std::to_string(plan_.config.max_position) + "; raise it or use positions=\"contiguous\".");
  refuse_frame_without_room();
  begin(Block::kFrame, frame.tokens);
  frame_ = frame;
  frame_position_ = position;
  std::memcpy(window_.embedding(window_.frames()), frame.embedding,
              static_cast<size_t>(model().embedding_dim) * sizeof(float));
  for (BlockSelection& s : selection_) s.clear();
}

void KvMemory::begin_text(int tokens) {
  if (!asking_) {
    if (frames_ > 0 || window_.prefix_tokens + tokens > plan_.config.prefix_tokens)
      throw InvalidInput(
          "KvMemory: text outside a question is the prefix: before the first frame, at most prefix_tokens=" +
          std::to_string(plan_.config.prefix_tokens) + " tokens.");
  } else if (tokens > plan_.config.branch_tokens - (window_.branch_tokens - question_start_)) {
    throw MemoryCapError("question: needs room for " +
                         std::to_string(window_.branch_tokens - question_start_ + tokens) +
                         " tokens of question and answer, branch_tokens= is " +
                         std::to_string(plan_.config.branch_tokens) + ". Raise branch_tokens=.");
  }
  if (tokens < 1 || tokens > plan_.max_block) throw InvalidInput("KvMemory: a text block needs at least one token.");
  begin(asking_ ? Block::kQuestion : Block::kPrefix, tokens);
  if (asking_ && passes_ == 0) evidence_.clear();  // of a first pass that was refused half way
  if (!asking_) {
    for (BlockSelection& s : selection_) s.clear();
  } else if (window_.branch_tokens + tokens > plan_.config.branch_tokens) {
    shift_dialogue(tokens);
  }
  const int every = plan_.config.refresh_every;
  if (asking_ && passes_ > 0 && every > 0 && (since_refresh_ += tokens) >= every) {
    since_refresh_ = 0;
    for (BlockSelection& s : selection_) s.clear();
  }
}

void KvMemory::block_positions(BlockSelection* s) {
  const RopeSpec& rope = model().rope;
  const bool original = plan_.config.original_positions;
  const bool overlaps = rope.is_multi() && !rope.grid_follows_time;  // rows and columns do not move what follows
  int base = overlaps && block_ == Block::kFrame ? s->next_moment() : s->next_position();
  if (block_ == Block::kQuestion) base += window_.branch_tokens;
  if (original && block_ == Block::kFrame) base = frame_position_;
  if (original && block_ == Block::kQuestion) base = std::max(base, next_position_ + window_.branch_tokens);
  for (int i = 0; i < block_tokens_; ++i) {
    int32_t* p = s->q_positions() + 3 * i;
    p[0] = p[1] = p[2] = base + i;
    if (block_ == Block::kFrame && rope.is_multi()) {
      const Place place = place_in_frame(i);
      p[0] = base + place.step;
      p[1] = rope.place_at(p[0], place.h);
      p[2] = rope.place_at(p[0], place.w);
    }
  }
}

// Under M-RoPE a picture is one moment. Its rows and columns begin at the prefix, as the video does, or at that moment;
// then they take positions of their own, as many as the longer side.
KvMemory::Place KvMemory::place_in_frame(int i) const {
  const RopeSpec& rope = model().rope;
  const int n = picture_tokens(), at = i - frame_.lead;
  const int side = rope.grid_follows_time ? std::max((n - 1) / frame_.grid_w + 1, std::min(n, frame_.grid_w)) : 1;
  if (at < 0) return {i, kText, kText};
  if (at >= n) return {rope.is_multi() ? frame_.lead + side + at - n : i, kText, kText};
  const int corner = rope.grid_follows_time ? 0 : window_.prefix_tokens;
  return {rope.is_multi() ? frame_.lead : i, static_cast<uint16_t>(corner + at / frame_.grid_w),
          static_cast<uint16_t>(corner + at % frame_.grid_w)};
}

int KvMemory::frame_steps() const {
  const RopeSpec& rope = model().rope;
  if (!rope.is_multi()) return block_tokens_;
  const int n = picture_tokens();
  const int side = rope.grid_follows_time ? std::max((n - 1) / frame_.grid_w + 1, std::min(n, frame_.grid_w)) : 1;
  return frame_.lead + side + frame_.trail;
}

template <class Call>
void KvMemory::on_device(const Call& call) {
  if (!failed_.empty())
    throw DeviceError("KvMemory: the device failed (" + failed_ +
                      ") and its memory cannot be trusted. Close the session" + " and open another.");
  try {
    call();
  } catch (const DeviceError& e) {
    failed_ = e.what();
    throw;
  }
}

void KvMemory::refuse_block(const std::string& why) {
  abort();
  throw InvalidInput("KvMemory: " + why + "; the block was refused and nothing of it was filed.");
}

void KvMemory::attend(int layer, const float* q, const float* k, const float* v, float* out,
                      std::optional<void*> stream) {
  if (block_ == Block::kNone)
    throw InvalidInput("KvMemory: attend() without a block; begin_frame() or begin_text() first.");
  const LayerArrays given{q, k, v, out};
  if (layer != next_layer_)
    refuse_block("expected layer " + std::to_string(next_layer_) + ", got " + std::to_string(layer));
  if (!staging_.readable_is_finite(given, *backend_.device, block_tokens_))
    refuse_block("layer " + std::to_string(layer) + ": q, k or v holds NaN or infinity");
  try {
    on_device([&] { attend_layer(given, stream); });
  } catch (...) {  // a policy written elsewhere may throw from select(): the block is refused whole
    abort();
    throw;
  }
  store_.unpin_all();
  ++next_layer_;
}

void KvMemory::attend_layer(const LayerArrays& given, std::optional<void*> stream) {
  const auto d = static_cast<size_t>(model().head_dim);
  const auto each = static_cast<size_t>(plan_.layer_lanes);
  const size_t q_lane = static_cast<size_t>(model().q_heads) * d / each;
  const size_t kv_lane = static_cast<size_t>(model().kv_heads) * d / each;
  const LayerArrays at = staging_.enter(given, backend_, block_tokens_, stream);
  for (size_t i = 0; i < each; ++i)
    attend_lane(next_layer_ * plan_.layer_lanes + static_cast<int>(i), at.q + i * q_lane, at.k + i * kv_lane,
                at.v + i * kv_lane, at.out + i * q_lane);
  staging_.leave(given, backend_, block_tokens_, stream);
  if (store_.tiers().spill() != nullptr) backend_.ops->wait();  // read copies may be replaced from here on
}

void KvMemory::attend_lane(int lane, const float* q, const float* k, const float* v, float* out) {
  BlockSelection& s = selection_[static_cast<size_t>(lane)];
  if (!s.ready) {
    if (block_ == Block::kPrefix || (block_ == Block::kFrame && model().video_window > 0)) {
      select_window(lane);
    } else {
      select_stored(lane, q);
    }
  }
  if (block_ == Block::kQuestion) append_branch(&s, lane);
  resolve(&s);
  block_positions(&s);
  const BlockSelection::Table& table = s.upload(*backend_.ops, block_tokens_);

  AttendArgs args;
  args.q = q;
  args.tokens = block_tokens_;
  args.q_heads = model().q_heads / plan_.layer_lanes;
  args.q_stride = static_cast<size_t>(model().q_heads) * static_cast<size_t>(model().head_dim);
  args.q_positions = table.q_positions;
  args.shape = plan_.store.page;
  args.rope = &rope_;
  args.scale = model().scale;
  args.pages = table.pages;
  args.n_pages = s.entries();
  args.positions = table.positions;
  args.places = table.places;
  args.mean_k = store_.index(lane).mean_k();
  args.mean_v = store_.index(lane).mean_v();
  args.rows = table.rows;
  args.row_positions = table.row_positions;
  args.row_bias = table.row_bias;
  args.n_rows = s.rows();
  args.block_k = k;
  args.block_v = v;
  args.kv_stride = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  args.out = out;
  args.lse = shared_.lse;
  const uint64_t attend_began = trace::begin();
  backend_.ops->attend(args);
  trace::end("attend", attend_began, lane);
  if (block_ == Block::kQuestion && passes_ == 0) collect_evidence(args, &s, lane);
  if (block_ == Block::kFrame && plan_.window.received) collect_received(args, &s, lane);
  stage(lane, k, v);
}

// k and v into their place in the window. A block that is aborted leaves bytes there that nothing refers to.
void KvMemory::stage(int lane, const float* k, const float* v) {
  const auto row = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  const CodecId codec = plan_.window.codec;
  if (block_ == Block::kFrame) {
    for (int at = 0, page = 0; at < block_tokens_; at += kPageTokens, ++page) {
      const PageView view = window_.page(Strip::kFrame, lane, page, window_.frames());
      const int n = std::min(kPageTokens, block_tokens_ - at);
      for (int i = 0; i < n; ++i) {
        const Place place = place_in_frame(at + i);
        view.meta[i] = {frame_position_ + place.step, frame_.time_ms, place.h, place.w};
      }
    }
    backend_.ops->encode_run(codec, plan_.store.page, k, v, row, block_tokens_,
                             window_.page(Strip::kFrame, lane, 0, window_.frames()).data, window_.page_pitch());
    return;
  }
  const Strip strip = block_ == Block::kPrefix ? Strip::kPrefix : Strip::kBranch;
  const int first = block_ == Block::kPrefix ? window_.prefix_tokens : window_.branch_tokens;
  for (int i = 0; i < block_tokens_; ++i) {
    const int at = first + i;
    const PageView view = window_.page(strip, lane, at / kPageTokens);
    view.meta[at % kPageTokens] = {block_ == Block::kPrefix ? next_position_ + i : 0, -1, kText, kText};
    backend_.ops->encode_row(codec, plan_.store.page, k + static_cast<size_t>(i) * row,
                             v + static_cast<size_t>(i) * row, at % kPageTokens, view.data);
  }
}

void KvMemory::abort() {
  block_ = Block::kNone;
  store_.unpin_all();
  if (!asking_ || passes_ == 0)  // what the refused block chose is not the next one's choice
    for (BlockSelection& s : selection_) s.clear();
}

void KvMemory::commit() {
  if (block_ == Block::kNone || next_layer_ != model().layers) {
    const int done = next_layer_;
    const bool open = block_ != Block::kNone;
    abort();
    throw InvalidInput(open ? "KvMemory: commit() after " + std::to_string(done) + " of " +
                                  std::to_string(model().layers) + " layers; the block was refused."
                            : "KvMemory: commit() without a block.");
  }
  try {
    on_device([&] { backend_.ops->wait(); });
    if (staging_.bad()) refuse_block("q, k or v of a layer holds NaN or infinity");
  } catch (const DeviceError&) {
    abort();
    throw;
  }
  on_device([&] { file_block(); });
}

void KvMemory::file_block() {
  const Block kind = std::exchange(block_, Block::kNone);
  if (kind == Block::kPrefix) {
    window_.prefix_tokens += block_tokens_;
    next_position_ += block_tokens_;
  } else if (kind == Block::kQuestion) {
    window_.branch_tokens += block_tokens_;
    ++passes_;
  } else {
    window_.push({static_cast<int32_t>(frames_), block_tokens_, frame_.time_ms, frame_position_});
    next_position_ = frame_position_ + frame_steps();
    ++frames_;
    store_.poll_spills(false);
    if (window_.is_full()) admit_oldest();
  }
}

void KvMemory::open_question(int32_t since_ms) {
  if (block_ != Block::kNone)
    throw InvalidInput("KvMemory: a block is open; commit() or abort() it before a question.");
  if (asking_) throw InvalidInput("KvMemory: a question is open already; close_question() first.");
  asking_ = true;
  since_ms_ = since_ms;
  question_start_ = window_.branch_tokens;
  passes_ = since_refresh_ = 0;
  evidence_.clear();
  for (BlockSelection& s : selection_) s.clear();
  ++questions_;
}

void KvMemory::close_question(bool keep) {
  if (!asking_) throw InvalidInput("KvMemory: no question is open.");
  if (block_ != Block::kNone) abort();
  asking_ = false;
  const int turn = window_.branch_tokens - question_start_;
  if (!keep) {
    window_.branch_tokens = question_start_;
  } else if (turn > 0) {
    if (turn_count_ == kTurns) {  // the two oldest turns count as one
      turns_[1] += turns_[0];
      std::copy(turns_ + 1, turns_ + kTurns, turns_);
      --turn_count_;
    }
    turns_[turn_count_++] = turn;
  }
  if (failed_.empty()) on_device([&] { settle_read(); });
}

// Splits that were put off while their cluster was on disk: its pages have just been read.
void KvMemory::settle_read() {
  backend_.ops->wait();
  for (int lane = 0; lane < lanes(); ++lane) {
    BlockSelection& s = selection_[static_cast<size_t>(lane)];
    for (int e = 0; e < s.entries(); ++e) {
      if (s.page(e) == kNone) continue;
      const Page& page = store_.blocks()[s.page(e)];
      if (page.tier >= 0 && page.lane == lane && store_.index(lane).is_live(page.cluster) &&
          store_.index(lane)[page.cluster].buffer != kNone)
        store_.settle(lane, page.cluster, static_cast<int32_t>(frames_));
    }
    store_.unpin_all();
    s.clear();
  }
}

MemoryStats KvMemory::stats() const {
  MemoryStats stats;
  stats.tokens = store_.account();
  int64_t window = window_.prefix_tokens + window_.first_frame().tokens;
  for (int i = 0; i < window_.frames(); ++i) window += window_.frame(i).tokens;
  stats.tokens.seen += window * lanes();
  stats.tokens.exact += window * lanes();
  stats.counters = store_.counters();
  stats.disk = store_.disk();
  stats.copies = store_.copies();
  stats.cap_bytes = plan_.config.cap_bytes;
  stats.taken_bytes = region_.used();
  stats.frames = frames_;
  stats.questions = questions_;
  stats.unread_pages = unread_pages_;
  stats.dropped_dialogue = dropped_dialogue_;
  const TierChain& tiers = store_.tiers();
  stats.tiers = tiers.size();
  for (int t = 0; t < tiers.size(); ++t)
    stats.tier[t] = {tiers.spec(t).place, tiers.spec(t).codec, tiers.used_bytes(t),
                     static_cast<uint64_t>(tiers.peak_used(t)) * tiers.slot_bytes(t), tiers.capacity_bytes(t)};
  for (int lane = 0; lane < lanes(); ++lane) stats.clusters += static_cast<int>(store_.index(lane).live().size());
  stats.scenes = store_.scenes() != nullptr ? store_.scenes()->size() : 0;
  return stats;
}

void KvMemory::check_invariants() const {
  store_.check_invariants();
  if (region_.used() > plan_.config.cap_bytes) throw InvariantError("KvMemory: the bytes taken pass the cap.");
  const MemoryStats s = stats();
  if (s.tokens.total() != s.tokens.seen) throw InvariantError("KvMemory: a token is not accounted for.");
}

}  // namespace mosaic
