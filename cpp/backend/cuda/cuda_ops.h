// CudaOps: Ops as kernels queued on one stream. It checks a call against the limits and where its pointers lie, hands
// each kernel its scratch, and queues it, pages of a call each together (page_calls.h). Compiled for a GPU and, for tests,
// for the CPU (simt.h): `Target` is what differs.
#pragma once

#include <memory>

#include "backend/cuda/known_memory.h"
#include "backend/cuda/page_calls.h"
#include "backend/cuda/simt.h"
#include "backend/ops.h"

namespace mosaic::MOSAIC_SIMT {

struct Target {
  const char* name;
  simt::Queue queue;
  // Blocks until all that was queued has run; throws DeviceError if some of it failed.
  void (*finish)(const simt::Queue&);
  const cuda::KnownMemory* known;  // the device's
  // Whether kernels can read and write there, where that is not known.
  bool (*can_access)(const simt::Queue&, const void*);
  // Queues a copy; the host may be either side.
  void (*copy)(const simt::Queue&, void* to, const void* from, size_t bytes);
};

class CudaOps final : public Ops {
 public:
  // host: the CPU's kernels, for what the host holds.
  CudaOps(const Target& target, std::unique_ptr<Ops> host) : target_(target), host_(std::move(host)) {}
  const char* name() const override { return target_.name; }
  size_t scratch_bytes(const Limits& limits) const override;
  void set_scratch(void* memory, const Limits& limits) override;
  Ops& for_host() override { return *host_; }
  void wait() override { done(); }

  void copy(void* to, const void* from, size_t bytes) override;
  void check_numbers(const float* x, size_t n, NumberFaults* faults, float* cut) override;
  void stage(const StageArgs& args) override;
  void attend(const AttendArgs& args) override { attend_lanes({&args, 1}); }
  void attend_lanes(std::span<const AttendArgs> lanes) override;
  void attention_mass(const MassArgs& args) override;
  void mass_lanes(std::span<const MassArgs> lanes) override;
  void attend_and_measure(std::span<const AttendArgs> lanes, std::span<const MassArgs> mass) override;
  void likeness(const LikenessArgs& args) override;
  void likeness_lanes(std::span<const LikenessArgs> lanes) override;
  void add_recent_keys(const RecentKeysArgs& args) override;
  void temporal_redundancy(const RedundancyArgs& args) override;
  void row_norm(const NormArgs& args) override;
  void add_recent_pages(std::span<const PotArgs> lanes) override;
  void page_signals(std::span<const PotArgs> lanes) override;
  void spectral_energy(const SpectralArgs& args) override;
  void assign(const AssignArgs& args) override;
  void assign_lanes(std::span<const AssignArgs> lanes) override;
  void update_centroids(const UpdateArgs& args) override;
  void score(const ScoreArgs& args) override;
  int top_k(const float* score, int n, int k, int32_t* index) override;
  void merge(const MergeArgs& args) override;
  void encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count, std::byte* page,
              const float* key_mean) override;
  void grow_page(const GrowArgs& args) override;
  void encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* page,
                  const float* key_mean) override;
  void encode_rows(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int items,
                   std::byte* const* pages, const int32_t* at, const float* key_mean) override;
  void move_row(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to, int to_at) override;
  void decode(CodecId codec, PageShape shape, const std::byte* page, int begin, int end, float* k, float* v,
              size_t stride, const float* key_mean) override;
  void encode_run(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int first, int count,
                  std::byte* pages, size_t pitch, const float* key_mean) override;
  void encode_lane_rows(const LaneRowsArgs& args) override;
  void enter_lanes(const EnterArgs& args) override;
  void pack_pages(PageShape shape, std::span<const PackArgs> runs, float* room_k, float* room_v) override;
  void gather_lanes(const PageEntry* pages, const int32_t* at, const int32_t* lane, int items, PageShape shape,
                    float* k, float* v, size_t stride, const float* key_means) override;
  void gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v, size_t stride,
              const float* key_mean) override;

 private:
  void within(bool fits, const char* op) const;
  // Throws InvalidInput for memory that kernels cannot reach; null stands for what is not given.
  template <class... Pointer>
  void require_access(const char* op, const Pointer*... pointers) const;
  void check_attend(const char* op, const AttendArgs& a) const;
  void check_mass(const MassArgs& m) const;
  // Throws unless tokens of the codec can be written alone, and its rows fit a warp.
  void check_record(const char* op, CodecId codec) const;
  void check_head(const char* op, PageShape shape) const;
  // Where the next kernel goes, behind all that was asked for.
  const simt::Queue& queue() {
    pages_.launch(target_.queue);
    return target_.queue;
  }
  // For what the host reads next.
  void done() {
    pages_.launch(target_.queue);
    bool* const pending = target_.queue.pending;
    if (pending != nullptr && !*pending) return;
    target_.finish(target_.queue);
    if (pending != nullptr) *pending = false;
  }

  Target target_;
  std::unique_ptr<Ops> host_;
  PageCalls pages_;
  Limits limits_;
  float* scratch_ = nullptr;
};

}  // namespace mosaic::MOSAIC_SIMT
