#include "backend/cuda/cuda_ops.h"

#include <algorithm>

#include "backend/cuda/kernels.h"
#include "backend/cuda/record_row.h"
#include "core/error.h"

namespace mosaic::MOSAIC_SIMT {

void CudaOps::within(bool fits, const char* op) const {
  if (!fits) throw InvariantError(std::string(op) + ": larger than the limits its scratch was planned for.");
}

template <class... Pointer>
void CudaOps::require_access(const char* op, const Pointer*... pointers) const {
  for (const void* pointer : {static_cast<const void*>(pointers)...}) {
    if (pointer == nullptr) continue;
    const auto known = target_.known->find(pointer);
    if (known ? *known == Device::Access::kHost : !target_.can_access(target_.queue, pointer))
      throw InvalidInput(std::string(target_.name) + ": " + op + " was given memory the device cannot reach. " +
                         "Allocate it with the backend's device.");
  }
}

size_t CudaOps::scratch_bytes(const Limits& limits) const {
  Limits l = limits;
  l.tokens = std::max(l.tokens, 1);
  return sizeof(float) * std::max({attend_scratch(target_.queue, l), score_scratch(target_.queue, l),
                                   assign_scratch(target_.queue, l)});
}

void CudaOps::set_scratch(void* memory, const Limits& limits) {
  scratch_ = static_cast<float*>(memory);
  limits_ = limits;
}

// A lane may be some of the heads, but its groups are as large.
void CudaOps::check_attend(const char* op, const AttendArgs& a) const {
  within(a.q_heads <= limits_.q_heads && a.shape.head_dim <= limits_.shape.head_dim, op);
  const RopeTable rope = a.rope != nullptr ? *a.rope : RopeTable();
  const bool rotates = rope.spec().frequencies() > 0;
  require_access(op, a.q, a.q_positions, a.n_pages > 0 ? a.pages : nullptr, a.n_pages > 0 ? a.positions : nullptr,
                 a.n_pages > 0 ? a.places : nullptr, a.n_rows > 0 ? a.mean_k : nullptr,
                 a.n_rows > 0 ? a.mean_v : nullptr, a.n_rows > 0 ? a.rows : nullptr,
                 a.n_rows > 0 ? a.row_positions : nullptr, a.n_rows > 0 ? a.row_bias : nullptr, a.block_k, a.block_v,
                 a.key_mean, rotates ? rope.fine(0) : nullptr, a.out, a.lse);
}

void CudaOps::copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  const simt::Queue& on = queue();
  on.mark();
  target_.copy(on, to, from, bytes);
}

void CudaOps::check_numbers(const float* x, size_t n, NumberFaults* faults, float* cut) {
  if (n == 0) return;
  require_access("check_numbers", x, faults, cut);
  MOSAIC_SIMT::check_numbers(queue(), x, n, faults, cut);
}

void CudaOps::stage(const StageArgs& a) {
  for (const StageArgs::Numbers& numbers : a.numbers) require_access("stage", numbers.x, numbers.cut);
  require_access("stage", a.faults);
  if (a.count > 0) {
    check_record("stage", a.codec);
    check_head("stage", a.shape);
    require_access("stage", a.k, a.v, a.pages);
  }
  for (const StageArgs::Piece& piece : a.pieces) require_access("stage", piece.to, piece.from);
  MOSAIC_SIMT::stage(queue(), a);
}

void CudaOps::attend_lanes(std::span<const AttendArgs> lanes) {
  if (lanes.empty() || lanes[0].tokens == 0) return;
  for (const AttendArgs& a : lanes) check_attend("attend", a);
  for (; !lanes.empty(); lanes = lanes.subspan(std::min<size_t>(lanes.size(), kMostLanes)))
    MOSAIC_SIMT::attend(queue(), lanes.first(std::min<size_t>(lanes.size(), kMostLanes)), scratch_);
}

void CudaOps::check_mass(const MassArgs& m) const {
  require_access("attention_mass", m.first_page < m.end_page() ? m.page_mass : nullptr,
                 m.attend->n_rows > 0 ? m.row_mass : nullptr, m.block_mass);
}

