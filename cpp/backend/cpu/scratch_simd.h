// Scratch of the vectorised kernels. It comes out of the memory cap. Every call carves its op's pieces from the front of
// the same memory, so the largest op decides how much there must be.
#pragma once

#include "backend/cpu/attend_simd.h"
#include "backend/cpu/likeness_simd.h"
#include "backend/cpu/score_simd.h"

namespace mosaic::cpu {
namespace {

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

struct AttendScratch {
  AttendState* workers = nullptr;  // [threads]
  float* sum = nullptr;            // [tasks][rows of a task][v_stride] partial results of the ranges
  float* total = nullptr;          // [tasks][rows of a task]
  float* top = nullptr;            // [tasks][rows of a task]

  size_t carve(const Ops::Limits& l, int threads, std::byte* memory) {
    Carver carver(memory);
    const int d = l.shape.head_dim;
    const size_t rows = task_rows(l), partial = rows * 2 * static_cast<size_t>(threads);
    workers = carver.take<AttendState>(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      AttendState state;
      state.carve(carver, rows, rows / most(1, l.shape.heads), d);
      if (memory != nullptr) workers[i] = state;
    }
    if (threads == 1) return carver.used();
    sum = carver.take<float>(partial * round_up(d, kLanes));
    total = carver.take<float>(partial);
    top = carver.take<float>(partial);
    return carver.used();
  }
};

struct AssignScratch {
  AssignState* workers = nullptr;  // [threads]
  float* items = nullptr;          // [N][2 d] of unit length
  float* best = nullptr;           // [threads][N]
  int32_t* best_row = nullptr;     // [threads][N]
  float* means = nullptr;          // [threads][2 d] of update_centroids
  float* shift = nullptr;          // [threads][N] of the bfloat16 path
  float* pairs = nullptr;          // [N][2 d padded / 2] the items as bfloat16

  size_t carve(const Ops::Limits& l, int threads, std::byte* memory) {
    Carver carver(memory);
    const int depth = 2 * most(l.dim, l.shape.row());
    const size_t results = static_cast<size_t>(threads) * l.tokens;
    workers = carver.take<AssignState>(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      AssignState state;
      state.carve(carver, depth, kHasPairs);
      if (memory != nullptr) workers[i] = state;
    }
    items = carver.take<float>(static_cast<size_t>(l.tokens) * depth);
    best = carver.take<float>(results);
    best_row = carver.take<int32_t>(results);
    means = carver.take<float>(static_cast<size_t>(threads) * depth);
    if (!kHasPairs) return carver.used();
    shift = carver.take<float>(results);
    pairs = carver.take<float>(static_cast<size_t>(l.tokens) * round_up(depth, 32) / 2);
    return carver.used();
  }
};

struct LikenessScratch {
  LikenessState* workers = nullptr;  // [threads]
  float* items = nullptr;            // [N][2 row] of unit length

  size_t carve(const Ops::Limits& l, int threads, std::byte* memory) {
    Carver carver(memory);
    workers = carver.take<LikenessState>(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      LikenessState state;
      state.carve(carver, l.shape, l.tokens);
      if (memory != nullptr) workers[i] = state;
    }
    items = carver.take<float>(static_cast<size_t>(l.tokens) * 2 * l.shape.row());
    return carver.used();
  }
};

struct ScoreScratch {
  ScoreState* workers = nullptr;  // [threads]
  float* mean_q = nullptr;        // [Hkv * D]

  size_t carve(const Ops::Limits& l, int threads, std::byte* memory) {
    Carver carver(memory);
    workers = carver.take<ScoreState>(static_cast<size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      ScoreState state;
      state.carve(carver, l.shape.head_dim, l.rows);
      if (memory != nullptr) workers[i] = state;
    }
    mean_q = carver.take<float>(static_cast<size_t>(l.shape.row()));
    return carver.used();
  }
};

}  // namespace
}  // namespace mosaic::cpu
