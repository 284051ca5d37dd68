// The seam itself: where the tokens of a block stand, attention of every lane over what was selected for it, and the block's
// keys and values into the window.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
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

Recall::Reader recall_reader(BlockKind block) {
  return block == BlockKind::kQuestion ? Recall::Reader::kQuestion : Recall::Reader::kFrame;
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
                      std::optional<void*> stream, int tokens, std::span<void* const> producers, const ArraysLie& lie) {
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
      staging_.look(given, *backend_.device, block_tokens_, lie);
      fault = staging_.fault_of(given, block_tokens_, &beyond);
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

// Lanes of a layer side by side; at: the arrays of the first.
struct KvMemory::Lanes {
  int first;
  int n;
  LayerArrays at;
};

void KvMemory::attend_layer(const LayerArrays& given, std::optional<void*> stream) {
  const auto d = static_cast<size_t>(model().head_dim);
  const int each = plan_.layer_lanes, first = next_layer_ * each;
  const LayerArrays at = staging_.enter(given, backend_, next_layer_, block_tokens_, stream);
  StageArgs stage;
  staging_.ask_for_numbers(given, next_layer_, block_tokens_, &stage);
  for (int i = 0; i < each;) {
    const int lanes = selector_.stand_apart() ? std::min(each - i, plan_.together) : 1;
    const size_t q_before = static_cast<size_t>(i * (model().q_heads / each)) * d;
    const size_t kv_before = static_cast<size_t>(i * (model().kv_heads / each)) * d;
    const LayerArrays here{at.q + q_before, at.k + kv_before, at.v + kv_before, at.out + q_before};
    block_ == BlockKind::kFrame ? stage_frame(first + i, lanes, here, &stage)
                                : stage_text(first + i, lanes, here, &stage);
    attend_lanes({first + i, lanes, here}, &stage);
    stage = {};
    i += lanes;
  }
  staging_.leave(given, backend_, block_tokens_, stream);
  if (store_.tiers().spill() != nullptr) backend_.ops->wait();  // read copies may be replaced from here on
}

// at: those of the lane.
AttendArgs KvMemory::lane_args(int lane, const LayerArrays& at, const BlockSelection& s) const {
  const BlockSelection::Table& table = s.there();
  AttendArgs args;
  args.q = at.q;
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
  args.block_k = at.k;
  args.block_v = at.v;
  args.kv_stride = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  args.out = at.out;
  args.lse = parts_.selecting.lse +
             static_cast<size_t>(lane % plan_.layer_lanes) * static_cast<size_t>(plan_.max_block * args.q_heads);
  return args;
}

// Those lanes of them, over what was selected. stage: what is to be done besides, before they are attended. measured: the
// attention, too.
void KvMemory::attend_once(const Lanes& lanes, std::span<const int> which, StageArgs* stage, std::span<AttendArgs> args,
                           bool measured) {
  const Since since{asking_ ? since_ms_ : Clock::kNever, &store_.clock()};
  const size_t q_lane = static_cast<size_t>(model().q_heads / plan_.layer_lanes * model().head_dim);
  const size_t kv_lane = static_cast<size_t>(model().kv_heads / plan_.layer_lanes * model().head_dim);
  std::array<AttendArgs, kLanesTogether> asked;
  std::array<StageArgs::Piece, kLanesTogether * BlockSelection::kMostPieces> pieces;
  size_t n_pieces = 0, n = 0;
  selector_.fetch_recalled(lanes.first, lanes.n, block_);
  for (const int i : which) {
    const auto lane = static_cast<size_t>(i);
    const LayerArrays here{lanes.at.q + lane * q_lane, lanes.at.k + lane * kv_lane, lanes.at.v + lane * kv_lane,
                           lanes.at.out + lane * q_lane};
    BlockSelection& s = selector_.ready(
        lanes.first + i, {block_, block_tokens_, lead_, trail_, since, next_in_context(plan_, next_position_)}, here.q);
    block_positions(&s);
    n_pieces += static_cast<size_t>(s.changes(block_tokens_, pieces.data() + n_pieces));
    asked[n++] = args[lane] = lane_args(lanes.first + i, here, s);
  }
  stage->pieces = {pieces.data(), n_pieces};
  const uint64_t attend_began = trace::begin();
  backend_.ops->stage(*stage);
  if (measured) {
    std::array<MassArgs, kLanesTogether> mass;
    for (size_t i = 0; i < n; ++i) mass[i] = wanted_mass(asked[i], lanes.first + which[i]);
    backend_.ops->attend_and_measure(std::span(asked).first(n), std::span(mass).first(n));
  } else {
    backend_.ops->attend_lanes(std::span(asked).first(n));
  }
  trace::end("attend", attend_began, lanes.first);
}

// Those lanes that have something to read on disk once more, over both. args: of what they have attended to.
void KvMemory::attend_recalled(const Lanes& lanes, std::span<AttendArgs> args) {
  const Recall::Reader reader = recall_reader(block_);
  std::array<Recall::Asking, kLanesTogether> asking;
  std::array<int, kLanesTogether> which;
  size_t n = 0, reading = 0;
  for (int i = 0; i < lanes.n; ++i) {
    const int lane = lanes.first + i, next = lane + plan_.layer_lanes;
    const bool ahead = plan_.config.prefetch && next < plan_.window.lanes;
    if (records_->recalls(reader, lane))
      asking[n++] = {lane, &args[static_cast<size_t>(i)], &selector_.selection(lane, block_), ahead ? next : kNone};
  }
  if (n == 0) return;
  const Since since{asking_ ? since_ms_ : Clock::kNever, &store_.clock()};
  records_->recall(reader, std::span(asking).first(n), since);
  for (const Recall::Asking& one : std::span(asking).first(n)) {
    if (!one.reads) continue;
    selector_.selection(one.lane, block_).ready = false;
    which[reading++] = one.lane - lanes.first;
  }
  StageArgs nothing;
  if (reading > 0) attend_once(lanes, std::span(which).first(reading), &nothing, args, false);
}

void KvMemory::attend_lanes(const Lanes& lanes, StageArgs* stage) {
  std::array<AttendArgs, kLanesTogether> room;
  std::array<int, kLanesTogether> all;
  std::iota(all.begin(), all.end(), 0);
  const auto n = static_cast<size_t>(lanes.n);
  const std::span<AttendArgs> args = std::span(room).first(n);
  // What is read of a disk is attended besides, and counts too: then attention is measured at the end.
  const bool measures = measures_attention(), has_disk = records_ && records_->archive() != nullptr;
  attend_once(lanes, std::span(all).first(n), stage, args, measures && !has_disk);
  if (records_) attend_recalled(lanes, args);
  if (records_ && records_->counts_rest()) add_rest(lanes.first, args);
  for (int i = 0; i < lanes.n; ++i) {
    const BlockSelection& read = selector_.selection(lanes.first + i, block_);
    reads_now_ += read.attended() + read.summaries();
  }
  if (!measures) return;
  if (has_disk) {
    std::array<MassArgs, kLanesTogether> mass;
    for (size_t i = 0; i < n; ++i) mass[i] = wanted_mass(args[i], lanes.first + static_cast<int>(i));
    backend_.ops->mass_lanes(std::span(mass).first(n));
  }
  if (selector_.stand_apart()) return;  // is collected when the block is committed
  backend_.ops->wait();
  for (int i = 0; i < lanes.n; ++i) collect_attention(lanes.first + i);
}

// What is on disk and not read, into what the lanes attended to. Its mass is looked at now: the next layer's lse lies where
// this one's does.
void KvMemory::add_rest(int first, std::span<const AttendArgs> args) {
  for (size_t i = 0; i < args.size(); ++i) records_->add_rest(first + static_cast<int>(i), args[i]);
  if (block_ != BlockKind::kQuestion || !measures_attention()) return;
  backend_.ops->wait();
  for (size_t i = 0; i < args.size(); ++i) {
    const AttendArgs& a = args[i];
    evidence_.add_other(
        records_->rest_mass(first + static_cast<int>(i), a.lse + static_cast<size_t>((a.tokens - 1) * a.q_heads)));
  }
}

// k and v into the window. A block that is aborted leaves bytes there that nothing refers to.
void KvMemory::stage_frame(int lane, int lanes, const LayerArrays& at, StageArgs* stage) {
  const auto row = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  const int32_t time_low = Clock::low(frame_.time_ms);
  for (int i = 0; lane == 0 && i < block_tokens_; ++i) {
    const TokenPlace place = place_in_frame(model().rope, layout_, i);
    window_.meta(Strip::kFrame, i, window_.frames()) = {frame_position_ + place.step, time_low, place.h, place.w};
  }
  window_.write(stage, Strip::kFrame, lane, lanes, 0, block_tokens_, at.k, at.v, row, window_.frames());
}

void KvMemory::stage_text(int lane, int lanes, const LayerArrays& at, StageArgs* stage) {
  const auto row = static_cast<size_t>(model().kv_heads) * static_cast<size_t>(model().head_dim);
  const bool prefix = block_ == BlockKind::kPrefix;
  const Strip strip = prefix ? Strip::kPrefix : Strip::kBranch;
  const int first = prefix ? window_.prefix_tokens : window_.branch_tokens;
  for (int i = 0; lane == 0 && i < block_tokens_; ++i)
    window_.meta(strip, first + i) = {prefix ? next_position_ + i : 0, kNoTime, kText, kText};
  window_.write(stage, strip, lane, lanes, first, block_tokens_, at.k, at.v, row);
}

// Whether the attention that the block pays is measured: for evidence, by a policy that wants it, or to listen.
bool KvMemory::measures_attention() const {
  if (block_ == BlockKind::kQuestion) return passes_ == 0;
  return block_ == BlockKind::kFrame && (plan_.window.attention_received || (records_ && records_->listens()));
}

MassArgs KvMemory::wanted_mass(const AttendArgs& args, int lane) {
  MassArgs mass;
  if (block_ == BlockKind::kFrame && records_) {
    mass = records_->wanted(selector_.selection(lane, block_), parts_.selecting.page_mass_of(lane), block_tokens_,
                            layout_.trail);
  } else {
    mass.page_mass = parts_.selecting.page_mass_of(lane);
    mass.row_mass = parts_.selecting.row_mass_of(lane);
    if (block_ == BlockKind::kFrame) {
      mass.first_query = 0;
      mass.block_mass = window_.attention_received(lane, window_.frames());
    }
  }
  mass.attend = &args;
  return mass;
}

void KvMemory::collect_attention(int lane) {
  const BlockSelection& s = selector_.selection(lane, block_);
  if (block_ == BlockKind::kQuestion) return collect_evidence(s, lane);
  if (plan_.window.attention_received) collect_attention_received(s, lane);
  if (!records_) return;
  const int seen = model().video_window > 0 ? std::min(window_.frames(), model().video_window - 1) : window_.frames();
  records_->listen(s, lane, block_tokens_, window_, seen, parts_.selecting.page_mass_of(lane));
}

// What this frame's queries pay to the frames of the window and to the frame itself (MuKV, arXiv 2605.22269).
void KvMemory::collect_attention_received(const BlockSelection& s, int lane) {
  const float* const page_mass = parts_.selecting.page_mass_of(lane);
  for (int e = 0; e < s.entries(); ++e) {
    const PageEntry& entry = s.entry(e);
    if (s.page(e) != kNone) continue;
    // Tokens of the window are known by their number, and never move while the frame is read.
    for (int f = 0; f < window_.frames(); ++f) {
      const int tokens = window_.frame(f).tokens;
      for (int i = 0; i < tokens;) {
        const Window::Piece piece = window_.piece(Strip::kFrame, lane, i, tokens, f);
        if (piece.page.data == entry.data && rows_of(piece.begin, piece.end) == entry.rows)
          for (int t = 0; t < piece.tokens(); ++t) window_.attention_now(lane, f)[i + t] += page_mass[entry.first + t];
        i += piece.tokens();
      }
    }
  }
}

// Of the tokens of an entry's page: in a log they have no such records.
const TokenMeta* KvMemory::meta_of(const BlockSelection& s, int entry) const {
  return s.page(entry) == kNone ? window_.page_meta(s.entry(entry).data) : s.meta(entry);
}

void KvMemory::collect_evidence(const BlockSelection& s, int lane) {
  const float *const page_mass = parts_.selecting.page_mass_of(lane), *const row_mass =
                                                                          parts_.selecting.row_mass_of(lane);
  const int q_heads = model().q_heads / plan_.layer_lanes;
  const Clock& clock = store_.clock();
  for (int e = 0; e < s.entries(); ++e) {
    const PageEntry& entry = s.entry(e);
    const bool recorded = records_ && s.page(e) != kNone;
    for (uint16_t left = entry.rows; left != 0; left &= static_cast<uint16_t>(left - 1)) {
      const int i = std::countr_zero(left);
      const int64_t time = recorded ? records_->time(clock, lane, s.page(e), i) : clock.time(meta_of(s, e)[i]);
      if (time != Clock::kNever) evidence_.add(time, time, page_mass[entry.first + i - entry.begin()]);
    }
  }
  if (records_) return;
  const ClusterIndex& index = store_.index(lane);
  for (int i = 0; i < s.summaries(); ++i) {
    // Summaries are many, and most are hardly looked at: those would crowd out what was read.
    const Cluster& cluster = index[s.summary(i)];
    const float mass = row_mass[i];
    if (mass < 1e-3f * static_cast<float>(q_heads)) {
      evidence_.add_other(mass);
    } else {
      evidence_.add(cluster.first_time, cluster.last_time, mass);
    }
  }
}

}  // namespace mosaic