void CudaOps::attention_mass(const MassArgs& m) {
  if (m.attend->tokens == 0) return;
  mass_lanes({&m, 1});
  done();
}

void CudaOps::mass_lanes(std::span<const MassArgs> lanes) {
  if (lanes.empty() || lanes[0].attend->tokens == 0) return;
  for (const MassArgs& m : lanes) {
    check_attend("attention_mass", *m.attend);
    check_mass(m);
  }
  for (; !lanes.empty(); lanes = lanes.subspan(std::min<size_t>(lanes.size(), kMostLanes)))
    MOSAIC_SIMT::attention_mass(queue(), lanes.first(std::min<size_t>(lanes.size(), kMostLanes)));
}

void CudaOps::attend_and_measure(std::span<const AttendArgs> lanes, std::span<const MassArgs> mass) {
  if (lanes.size() > kMostLanes) return Ops::attend_and_measure(lanes, mass);
  if (lanes.empty() || lanes[0].tokens == 0) return;
  for (size_t i = 0; i < lanes.size(); ++i) {
    check_attend("attend_and_measure", lanes[i]);
    check_mass(mass[i]);
  }
  MOSAIC_SIMT::attend_and_measure(queue(), lanes, mass, scratch_);
}

void CudaOps::likeness(const LikenessArgs& a) {
  likeness_lanes({&a, 1});
  done();
}

void CudaOps::likeness_lanes(std::span<const LikenessArgs> lanes) {
  for (const LikenessArgs& a : lanes) {
    check_head("likeness", a.shape);
    const bool pages = a.n_pages > 0;
    require_access("likeness", a.k, a.v, a.key_mean, a.value_mean, pages ? a.pages : nullptr, a.item_score,
                   pages ? a.token_score : nullptr, a.item_like, pages ? a.token_like : nullptr);
  }
  for (; !lanes.empty(); lanes = lanes.subspan(std::min<size_t>(lanes.size(), kMostLikeLanes)))
    MOSAIC_SIMT::likeness(queue(), lanes.first(std::min<size_t>(lanes.size(), kMostLikeLanes)));
}

void CudaOps::add_recent_keys(const RecentKeysArgs& a) {
  if (a.items == 0) return;
  require_access("add_recent_keys", a.k, a.place, a.sum, a.count);
  MOSAIC_SIMT::add_recent_keys(queue(), a);
}

void CudaOps::temporal_redundancy(const RedundancyArgs& a) {
  if (a.items == 0) return;
  require_access("temporal_redundancy", a.k, a.place, a.sum, a.count, a.score);
  MOSAIC_SIMT::temporal_redundancy(queue(), a);
}

void CudaOps::row_norm(const NormArgs& a) {
  if (a.items == 0) return;
  require_access("row_norm", a.x, a.norm);
  MOSAIC_SIMT::row_norm(queue(), a);
}

void CudaOps::add_recent_pages(std::span<const PotArgs> lanes) {
  for (const PotArgs& a : lanes) {
    check_head("add_recent_pages", a.shape);
    require_access("add_recent_pages", a.n_pages > 0 ? a.pages : nullptr, a.place, a.sum, a.count);
  }
  for (; !lanes.empty(); lanes = lanes.subspan(std::min<size_t>(lanes.size(), kMostPots)))
    MOSAIC_SIMT::add_recent_pages(queue(), lanes.first(std::min<size_t>(lanes.size(), kMostPots)));
}

void CudaOps::page_signals(std::span<const PotArgs> lanes) {
  for (const PotArgs& a : lanes) {
    check_head("page_signals", a.shape);
    require_access("page_signals", a.n_pages > 0 ? a.pages : nullptr, a.norm, a.score);
    if (a.score != nullptr) require_access("page_signals", a.place, a.sum, a.count);
  }
  for (; !lanes.empty(); lanes = lanes.subspan(std::min<size_t>(lanes.size(), kMostPots)))
    MOSAIC_SIMT::page_signals(queue(), lanes.first(std::min<size_t>(lanes.size(), kMostPots)));
}

