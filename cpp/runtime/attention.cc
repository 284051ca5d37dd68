// The seam itself: where the tokens of a block stand, attention of every lane over what was selected for it, and the block's
// keys and values into the window.
#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/trace.h"
#include "runtime/kv_memory.h"

namespace mosaic {

namespace {

// Where what comes next stood, while the model has positions for it; 0: not any more. Then what it reads has come closer, or
// is so little (since=) that it did not have to, and the block stands right behind it.
int32_t next_in_context(const Plan& plan, int32_t next) {
  return int64_t{next} + plan.config.branch_tokens <= plan.rope_positions ? next : 0;
}

}  // namespace

void KvMemory::block_positions(BlockSelection* s) const {
  const bool frame = block_ == BlockKind::kFrame;
  const bool fits = !frame || int64_t{frame_position_} + frame_steps(model().rope, layout_) <= plan_.rope_positions;
  const Positions positions = fits ? s->positions() : Positions::kContiguous;
  if (frame)
    return frame_positions(model().rope, layout_, first_of_frame(model().rope, positions, s->behind(), frame_position_),
                           s->q_positions());
  const bool question = block_ == BlockKind::kQuestion;
  const int first =
      question ? first_of_text(positions, s->behind(), next_in_context(plan_, next_position_), window_.branch_tokens)
               : s->behind().position;
  text_positions(block_tokens_, first, s->q_positions());
}

void KvMemory::attend(int layer, const float* q, const float* k, const float* v, float* out,
                      std::optional<void*> stream, int tokens, std::span<void* const> producers) {
  const OneCaller::Turn turn(caller_);
  if (block_ == BlockKind::kNone)
    throw InvalidInput("KvMemory: attend() without a block; begin_frame() or begin_text() first.");
  const LayerArrays given{q, k, v, out};
  if (tokens != -1 && tokens != block_tokens_)
    refuse_block("attend() of " + std::to_string(tokens) + " tokens, the block was begun with " +
                 std::to_string(block_tokens_));
  if (layer != next_layer_)
    refuse_block("expected layer " + std::to_string(next_layer_) + ", got " + std::to_string(layer));
  std::string fault;
  bool beyond = false;
  try {
    on_device([&] {
      fault = staging_.fault_of(given, *backend_.device, block_tokens_, &beyond);
      if (!fault.empty()) return;
      for (void* const producer : producers) backend_.device->follow(producer);
      attend_layer(given, stream);
    });
  } catch (...) {  // a policy written elsewhere may throw from select(): the block is refused whole
    try {
      backend_.ops->wait();  // earlier lanes of this layer must not write into arrays the caller is about to free
    } catch (const DeviceError& e) {
      if (failed_.empty()) failed_ = e.what();
    }
    forget_block();
    throw;
  }
  if (!fault.empty()) refuse_numbers("layer " + std::to_string(layer) + ", " + fault, beyond);
  store_.unpin_all();
  ++next_layer_;
}

void KvMemory::attend_layer(const LayerArrays& given, std::optional<void*> stream) {
  const auto d = static_cast<size_t>(model().head_dim);
  const auto each = static_cast<size_t>(plan_.layer_lanes);
  const size_t q_lane = static_cast<size_t>(model().q_heads) * d / each;
  const size_t kv_lane = static_cast<size_t>(model().kv_heads) * d / each;
  const LayerArrays at = staging_.enter(given, backend_, next_layer_, block_tokens_, stream);
  for (size_t i = 0; i < each; ++i)
    attend_lane(next_layer_ * plan_.layer_lanes + static_cast<int>(i), at.q + i * q_lane, at.k + i * kv_lane,
                at.v + i * kv_lane, at.out + i * q_lane);
  staging_.leave(given, backend_, block_tokens_, stream);
  if (store_.tiers().spill() != nullptr) backend_.ops->wait();  // read copies may be replaced from here on
}

void KvMemory::attend_lane(int lane, const float* q, const float* k, const float* v, float* out) {
  const Since since{asking_ ? since_ms_ : Clock::kNever, &store_.clock()};
  BlockSelection& s =
      selector_.ready(lane, {block_, block_tokens_, lead_, trail_, since, next_in_context(plan_, next_position_)}, q);
  block_positions(&s);
  const BlockSelection::Table& table = s.upload(*backend_.ops, block_tokens_);

  AttendArgs args;
  args.q = q;
  args.tokens = block_tokens_;
  args.q_heads = model().q_heads / plan_.layer_lanes;
  args.q_stride = static_cast<size_t>(model().q_heads) * static_cast<size_t>(model().head_dim);
  args.q_positions = table.q_positions;
  args.shape = plan_.store.page;
  args.rope = &parts_.rope;
  args.scale = model().scale;
  args.pages = table.pages;
  args.n_pages = s.entries();
  args.positions = table.positions;
  args.places = table.places;
  if (records_) {
    args.key_mean = records_->log().key_mean(lane);
  } else {
    args.mean_k = store_.index(lane).mean_k();
    args.mean_v = store_.index(lane).mean_v();
  }
  args.rows = table.rows;
  args.row_positions = table.row_positions;
  args.row_bias = table.row_bias;
  args.n_rows = s.summaries();
  args.block_k = k;
  args.block_v = v;
  args.kv_stride = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  args.out = out;
  args.lse = parts_.selecting.lse;
  const uint64_t attend_began = trace::begin();
  backend_.ops->attend(args);
  trace::end("attend", attend_began, lane);
  if (block_ != BlockKind::kPrefix && records_) {
    const auto reader = block_ == BlockKind::kQuestion ? Recall::Reader::kQuestion : Recall::Reader::kFrame;
    if (records_->recalls(reader, lane) && records_->recall(reader, lane, args, s, parts_.selecting, since))
      return attend_lane(lane, q, k, v, out);  // once more, over both
  }
  reads_now_ += s.attended() + s.summaries();
  if (block_ == BlockKind::kQuestion && passes_ == 0) collect_evidence(args, s, lane);
  if (block_ == BlockKind::kFrame && plan_.window.attention_received) collect_attention_received(args, s, lane);
  if (block_ == BlockKind::kFrame && records_) {
    const int seen = model().video_window > 0 ? std::min(window_.frames(), model().video_window - 1) : window_.frames();
    records_->listen(args, s, lane, window_, seen, parts_.selecting.page_mass);
  }
  block_ == BlockKind::kFrame ? stage_frame(lane, k, v) : stage_text(lane, k, v);
}

// k and v into the window. A block that is aborted leaves bytes there that nothing refers to.
void KvMemory::stage_frame(int lane, const float* k, const float* v) {
  const auto row = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  const int32_t time_low = Clock::low(frame_.time_ms);
  for (int i = 0; lane == 0 && i < block_tokens_; ++i) {
    const TokenPlace place = place_in_frame(model().rope, layout_, i);
    window_.meta(Strip::kFrame, i, window_.frames()) = {frame_position_ + place.step, time_low, place.h, place.w};
  }
  window_.write(*backend_.ops, Strip::kFrame, lane, 0, block_tokens_, k, v, row, window_.frames());
}

void KvMemory::stage_text(int lane, const float* k, const float* v) {
  const auto row = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  const bool prefix = block_ == BlockKind::kPrefix;
  const Strip strip = prefix ? Strip::kPrefix : Strip::kBranch;
  const int first = prefix ? window_.prefix_tokens : window_.branch_tokens;
  for (int i = 0; lane == 0 && i < block_tokens_; ++i)
    window_.meta(strip, first + i) = {prefix ? next_position_ + i : 0, kNoTime, kText, kText};
  window_.write(*backend_.ops, strip, lane, first, block_tokens_, k, v, row);
}

// What this frame's queries pay to the frames of the window and to the frame itself (MuKV, arXiv 2605.22269).
void KvMemory::collect_attention_received(const AttendArgs& args, const BlockSelection& s, int lane) {
  MassArgs mass;
  mass.attend = &args;
  mass.page_mass = parts_.selecting.page_mass;
  mass.row_mass = parts_.selecting.row_mass;
  mass.first_query = 0;
  mass.block_mass = window_.attention_received(lane, window_.frames());
  backend_.ops->attention_mass(mass);
  for (int e = 0; e < s.entries(); ++e) {
    const PageEntry& entry = s.entry(e);
    if (s.page(e) != kNone) continue;
    // Tokens of the window are known by their number, and never move while the frame is read.
    for (int f = 0; f < window_.frames(); ++f) {
      const int tokens = window_.frame(f).tokens;
      for (int i = 0; i < tokens;) {
        const Window::Piece piece = window_.piece(Strip::kFrame, lane, i, tokens, f);
        if (piece.page.data == entry.data && rows_of(piece.begin, piece.end) == entry.rows)
          for (int t = 0; t < piece.tokens(); ++t)
            window_.attention_now(lane, f)[i + t] += mass.page_mass[entry.first + t];
        i += piece.tokens();
      }
    }
  }
}

// Of the tokens of an entry's page: in a log they have no such records.
const TokenMeta* KvMemory::meta_of(const BlockSelection& s, int entry) const {
  return s.page(entry) == kNone ? window_.page_meta(s.entry(entry).data) : s.meta(entry);
}

void KvMemory::collect_evidence(const AttendArgs& args, const BlockSelection& s, int lane) {
  MassArgs mass;
  mass.attend = &args;
  mass.page_mass = parts_.selecting.page_mass;
  mass.row_mass = parts_.selecting.row_mass;
  backend_.ops->attention_mass(mass);
  const Clock& clock = store_.clock();
  for (int e = 0; e < s.entries(); ++e) {
    const PageEntry& entry = s.entry(e);
    const bool recorded = records_ && s.page(e) != kNone;
    for (uint16_t left = entry.rows; left != 0; left &= static_cast<uint16_t>(left - 1)) {
      const int i = std::countr_zero(left);
      const int64_t time = recorded ? records_->time(clock, lane, s.page(e), i) : clock.time(meta_of(s, e)[i]);
      if (time != Clock::kNever) evidence_.add(time, time, parts_.selecting.page_mass[entry.first + i - entry.begin()]);
    }
  }
  if (records_) return;
  const ClusterIndex& index = store_.index(lane);
  for (int i = 0; i < s.summaries(); ++i) {
    // Summaries are many, and most are hardly looked at: those would crowd out what was read.
    const Cluster& cluster = index[s.summary(i)];
    const float mass = parts_.selecting.row_mass[i];
    if (mass < 1e-3f * static_cast<float>(args.q_heads)) {
      evidence_.add_other(mass);
    } else {
      evidence_.add(cluster.first_time, cluster.last_time, mass);
    }
  }
}

}  // namespace mosaic
