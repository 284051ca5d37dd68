// Rotary positions. Keys are stored before rotation and rotated when they are attended, at the position they have among
// what is attended, so the table must give cos and sin of any position quickly from few bytes: position p is split into
// F*a + b and e^{i p f} = e^{i F a f} e^{i b f} is one complex product of two short tables. F is the power of two that makes
// both as short as they can be together: about twice the square root of the highest position.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/ids.h"

namespace mosaic {

enum class RopeLayout : uint8_t {
  kNone,         // no rotation
  kHalf,         // pairs (i, i + rotary_dim/2): Llama, Qwen, GPT-NeoX
  kInterleaved,  // pairs (2i, 2i + 1): GPT-J
};

struct RopeSpec {
  int head_dim = 0;
  int rotary_dim = 0;  // the first rotary_dim channels rotate, the rest pass (partial rotary)
  float theta = 10000.0f;
  // [frequencies()], on the host: what a scaled RoPE (linear, llama3, longrope, yarn) rotates by instead of theta's powers.
  // Borrowed; read when a table is built and at no other time.
  const double* scaled = nullptr;
  RopeLayout layout = RopeLayout::kHalf;
  // M-RoPE: frequencies taken by (t, h, w); all zero means 1-D. Sum = rotary_dim / 2.
  int sections[3] = {0, 0, 0};
  bool sections_interleaved = false;  // Qwen3: t,h,w take turns; Qwen2.5: three chunks
  // M-RoPE: rows and columns are counted from the picture's own t (Qwen3), not from where the video began (Qwen2.5).
  bool grid_follows_time = false;
  MOSAIC_HD bool is_multi() const { return sections[0] + sections[1] + sections[2] > 0; }
  MOSAIC_HD int frequencies() const { return layout == RopeLayout::kNone ? 0 : rotary_dim / 2; }
  // The position on the h or w axis of a token at t whose row or column is `place`.
  MOSAIC_HD int place_at(int t, uint16_t place) const {
    return place == kText ? t : grid_follows_time ? t + place : place;
  }
  // Which of (t, h, w) drives frequency i.
  MOSAIC_HD int axis_of(int i) const {
    if (!is_multi()) return 0;
    if (sections_interleaved) {  // t h w t h w ... while h and w have frequencies left, t takes the rest
      if (i % 3 == 1 && i < sections[1] * 3) return 1;
      if (i % 3 == 2 && i < sections[2] * 3) return 2;
      return 0;
    }
    return i < sections[0] ? 0 : i < sections[0] + sections[1] ? 1 : 2;
  }
};

// Borrowed tables in memory the caller planned. Build once; rows are then pure reads from any thread.
class RopeTable {
 public:
  // log2 of F.
  static int fine_bits_for(int max_position) {
    int bits = 6;
    while (rows_for(bits + 1, max_position) < rows_for(bits, max_position)) ++bits;
    return bits;
  }
  // max_position: the largest position (any axis) + 1 that will be asked for.
  static size_t bytes_for(const RopeSpec& spec, int max_position) {
    const auto rows = static_cast<size_t>(rows_for(fine_bits_for(max_position), max_position));
    return rows * static_cast<size_t>(spec.frequencies()) * 2 * sizeof(float);
  }
  RopeTable() = default;
  RopeTable(const RopeSpec& spec, int max_position, void* memory)
      : spec_(spec),
        fine_(static_cast<float*>(memory)),
        max_position_(max_position),
        fine_bits_(fine_bits_for(max_position)) {
    const int n = spec.frequencies(), fine = 1 << fine_bits_, rows = rows_for(fine_bits_, max_position);
    coarse_ = fine_ + static_cast<size_t>(fine) * 2 * n;
    for (int b = 0; b < fine; ++b) fill(fine_ + static_cast<size_t>(b) * 2 * n, b);
    for (int a = 0; a < rows - fine; ++a) fill(coarse_ + static_cast<size_t>(a) * 2 * n, int64_t{a} * fine);
  }
  // The same tables, of which `copy` is one.
  RopeTable at(void* copy) const {
    RopeTable there = *this;
    there.fine_ = static_cast<float*>(copy);
    there.coarse_ = there.fine_ + (coarse_ - fine_);
    return there;
  }
  MOSAIC_HD const RopeSpec& spec() const { return spec_; }
  int max_position() const { return max_position_; }
  MOSAIC_HD int fine_bits() const { return fine_bits_; }
  // One table row: [cos x frequencies][sin x frequencies]. For kernels that do the complex product themselves.
  MOSAIC_HD const float* fine(int position) const {
    return fine_ + static_cast<size_t>(position & ((1 << fine_bits_) - 1)) * 2 * spec_.frequencies();
  }
  MOSAIC_HD const float* coarse(int position) const {
    return coarse_ + static_cast<size_t>(position >> fine_bits_) * 2 * spec_.frequencies();
  }
  // cos, sin: [frequencies]. The plain loop; positions must lie in [0, max_position).
  void row(int t, int h, int w, float* cos, float* sin) const {
    const int n = spec_.frequencies();
    const int p[3] = {t, h, w};
    for (int i = 0; i < n; ++i) {
      const int at = p[spec_.axis_of(i)];
      const float* a = coarse(at);
      const float* b = fine(at);
      cos[i] = a[i] * b[i] - a[n + i] * b[n + i];
      sin[i] = a[i] * b[n + i] + a[n + i] * b[i];
    }
  }

 private:
  static int rows_for(int fine_bits, int max_position) {
    const int64_t fine = int64_t{1} << fine_bits;
    return static_cast<int>(fine + (max_position + fine - 1) / fine);
  }
  void fill(float* row, int64_t position) const {
    const int n = spec_.frequencies();
    for (int i = 0; i < n; ++i) {
      const double f = spec_.scaled != nullptr
                           ? spec_.scaled[i]
                           : std::pow(static_cast<double>(spec_.theta), -2.0 * i / spec_.rotary_dim);
      row[i] = static_cast<float>(std::cos(static_cast<double>(position) * f));
      row[n + i] = static_cast<float>(std::sin(static_cast<double>(position) * f));
    }
  }
  RopeSpec spec_;
  float* fine_ = nullptr;
  float* coarse_ = nullptr;
  int max_position_ = 0;
  int fine_bits_ = 0;
};

// Rotate one row of head_dim numbers in place by cos, sin as row() gives them.
inline void rotate(const RopeSpec& spec, const float* cos, const float* sin, float* x) {
  const int n = spec.frequencies();
  const bool half = spec.layout == RopeLayout::kHalf;
  for (int i = 0; i < n; ++i) {
    float* a = x + (half ? i : 2 * i);
    float* b = half ? a + n : a + 1;
    const float re = *a, im = *b;
    *a = re * cos[i] - im * sin[i];
    *b = im * cos[i] + re * sin[i];
  }
}

}  // namespace mosaic
