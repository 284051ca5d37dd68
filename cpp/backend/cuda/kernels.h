// The launchers of every op, one .cu file each: they queue kernels and return. Shapes and meanings are those of ops.h;
// every pointer is one the device can read. `scratch` is what the op's own *_scratch() asked for.
#pragma once

#include <span>

#include "backend/cuda/simt.h"
#include "backend/ops.h"

namespace mosaic::MOSAIC_SIMT {

// Tokens [begin, end) of a run of pages `pitch` bytes apart.
void encode_run(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
                int begin, int end, std::byte* pages, size_t pitch, const float* key_mean);
void encode_rows(const simt::Queue& on, CodecId codec, PageShape shape, const float* k, const float* v, size_t stride,
                 int items, std::byte* const* pages, const int32_t* at, const float* key_mean);
void move_row(const simt::Queue& on, CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to,
              int to_at);
void encode_lane_rows(const simt::Queue& on, const LaneRowsArgs& args);
void enter_lanes(const simt::Queue& on, const EnterArgs& args);
inline constexpr int kMostPacked = 128;
void pack_pages(const simt::Queue& on, PageShape shape, std::span<const PackArgs> runs);
// lane: of each item, which of key_mean's rows is its; null: the first.
void gather(const simt::Queue& on, const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k,
            float* v, size_t stride, const float* key_mean, const int32_t* lane = nullptr);

void stage(const simt::Queue& on, const StageArgs& args);

// Floats of scratch for the largest call within `limits`.
size_t attend_scratch(const simt::Queue& on, const Ops::Limits& limits);
// Lanes of one layer, at most kMostLanes, in one launch or two.
inline constexpr int kMostLanes = 8;  // what a launch's arguments hold
void attend(const simt::Queue& on, std::span<const AttendArgs> lanes, float* scratch);
// lse alone: `out` is not written, values are not read.
void attend_lse(const simt::Queue& on, const AttendArgs& args, float* scratch);
void merge(const simt::Queue& on, const MergeArgs& args);
void attention_mass(const simt::Queue& on, std::span<const MassArgs> lanes);
// Both of the same lanes, in two launches: parts are joined beside what is measured.
void attend_and_measure(const simt::Queue& on, std::span<const AttendArgs> lanes, std::span<const MassArgs> mass,
                        float* scratch);
inline constexpr int kMostLikeLanes = 16;
void likeness(const simt::Queue& on, std::span<const LikenessArgs> lanes);

size_t score_scratch(const simt::Queue& on, const Ops::Limits& limits);
void score(const simt::Queue& on, const ScoreArgs& args, float* scratch);
void top_k(const simt::Queue& on, const float* score, int n, int k, int32_t* index);

size_t assign_scratch(const simt::Queue& on, const Ops::Limits& limits);
inline constexpr int kMostAssignLanes = 32, kMostAssignParts = 64;  // parts: two for each run of candidates
// room: of a scratch of assign_scratch() floats, half.
void assign(const simt::Queue& on, std::span<const AssignArgs> lanes, float* scratch, size_t room);
void update_centroids(const simt::Queue& on, const UpdateArgs& args);

void add_recent_keys(const simt::Queue& on, const RecentKeysArgs& args);
void temporal_redundancy(const simt::Queue& on, const RedundancyArgs& args);
inline constexpr int kMostPots = 24;
void add_recent_pages(const simt::Queue& on, std::span<const PotArgs> lanes);
void page_signals(const simt::Queue& on, std::span<const PotArgs> lanes);
void check_numbers(const simt::Queue& on, const float* x, size_t n, NumberFaults* faults, float* cut);
void row_norm(const simt::Queue& on, const NormArgs& args);
void spectral_energy(const simt::Queue& on, const SpectralArgs& args);

}  // namespace mosaic::MOSAIC_SIMT
