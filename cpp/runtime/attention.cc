// The seam itself: where the tokens of a block stand, attention of every lane over what was selected for it, and the block's
// keys and values into their place in the window.
#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "core/trace.h"
#include "runtime/kv_memory.h"

namespace mosaic {

void KvMemory::block_positions(BlockSelection* s) {
  const RopeSpec& rope = model().rope;
  const bool original = original_positions();
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
int KvMemory::picture_steps() const {
  const int n = picture_tokens();
  return model().rope.grid_follows_time ? std::max((n - 1) / frame_.grid_w + 1, std::min(n, frame_.grid_w)) : 1;
}

KvMemory::Place KvMemory::place_in_frame(int i) const {
  const RopeSpec& rope = model().rope;
  const int n = picture_tokens(), at = i - frame_.lead;
  if (at < 0) return {i, kText, kText};
  if (at >= n) return {rope.is_multi() ? frame_.lead + picture_steps() + at - n : i, kText, kText};
  const int corner = rope.grid_follows_time ? 0 : window_.prefix_tokens;
  return {rope.is_multi() ? frame_.lead : i, static_cast<uint16_t>(corner + at / frame_.grid_w),
          static_cast<uint16_t>(corner + at % frame_.grid_w)};
}

int KvMemory::frame_steps() const {
  return model().rope.is_multi() ? frame_.lead + picture_steps() + frame_.trail : block_tokens_;
}

void KvMemory::attend(int layer, const float* q, const float* k, const float* v, float* out,
                      std::optional<void*> stream) {
  if (block_ == Block::kNone)
    throw InvalidInput("KvMemory: attend() without a block; begin_frame() or begin_text() first.");
  const LayerArrays given{q, k, v, out};
  if (layer != next_layer_)
    refuse_block("expected layer " + std::to_string(next_layer_) + ", got " + std::to_string(layer));
  bool finite = true;
  try {
    on_device([&] {
      finite = staging_.readable_is_finite(given, *backend_.device, block_tokens_);
      if (finite) attend_layer(given, stream);
    });
  } catch (...) {  // a policy written elsewhere may throw from select(): the block is refused whole
    try {
      backend_.ops->wait();  // earlier lanes of this layer must not write into arrays the caller is about to free
    } catch (const DeviceError& e) {
      if (failed_.empty()) failed_ = e.what();
    }
    abort();
    throw;
  }
  if (!finite) refuse_block("layer " + std::to_string(layer) + ": q, k or v holds NaN or infinity");
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

}  // namespace mosaic