void CudaOps::spectral_energy(const SpectralArgs& a) {
  if (a.items == 0) return;
  require_access("spectral_energy", a.x, a.energy);
  MOSAIC_SIMT::spectral_energy(queue(), a);
  done();
}

void CudaOps::assign(const AssignArgs& a) {
  assign_lanes({&a, 1});
  done();
}

void CudaOps::assign_lanes(std::span<const AssignArgs> lanes) {
  for (const AssignArgs& a : lanes) {
    within(a.items <= limits_.tokens, "assign");
    require_access("assign", a.k, a.v, a.mean_k, a.mean_v, a.rows, a.best, a.similarity);
  }
  for (; !lanes.empty(); lanes = lanes.subspan(std::min<size_t>(lanes.size(), kMostAssignLanes)))
    MOSAIC_SIMT::assign(queue(), lanes.first(std::min<size_t>(lanes.size(), kMostAssignLanes)), scratch_,
                        kMostAssignParts * static_cast<size_t>(limits_.tokens));
}

void CudaOps::update_centroids(const UpdateArgs& u) {
  if (u.items == 0) return;
  require_access("update_centroids", u.k, u.v, u.labels, u.mean_k, u.mean_v, u.count, u.variance);
  MOSAIC_SIMT::update_centroids(queue(), u);
  done();
}

void CudaOps::score(const ScoreArgs& a) {
  if (a.n_rows == 0) return;
  within(a.tokens <= limits_.tokens && a.q_heads <= limits_.q_heads && a.shape.row() <= limits_.shape.row() &&
             a.shape.head_dim <= limits_.shape.head_dim,
         "score");
  require_access("score", a.tokens > 0 ? a.q : nullptr, a.mean_k, a.rows, a.row_bias, a.score);
  MOSAIC_SIMT::score(queue(), a, scratch_);
}

int CudaOps::top_k(const float* score, int n, int k, int32_t* index) {
  const int kept = std::max(0, std::min(k, n));
  if (kept == 0) return 0;
  require_access("top_k", score, index);
  MOSAIC_SIMT::top_k(queue(), score, n, kept, index);
  done();
  return kept;
}

void CudaOps::merge(const MergeArgs& a) {
  if (a.tokens == 0) return;
  require_access("merge", a.out, a.lse, a.other_out, a.other_lse);
  MOSAIC_SIMT::merge(queue(), a);
}

void CudaOps::check_record(const char* op, CodecId codec) const {
  if (!codec_is_record(codec))
    throw InvariantError(std::string(op) + " needs a codec of records, not " + codec_name(codec) + ".");
}

void CudaOps::check_head(const char* op, PageShape shape) const {
  if (shape.head_dim > kMostHead)
    throw InvalidInput(std::string(op) + ": heads of " + std::to_string(shape.head_dim) + " channels; at most " +
                       std::to_string(kMostHead) + " on this device.");
}

void CudaOps::encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count,
                     std::byte* page, const float* key_mean) {
  check_head("encode", shape);
  require_access("encode", count > 0 ? k : nullptr, count > 0 ? v : nullptr, page, key_mean);
  PageWrite write{};
  write.codec = codec, write.whole = true, write.count = static_cast<uint8_t>(count);
  write.k = k, write.v = v, write.key_mean = key_mean, write.page = page;
  pages_.write(target_.queue, shape, stride, write);
}

void CudaOps::grow_page(const GrowArgs& a) {
  check_head("grow_page", a.shape);
  require_access("grow_page", a.from, a.to, a.k, a.v);
  PageWrite write{};
  write.codec = a.codec, write.whole = true, write.count = static_cast<uint8_t>(a.count);
  write.held = static_cast<uint8_t>(a.held), write.from_codec = a.from_codec, write.from = a.from;
  write.k = a.k, write.v = a.v, write.page = a.to;
  pages_.write(target_.queue, a.shape, a.stride, write);
}

