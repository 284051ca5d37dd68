#include "runtime/kv_memory.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/finite.h"
#include "core/ranges.h"
#include "core/trace.h"

namespace mosaic {

namespace {

// As a profiler shows it.
const char* name_of_block(BlockKind kind, bool answers) {
  if (kind == BlockKind::kFrame) return "frame";
  if (kind == BlockKind::kPrefix) return "prefix";
  return answers ? "token" : "question";
}

}  // namespace

KvMemory::KvMemory(const MemoryConfig& config, std::unique_ptr<Policy> policy, Backend backend, SpillIo* io,
                   SnapshotReader* from)
    : backend_(std::move(backend)),
      policy_(std::move(policy)),
      plan_(make_plan(config, *policy_, backend_)),
      region_(*backend_.device, plan_.total_bytes - plan_.private_bytes, plan_.private_bytes),
      parts_(region_, plan_, *policy_, *backend_.ops, io),
      selector_(plan_, *policy_, backend_, window_, store_, records_, staging_, parts_.selecting, parts_.selections),
      admission_(plan_, *policy_, *backend_.ops, window_, store_, records_, parts_.admitting),
      dialogue_(window_, *backend_.ops) {
  if (region_.used() != plan_.total_bytes)
    throw InvariantError("KvMemory: took " + std::to_string(region_.used()) + " bytes, planned " +
                         std::to_string(plan_.total_bytes) + ".");
  policy_->serve(caller_);
  from != nullptr ? restore(*from) : note_stats();
}

// A block that is open goes with it.
KvMemory::~KvMemory() {
  if (block_ != BlockKind::kNone) ranges::close();
}

void KvMemory::begin(BlockKind kind, int tokens) {
  if (block_ != BlockKind::kNone) throw InvalidInput("KvMemory: a block is open; commit() or abort() it first.");
  on_device([&] { wait_for_tables(); });
  tables_read_ = false;
  staging_.clear();
  block_ = kind;
  block_tokens_ = tokens;
  ranges::open(name_of_block(kind, asking_ && passes_ > 0));
  next_layer_ = 0;
  lead_ = trail_ = 0;
  reads_now_ = 0;
}

void KvMemory::wait_for_tables() {
  if (!tables_read_) backend_.ops->wait();
  tables_read_ = true;
}

void KvMemory::begin_frame(const FrameInfo& frame) {
  const OneCaller::Turn turn(caller_);
  if (asking_) throw InvalidInput("KvMemory: a question is open; close_question() before the next frame.");
  if (frame.tokens < 1 || frame.tokens > model().frame_tokens)
    throw InvalidInput("KvMemory: a frame of " + std::to_string(frame.tokens) + " tokens; frame_tokens= is " +
                       std::to_string(model().frame_tokens) + ".");
  if (frame.grid_w < 1)
    throw InvalidInput("KvMemory: a frame needs grid_w of at least 1, got " + std::to_string(frame.grid_w) + ".");
  if (frame.embedding == nullptr || !all_finite(frame.embedding, static_cast<size_t>(model().embedding_dim)))
    throw InvalidInput("KvMemory: the frame's embedding is missing or not finite; the frame was refused.");
  if (frame.time_ms < Clock::kFirstMs || frame.time_ms > Clock::kLastMs)
    throw InvalidInput("KvMemory: frame at " + std::to_string(frame.time_ms) + " ms; a stream runs from " +
                       std::to_string(Clock::kFirstMs) + " to " + std::to_string(Clock::kLastMs) + ".");
  if (window_.frames() > 0 && frame.time_ms < time_of(window_.frame(window_.frames() - 1)))
    throw InvalidInput("KvMemory: frame at " + std::to_string(frame.time_ms) +
                       " ms comes before the last one; pts must not fall.");
  if (frame.lead < 0 || frame.trail < 0 || frame.lead + frame.trail >= frame.tokens)
    throw InvalidInput("KvMemory: lead=" + std::to_string(frame.lead) + " and trail=" + std::to_string(frame.trail) +
                       " leave nothing of a frame of " + std::to_string(frame.tokens) + " tokens.");
  const bool absolute = frame.t_position >= 0 && model().rope.is_multi() && !model().rope.grid_follows_time;
  // Compared before adding: a t_position may be any number.
  if (absolute && frame.t_position < next_position_ - 1 - window_.prefix_tokens && frames_ > 0)
    throw InvalidInput("KvMemory: t_position=" + std::to_string(frame.t_position) + " comes before the last frame's, " +
                       std::to_string(next_position_ - 1 - window_.prefix_tokens) + "; positions must not fall.");
  const FrameLayout layout{frame.tokens, frame.grid_w, frame.lead, frame.trail, window_.prefix_tokens};
  const int64_t position = absolute ? int64_t{window_.prefix_tokens} + frame.t_position : next_position_;
  if (const int64_t end = position + frame_steps(model().rope, layout); end > kLastPosition)
    throw InvalidInput("KvMemory: the frame would end at position " + std::to_string(end) + "; a session counts to " +
                       std::to_string(kLastPosition) + ". Open another one.");
  admission_.refuse_without_room(frames_);
  begin(BlockKind::kFrame, frame.tokens);
  frame_ = frame;
  frame_position_ = static_cast<int32_t>(position);
  layout_ = layout;
  std::memcpy(window_.embedding(window_.frames()), frame.embedding,
              static_cast<size_t>(model().embedding_dim) * sizeof(float));
  window_.clear_attention_now();
  selector_.clear();
}

void KvMemory::begin_text(int tokens, int lead, int trail) {
  const OneCaller::Turn turn(caller_);
  if (lead < 0 || trail < 0 || int64_t{lead} + trail > std::max(tokens - 1, 0))
    throw InvalidInput("KvMemory: a template of lead=" + std::to_string(lead) + " and trail=" + std::to_string(trail) +
                       " leaves nothing of a text block of " + std::to_string(tokens) + " tokens.");
  if (!asking_) {
    if (frames_ > 0 || window_.prefix_tokens + tokens > plan_.config.prefix_tokens)
      throw InvalidInput(
          "KvMemory: text outside a question is the prefix: before the first frame, at most prefix_tokens=" +
          std::to_string(plan_.config.prefix_tokens) + " tokens.");
  } else if (tokens > dialogue_.capacity() - dialogue_.question_tokens()) {
    throw MemoryCapError("question: needs room for " + std::to_string(int64_t{dialogue_.question_tokens()} + tokens) +
                         " tokens of question and answer, branch_tokens= is " +
                         std::to_string(plan_.config.branch_tokens) + ". Raise branch_tokens=.");
  }
  if (tokens < 1 || tokens > plan_.max_block) throw InvalidInput("KvMemory: a text block needs at least one token.");
  begin(asking_ ? BlockKind::kQuestion : BlockKind::kPrefix, tokens);
  lead_ = lead;
  trail_ = trail;
  if (asking_ && passes_ == 0) evidence_.clear();  // of a first pass that was refused half way
  if (!asking_) {
    selector_.clear();
  } else {
    dialogue_.make_room(tokens);
  }
  const int every = plan_.config.refresh_every;
  if (asking_ && passes_ > 0 && every > 0 && (since_refresh_ += tokens) >= every) {
    since_refresh_ = 0;
    selector_.clear();
  }
}

void KvMemory::refuse_block(const std::string& why) {
  forget_block();
  throw InvalidInput("KvMemory: " + why + "; the block was refused and nothing of it was filed.");
}

void KvMemory::refuse_numbers(const std::string& fault, bool beyond) {
  refused_overflows_ += beyond ? 1 : 0;
  refuse_block(fault);
}

void KvMemory::abort() {
  const OneCaller::Turn turn(caller_);
  forget_block();
}

void KvMemory::drain() {
  const OneCaller::Turn turn(caller_);
  store_.drain();
  if (records_) records_->drain();
}

void KvMemory::forget_block() {
  if (std::exchange(block_, BlockKind::kNone) != BlockKind::kNone) ranges::close();
  store_.unpin_all();
  if (!asking_ || passes_ == 0)  // what the refused block chose is not the next one's choice
    selector_.clear();
}

void KvMemory::commit() {
  const OneCaller::Turn turn(caller_);
  if (block_ == BlockKind::kNone || next_layer_ != model().layers) {
    const int done = next_layer_;
    const bool open = block_ != BlockKind::kNone;
    forget_block();
    throw InvalidInput(open ? "KvMemory: commit() after " + std::to_string(done) + " of " +
                                  std::to_string(model().layers) + " layers; the block was refused."
                            : "KvMemory: commit() without a block.");
  }
  try {
    on_device([&] { backend_.ops->wait(); });
    bool beyond = false;
    tables_read_ = true;
    if (const std::string fault = staging_.found(&beyond); !fault.empty()) refuse_numbers(fault, beyond);
    for (int lane = 0; lane < lanes() && measures_attention() && selector_.stand_apart(); ++lane)
      collect_attention(lane);
  } catch (const DeviceError&) {
    forget_block();
    throw;
  }
  on_device([&] { file_block(); });
  note_stats();
}

void KvMemory::file_block() {
  saturated_ += staging_.saturated();
  const BlockKind kind = std::exchange(block_, BlockKind::kNone);
  const ranges::Range to_its_end;
  if (kind == BlockKind::kPrefix) {
    window_.prefix_tokens += block_tokens_;
    next_position_ += block_tokens_;
  } else if (kind == BlockKind::kQuestion) {
    window_.branch_tokens += block_tokens_;
    if (passes_++ == 0) question_reads_ = reads_now_;
  } else {
    window_.file_attention_now();
    store_.clock().pass(frame_position_, frame_.time_ms);
    window_.push({static_cast<int32_t>(frames_), block_tokens_, Clock::low(frame_.time_ms), frame_position_});
    next_position_ = frame_position_ + frame_steps(model().rope, layout_);
    frame_reads_ = reads_now_;
    ++frames_;
    if (records_) {
      records_->forget_recalled();
      records_->file(window_.frame(window_.frames() - 1));
    }
    store_.poll_spills(false);
    if (window_.is_full()) admission_.admit_oldest();
  }
}

void KvMemory::open_question(int64_t since_ms) {
  const OneCaller::Turn turn(caller_);
  if (block_ != BlockKind::kNone)
    throw InvalidInput("KvMemory: a block is open; commit() or abort() it before a question.");
  if (asking_) throw InvalidInput("KvMemory: a question is open already; close_question() first.");
  on_device([&] { wait_for_tables(); });
  asking_ = true;
  since_ms_ = since_ms;
  dialogue_.begin_question();
  passes_ = since_refresh_ = 0;
  evidence_.clear();
  selector_.clear();
  ++questions_;
}

void KvMemory::rewind_question(int tokens) {
  const OneCaller::Turn turn(caller_);
  if (!asking_) throw InvalidInput("KvMemory: no question is open.");
  if (block_ != BlockKind::kNone)
    throw InvalidInput("KvMemory: a block is open; commit() or abort() it before rewind_question().");
  if (tokens < 1 || tokens > dialogue_.question_tokens())
    throw InvalidInput("KvMemory: rewind_question(" + std::to_string(tokens) + "): question and answer have " +
                       std::to_string(dialogue_.question_tokens()) + " tokens, of which at least one stays.");
  on_device([&] { wait_for_tables(); });
  dialogue_.rewind_question(tokens);
  note_stats();
}

void KvMemory::close_question(bool keep) {
  const OneCaller::Turn turn(caller_);
  if (!asking_) throw InvalidInput("KvMemory: no question is open.");
  if (block_ != BlockKind::kNone) forget_block();
  asking_ = false;
  dialogue_.close_question(keep);
  if (failed_.empty()) on_device([&] { settle_read(); });
  note_stats();
}

// Splits that were put off while their cluster was on disk: its pages have just been read.
void KvMemory::settle_read() {
  backend_.ops->wait();
  if (records_) return selector_.clear();
  for (int lane = 0; lane < lanes(); ++lane) {
    BlockSelection& s = parts_.selections[static_cast<size_t>(lane)];
    for (int e = 0; e < s.entries(); ++e) {
      if (s.page(e) == kNone) continue;
      const Page& page = store_.pages()[s.page(e)];
      if (page.tier >= 0 && page.lane == lane && store_.index(lane).is_live(page.cluster) &&
          store_.index(lane)[page.cluster].buffer != kNone)
        store_.settle(lane, page.cluster, static_cast<int32_t>(frames_));
    }
    store_.unpin_all();
    s.clear();
  }
}

MemoryStats KvMemory::stats() const {
  return caller_.look_or([this] { return count_stats(); },
                         [this] {
                           const std::lock_guard lock(noted_mutex_);
                           return noted_;
                         });
}

void KvMemory::note_stats() {
  const MemoryStats now = count_stats();
  const std::lock_guard lock(noted_mutex_);
  noted_ = now;
}

MemoryStats KvMemory::count_stats() const {
  MemoryStats stats;
  stats.tokens = records_ ? records_->account() : store_.account();
  int64_t window = window_.prefix_tokens + window_.first_frame().tokens;
  for (int i = 0; i < window_.frames(); ++i) window += window_.frame(i).tokens;
  stats.tokens.seen += window * lanes();
  (codec_is_exact(plan_.window.codec) ? stats.tokens.exact : stats.tokens.quantised) += window * lanes();
  stats.counters = store_.counters();
  stats.disk = store_.disk();
  stats.copies = store_.copies();
  stats.cap_bytes = plan_.config.cap_bytes;
  stats.taken_bytes = region_.used();
  stats.frames = frames_;
  stats.questions = questions_;
  stats.frame_reads = frame_reads_;
  stats.question_reads = question_reads_;
  stats.unread_pages = selector_.unread_pages();
  stats.dropped_dialogue = dialogue_.dropped();
  stats.saturated_numbers = saturated_;
  stats.refused_overflows = refused_overflows_;
  const TierChain& tiers = store_.tiers();
  stats.tiers = tiers.size();
  for (int t = 0; t < tiers.size(); ++t)
    stats.tier[t] = {tiers.spec(t).medium, tiers.spec(t).codec, tiers.used_bytes(t),
                     static_cast<uint64_t>(tiers.peak_used(t)) * tiers.slot_bytes(t), tiers.capacity_bytes(t)};
  if (records_) {
    const uint64_t used = records_->used_bytes();
    stats.tiers = 1;
    stats.tier[0] = {Medium::device, plan_.log.codec, used, used, records_->capacity_bytes()};
    if (const Archive* const archive = records_->archive()) {
      stats.tiers = 2;
      stats.tier[1] = {Medium::disk, plan_.log.codec, archive->used_bytes(), archive->peak_bytes(),
                       archive->capacity_bytes()};
      stats.disk = archive->disk();
      stats.copies = archive->copy_stats();
      stats.counters.lost_pages = archive->counters().lost_pages;
      stats.counters.failed_spills = archive->counters().failed_spills;
      stats.counters.fetched_pages = archive->counters().fetched_pages;
      stats.counters.spill_pauses = archive->counters().spill_pauses;
      stats.counters.read_pauses = archive->counters().read_pauses;
      stats.counters.paused_frames = archive->counters().paused_frames;
    }
  }
  for (int lane = 0; lane < store_.shape().lanes; ++lane)
    stats.clusters += static_cast<int>(store_.index(lane).live().size());
  stats.scenes = store_.scenes() != nullptr ? store_.scenes()->size() : 0;
  return stats;
}

void KvMemory::check_invariants() const {
  const OneCaller::Turn turn(caller_);
  check_all();
}

void KvMemory::check_all() const {
  store_.check_invariants();
  if (records_) records_->check_invariants();
  if (region_.used() > plan_.config.cap_bytes) throw InvariantError("KvMemory: the bytes taken pass the cap.");
  const MemoryStats s = count_stats();
  if (s.tokens.total() != s.tokens.seen) throw InvariantError("KvMemory: a token is not accounted for.");
}

}  // namespace mosaic
