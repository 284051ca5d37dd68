// PlainOps: every kernel as the obvious loop, one thread, no instruction-set tricks. It is the truth the vectorised
// kernels are compared with, and the one to read first: attend.cc, assign.cc, score.cc, signals.cc, top_k.cc, pages.cc.
#pragma once

#include "backend/ops.h"

namespace mosaic::cpu {

class PlainOps : public Ops {
 public:
  const char* name() const override { return "plain"; }
  size_t scratch_bytes(const Limits& limits) const override;
  void set_scratch(void* memory, const Limits& limits) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void check_numbers(const float* x, size_t n, NumberFaults* faults, float* cut) override;
  void attend(const AttendArgs& args) override;
  void attention_mass(const MassArgs& args) override;
  void likeness(const LikenessArgs& args) override;
  void add_recent_keys(const RecentKeysArgs& args) override;
  void temporal_redundancy(const RedundancyArgs& args) override;
  void row_norm(const NormArgs& args) override;
  void spectral_energy(const SpectralArgs& args) override;
  void assign(const AssignArgs& args) override;
  void update_centroids(const UpdateArgs& args) override;
  void score(const ScoreArgs& args) override;
  int top_k(const float* score, int n, int k, int32_t* index) override;
  void merge(const MergeArgs& args) override;
  void encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count, std::byte* data,
              const float* key_mean = nullptr) override;
  void encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* data,
                  const float* key_mean = nullptr) override;
  void encode_rows(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int items,
                   std::byte* const* pages, const int32_t* at, const float* key_mean = nullptr) override;
  void move_row(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to, int to_at) override;
  void decode(CodecId codec, PageShape shape, const std::byte* data, int begin, int end, float* k, float* v,
              size_t stride, const float* key_mean = nullptr) override;
  void gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v, size_t stride,
              const float* key_mean = nullptr) override;

 private:
  float* scratch_ = nullptr;  // [6 x row] vectors, then [rows] logits
};

// (cos(xk, ck) + w cos(xv, cv)) / (1 + w) with fp32 means; the cosine with a zero vector is 0.
float similarity(const float* xk, const float* xv, const float* ck, const float* cv, int dim, float value_weight);

// Element `shift` of the Dirichlet kernel: circular convolution with it leaves the frequencies |f| < n / 4 of n tokens.
float lower_frequencies(int shift, int n);

// Throws InvariantError: a call is larger than the Limits its scratch was planned for.
[[noreturn]] void beyond_limits(const char* op);

}  // namespace mosaic::cpu
