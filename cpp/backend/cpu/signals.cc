// The signals policies rank tokens by - temporal redundancy, row norm, high-frequency energy - as plain loops.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "backend/cpu/plain_ops.h"

namespace mosaic::cpu {
namespace {

float norm(const float* x, int dim) {
  float sum = 0;
  for (int i = 0; i < dim; ++i) sum += x[i] * x[i];
  return std::sqrt(sum);
}

}  // namespace

void PlainOps::add_recent_keys(const RecentKeysArgs& a) {
  for (int i = 0; i < a.items; ++i) {
    const float* const k = a.k + i * a.stride;
    if (a.place[i] == kNone) continue;
    const float length = norm(k, a.dim);
    float* const sum = a.sum + static_cast<size_t>(a.place[i]) * a.dim;
    if (length > 0)
      for (int c = 0; c < a.dim; ++c) sum[c] += k[c] / length;
    ++a.count[a.place[i]];
  }
}

void PlainOps::temporal_redundancy(const RedundancyArgs& a) {
  for (int i = 0; i < a.items; ++i) {
    const float* const k = a.k + i * a.stride;
    a.score[i] = 0;
    if (a.place[i] == kNone) continue;
    const float* const sum = a.sum + static_cast<size_t>(a.place[i]) * a.dim;
    const int count = a.count[a.place[i]];
    float dot = 0;
    for (int c = 0; c < a.dim; ++c) dot += k[c] * sum[c];
    const float length = norm(k, a.dim) * static_cast<float>(count);
    if (length > 0) a.score[i] = -dot / length;
  }
}

void PlainOps::row_norm(const NormArgs& a) {
  for (int i = 0; i < a.items; ++i) a.norm[i] = norm(a.x + i * a.stride, a.dim);
}

float lower_frequencies(int shift, int n) {
  const int highest = (n + 3) / 4 - 1;  // the highest frequency under n / 4
  if (shift == 0) return static_cast<float>((2.0 * highest + 1) / n);
  const double half = std::numbers::pi * shift / n;
  return static_cast<float>(std::sin((2.0 * highest + 1) * half) / (std::sin(half) * n));
}

// What is removed is a circular convolution with the kernel of the lower frequencies: N^2 d operations and no scratch.
// The kernel is the same from both ends; as much of it as there is room for is worked out once. Channels go in small
// groups that stay in registers.
void PlainOps::spectral_energy(const SpectralArgs& a) {
  const int n = a.items;
  if (n == 0) return;
  constexpr int kTable = 1024;
  float table[kTable];
  for (int shift = 0; shift < std::min(kTable, n / 2 + 1); ++shift) table[shift] = lower_frequencies(shift, n);
  const auto kernel = [&](int shift) {
    shift = std::min(shift, n - shift);
    return shift < kTable ? table[shift] : lower_frequencies(shift, n);
  };
  std::fill_n(a.energy, n, 0.0f);
  constexpr int kGroup = 32;
  for (int i = 0; i < n; ++i) {
    for (int begin = 0; begin < a.dim; begin += kGroup) {
      const int channels = std::min(kGroup, a.dim - begin);
      float high[kGroup];
      std::copy_n(a.x + i * a.stride + begin, channels, high);
      for (int j = 0; j < n; ++j) {
        const float weight = kernel(i > j ? i - j : j - i);
        const float* const x = a.x + j * a.stride + begin;
        for (int c = 0; c < channels; ++c) high[c] -= weight * x[c];
      }
      for (int c = 0; c < channels; ++c) a.energy[i] += std::fabs(high[c]);
    }
    a.energy[i] /= static_cast<float>(a.dim);
  }
}

}  // namespace mosaic::cpu
