#include "backend/cuda/cuda_ops.h"

#include <algorithm>

#include "backend/cuda/kernels.h"
#include "core/error.h"

namespace mosaic::MOSAIC_SIMT {

void CudaOps::within(bool fits, const char* op) const {
  if (!fits) throw InvariantError(std::string(op) + ": larger than the limits its scratch was planned for.");
}

template <class... Pointer>
void CudaOps::reach(const char* op, const Pointer*... pointers) const {
  for (const void* pointer : {static_cast<const void*>(pointers)...}) {
    if (pointer != nullptr && !target_.reaches(pointer))
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
  reach(op, a.q, a.q_positions, a.n_pages > 0 ? a.pages : nullptr, a.n_pages > 0 ? a.positions : nullptr,
        a.n_pages > 0 ? a.places : nullptr, a.n_rows > 0 ? a.mean_k : nullptr, a.n_rows > 0 ? a.mean_v : nullptr,
        a.n_rows > 0 ? a.rows : nullptr, a.n_rows > 0 ? a.row_positions : nullptr, a.n_rows > 0 ? a.row_bias : nullptr,
        a.block_k, a.block_v, rotates ? rope.fine(0) : nullptr, a.out, a.lse);
}

void CudaOps::copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) target_.copy(target_.queue, to, from, bytes);
}

void CudaOps::check_finite(const float* x, size_t n, int32_t* bad) {
  if (n == 0) return;
  reach("check_finite", x, bad);
  MOSAIC_SIMT::check_finite(target_.queue, x, n, bad);
}

void CudaOps::attend(const AttendArgs& a) {
  if (a.tokens == 0) return;
  check_attend("attend", a);
  MOSAIC_SIMT::attend(target_.queue, a, scratch_);
}

void CudaOps::attention_mass(const MassArgs& m) {
  if (m.attend->tokens == 0) return;
  check_attend("attention_mass", *m.attend);
  reach("attention_mass", m.attend->n_pages > 0 ? m.page_mass : nullptr, m.attend->n_rows > 0 ? m.row_mass : nullptr,
        m.block_mass);
  MOSAIC_SIMT::attention_mass(target_.queue, m);
  done();
}

void CudaOps::add_recent_keys(const RecentKeysArgs& a) {
  if (a.items == 0) return;
  reach("add_recent_keys", a.k, a.place, a.sum, a.count);
  MOSAIC_SIMT::add_recent_keys(target_.queue, a);
  done();
}

void CudaOps::temporal_redundancy(const RedundancyArgs& a) {
  if (a.items == 0) return;
  reach("temporal_redundancy", a.k, a.place, a.sum, a.count, a.score);
  MOSAIC_SIMT::temporal_redundancy(target_.queue, a);
  done();
}

void CudaOps::row_norm(const NormArgs& a) {
  if (a.items == 0) return;
  reach("row_norm", a.x, a.norm);
  MOSAIC_SIMT::row_norm(target_.queue, a);
  done();
}

void CudaOps::spectral_energy(const SpectralArgs& a) {
  if (a.items == 0) return;
  reach("spectral_energy", a.x, a.energy);
  MOSAIC_SIMT::spectral_energy(target_.queue, a);
  done();
}

void CudaOps::assign(const AssignArgs& a) {
  if (a.items == 0) return;
  within(a.items <= limits_.tokens, "assign");
  reach("assign", a.k, a.v, a.mean_k, a.mean_v, a.rows, a.best, a.similarity);
  MOSAIC_SIMT::assign(target_.queue, a, scratch_);
  done();
}

void CudaOps::update_centroids(const UpdateArgs& u) {
  if (u.items == 0) return;
  reach("update_centroids", u.k, u.v, u.labels, u.mean_k, u.mean_v, u.count, u.variance);
  MOSAIC_SIMT::update_centroids(target_.queue, u);
  done();
}

void CudaOps::score(const ScoreArgs& a) {
  if (a.n_rows == 0) return;
  within(a.tokens <= limits_.tokens && a.q_heads <= limits_.q_heads && a.shape.row() <= limits_.shape.row() &&
             a.shape.head_dim <= limits_.shape.head_dim,
         "score");
  reach("score", a.tokens > 0 ? a.q : nullptr, a.mean_k, a.rows, a.row_bias, a.score);
  MOSAIC_SIMT::score(target_.queue, a, scratch_);
  done();
}

int CudaOps::top_k(const float* score, int n, int k, int32_t* index) {
  const int kept = std::max(0, std::min(k, n));
  if (kept == 0) return 0;
  reach("top_k", score, index);
  MOSAIC_SIMT::top_k(target_.queue, score, n, kept, index);
  done();
  return kept;
}

void CudaOps::merge(float* out, float* lse, const float* other_out, const float* other_lse, int rows, int head_dim) {
  if (rows == 0) return;
  reach("merge", out, lse, other_out, other_lse);
  MOSAIC_SIMT::merge(target_.queue, out, lse, other_out, other_lse, rows, head_dim);
  done();
}

void CudaOps::encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count,
                     std::byte* page) {
  reach("encode", count > 0 ? k : nullptr, count > 0 ? v : nullptr, page);
  MOSAIC_SIMT::encode(target_.queue, codec, shape, k, v, stride, count, page, 0);
}

void CudaOps::encode_run(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count,
                         std::byte* pages, size_t pitch) {
  if (count <= 0) return;
  reach("encode_run", k, v, pages);
  MOSAIC_SIMT::encode(target_.queue, codec, shape, k, v, stride, count, pages, pitch);
}

void CudaOps::encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* page) {
  if (!codec_is_exact(codec))
    throw InvariantError("encode_row needs an exact codec, not " + std::string(codec_name(codec)) + ".");
  reach("encode_row", k, v, page);
  MOSAIC_SIMT::encode_row(target_.queue, codec, shape, k, v, at, page);
}

void CudaOps::decode(CodecId codec, PageShape shape, const std::byte* page, int begin, int end, float* k, float* v,
                     size_t stride) {
  if (end <= begin) return;
  reach("decode", page, k, v);
  MOSAIC_SIMT::decode(target_.queue, codec, shape, page, 0, begin, end, k, v, stride);
}

void CudaOps::decode_run(CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int count, float* k,
                         float* v, size_t stride) {
  if (count <= 0) return;
  reach("decode_run", pages, k, v);
  MOSAIC_SIMT::decode(target_.queue, codec, shape, pages, pitch, 0, count, k, v, stride);
}

void CudaOps::gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v,
                     size_t stride) {
  if (items == 0) return;
  reach("gather", pages, at, k, v);
  MOSAIC_SIMT::gather(target_.queue, pages, at, items, shape, k, v, stride);
}

}  // namespace mosaic::MOSAIC_SIMT