void CudaOps::encode_run(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int first,
                         int count, std::byte* pages, size_t pitch, const float* key_mean) {
  if (count <= 0) return;
  check_record("encode_run", codec);
  check_head("encode_run", shape);
  require_access("encode_run", k, v, pages, key_mean);
  MOSAIC_SIMT::encode_run(queue(), codec, shape, k, v, stride, first, first + count, pages, pitch, key_mean);
}

void CudaOps::encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* page,
                         const float* key_mean) {
  check_record("encode_row", codec);
  check_head("encode_row", shape);
  require_access("encode_row", k, v, page, key_mean);
  PageWrite write{};
  write.codec = codec, write.first = static_cast<uint8_t>(at), write.count = 1;
  write.k = k, write.v = v, write.key_mean = key_mean, write.page = page;
  pages_.write(target_.queue, shape, static_cast<size_t>(shape.row()), write);
}

void CudaOps::encode_rows(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int items,
                          std::byte* const* pages, const int32_t* at, const float* key_mean) {
  if (items <= 0) return;
  check_record("encode_rows", codec);
  check_head("encode_rows", shape);
  require_access("encode_rows", k, v, pages, at, key_mean);
  MOSAIC_SIMT::encode_rows(queue(), codec, shape, k, v, stride, items, pages, at, key_mean);
}

void CudaOps::encode_lane_rows(const LaneRowsArgs& a) {
  if (a.items <= 0) return;
  check_record("encode_lane_rows", a.codec);
  check_head("encode_lane_rows", a.shape);
  require_access("encode_lane_rows", a.k, a.v, a.row, a.lane, a.pages, a.at, a.key_mean);
  MOSAIC_SIMT::encode_lane_rows(queue(), a);
}

void CudaOps::enter_lanes(const EnterArgs& a) {
  if (a.items <= 0 && a.n_moves <= 0) return;
  check_record("enter_lanes", a.codec);
  check_head("enter_lanes", a.shape);
  require_access("enter_lanes", a.from, a.row, a.lane, a.pages, a.at, a.key_mean, a.norm, a.moves, a.leaves,
                 a.followed);
  MOSAIC_SIMT::enter_lanes(queue(), a);
}

void CudaOps::pack_pages(PageShape shape, std::span<const PackArgs> runs, float*, float*) {
  check_head("pack_pages", shape);
  for (const PackArgs& run : runs) require_access("pack_pages", run.n_pages > 0 ? run.pages : nullptr);
  for (; !runs.empty(); runs = runs.subspan(std::min<size_t>(runs.size(), kMostPacked)))
    MOSAIC_SIMT::pack_pages(queue(), shape, runs.first(std::min<size_t>(runs.size(), kMostPacked)));
}

void CudaOps::gather_lanes(const PageEntry* pages, const int32_t* at, const int32_t* lane, int items, PageShape shape,
                           float* k, float* v, size_t stride, const float* key_means) {
  if (items == 0) return;
  check_head("gather_lanes", shape);
  require_access("gather_lanes", pages, at, lane, k, v, key_means);
  MOSAIC_SIMT::gather(queue(), pages, at, items, shape, k, v, stride, key_means, lane);
}

void CudaOps::move_row(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to, int to_at) {
  check_record("move_row", codec);
  require_access("move_row", from, to);
  MOSAIC_SIMT::move_row(queue(), codec, shape, from, from_at, to, to_at);
}

void CudaOps::decode(CodecId codec, PageShape shape, const std::byte* page, int begin, int end, float* k, float* v,
                     size_t stride, const float* key_mean) {
  if (end <= begin) return;
  check_head("decode", shape);
  require_access("decode", page, k, v, key_mean);
  pages_.read(target_.queue, shape, stride,
              {codec, static_cast<uint8_t>(begin), static_cast<uint8_t>(end - begin), k, v, key_mean, page});
}

void CudaOps::gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v,
                     size_t stride, const float* key_mean) {
  if (items == 0) return;
  check_head("gather", shape);
  require_access("gather", pages, at, k, v, key_mean);
  MOSAIC_SIMT::gather(queue(), pages, at, items, shape, k, v, stride, key_mean);
}

}  // namespace mosaic::MOSAIC_SIMT
