// The signals: recent keys, temporal redundancy, row norm, spectral energy. Sums go in a fixed order: equal items have
// equal signals, wherever they stand.
#include <algorithm>

#include "backend/cuda/kernels.h"
#include "backend/cuda/number_check.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / simt::kWarp;

// A block an item; the first of a place adds all items of that place, in order.
MOSAIC_KERNEL(kThreads, 4) recent_kernel(const RecentKeysArgs a) {
  float* const space = simt::shared<float>();  // [warps]
  const int first = simt::block_x(), place = a.place[first];
  if (place == kNone) return;
  float seen = 0;
  for (int j = simt::thread(); j < first; j += kThreads) seen += a.place[j] == place ? 1.0f : 0.0f;
  if (simt::sum_block(seen, space) > 0) return;
  int added = 0;
  for (int item = first; item < a.items; ++item) {
    if (a.place[item] != place) continue;
    const float* const k = a.k + static_cast<size_t>(item) * a.stride;
    float square = 0;
    for (int c = simt::thread(); c < a.dim; c += kThreads) square += k[c] * k[c];
    simt::barrier();  // the sum's space is free
    const float length = sqrtf(simt::sum_block(square, space));
    for (int c = simt::thread(); c < a.dim && length > 0; c += kThreads) {
      a.sum[static_cast<size_t>(place) * a.dim + c] += k[c] / length;
    }
    ++added;
  }
  if (simt::thread() == 0) a.count[place] += added;
}

// A warp an item. Lanes beyond the last item read it again, so that all take part in the sums.
MOSAIC_KERNEL(kThreads, 4) redundancy_kernel(const RedundancyArgs a) {
  const int at = simt::block_x() * kWarps + simt::thread() / simt::kWarp, item = at < a.items ? at : a.items - 1;
  const float* const k = a.k + static_cast<size_t>(item) * a.stride;
  const int place = a.place[item];
  const float* const sum = place != kNone ? a.sum + static_cast<size_t>(place) * a.dim : k;
  float dot = 0, square = 0;
  for (int c = simt::thread() % simt::kWarp; c < a.dim; c += simt::kWarp) dot += k[c] * sum[c], square += k[c] * k[c];
  dot = simt::sum_lanes(dot, simt::kWarp);
  square = simt::sum_lanes(square, simt::kWarp);
  const float length = place != kNone ? sqrtf(square) * static_cast<float>(a.count[place]) : 0.0f;
  if (at < a.items && simt::thread() % simt::kWarp == 0) a.score[item] = length > 0 ? -dot / length : 0.0f;
}

MOSAIC_KERNEL(kThreads, 4) numbers_kernel(const float* x, size_t n, NumberFaults* faults, float* cut) {
  look_at_numbers(x, n, static_cast<size_t>(simt::block_x()) * kThreads + static_cast<size_t>(simt::thread()),
                  static_cast<size_t>(simt::blocks_x()) * kThreads, faults, cut);
}

MOSAIC_KERNEL(kThreads, 4) norm_kernel(const NormArgs a) {
  const int at = simt::block_x() * kWarps + simt::thread() / simt::kWarp, item = at < a.items ? at : a.items - 1;
  const float* const x = a.x + static_cast<size_t>(item) * a.stride;
  float square = 0;
  for (int c = simt::thread() % simt::kWarp; c < a.dim; c += simt::kWarp) square += x[c] * x[c];
  square = simt::sum_lanes(square, simt::kWarp);
  if (at < a.items && simt::thread() % simt::kWarp == 0) a.norm[item] = sqrtf(square);
}

constexpr int kTable = 8192;  // entries of the convolution kernel in shared memory; it is even, so half of it is enough
constexpr int kTokens = 4;    // of a block

// Element `shift` of the Dirichlet kernel: circular convolution with it leaves the frequencies |f| < n / 4 of n tokens.
MOSAIC_DEVICE float lower_frequencies(int shift, int n) {
  const int highest = (n + 3) / 4 - 1;
  if (shift == 0) return static_cast<float>((2.0 * highest + 1) / n);
  const auto turn =
      static_cast<double>((int64_t{2} * highest + 1) * shift % (int64_t{2} * n));  // in pi / n, whole turns off
  return static_cast<float>(simt::sin_pi(turn / n) / (simt::sin_pi(static_cast<double>(shift) / n) * n));
}

// A block four tokens, a thread a channel: what the convolution with the lower frequencies leaves of it.
MOSAIC_KERNEL(kThreads, 4) spectral_kernel(const SpectralArgs a) {
  float* const space = simt::shared<float>();  // [4][warps]
  float* const table = space + kTokens * kWarps;
  const int n = a.items, first = simt::block_x() * kTokens, entries = n / 2 + 1;
  for (int i = simt::thread(); i < entries && i < kTable; i += kThreads) table[i] = lower_frequencies(i, n);
  simt::barrier();
  float energy[kTokens] = {};
  for (int c = simt::thread(); c < a.dim; c += kThreads) {
    float high[kTokens];
    for (int t = 0; t < kTokens; ++t)
      high[t] = first + t < n ? a.x[static_cast<size_t>(first + t) * a.stride + c] : 0.0f;
    for (int j = 0; j < n; ++j) {
      const float x = a.x[static_cast<size_t>(j) * a.stride + c];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        int shift = j > first + t ? j - first - t : first + t - j;
        shift = shift < n - shift ? shift : n - shift;
        if (shift < 0) shift = 0;  // a token beyond the last: not used
        high[t] -= (shift < kTable ? table[shift] : lower_frequencies(shift, n)) * x;
      }
    }
    for (int t = 0; t < kTokens; ++t) energy[t] += fabsf(high[t]);
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float sum = simt::sum_block(energy[t], space + t * kWarps);
    if (simt::thread() == 0 && first + t < n) a.energy[first + t] = sum / static_cast<float>(a.dim);
  }
}

unsigned blocks_for(int n, int each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace

void add_recent_keys(const simt::Queue& on, const RecentKeysArgs& a) {
  if (a.items == 0) return;
  simt::launch(on, "add_recent_keys", recent_kernel, {static_cast<unsigned>(a.items)}, kThreads, kWarps * sizeof(float),
               a);
}

void temporal_redundancy(const simt::Queue& on, const RedundancyArgs& a) {
  if (a.items == 0) return;
  simt::launch(on, "temporal_redundancy", redundancy_kernel, {blocks_for(a.items, kWarps)}, kThreads, 0, a);
}

void check_numbers(const simt::Queue& on, const float* x, size_t n, NumberFaults* faults, float* cut) {
  const size_t blocks = std::min<size_t>((n + kThreads - 1) / kThreads, static_cast<size_t>(4 * on.processors));
  simt::launch(on, "check_numbers", numbers_kernel, {static_cast<unsigned>(blocks)}, kThreads, 0, x, n, faults, cut);
}

void row_norm(const simt::Queue& on, const NormArgs& a) {
  if (a.items == 0) return;
  simt::launch(on, "row_norm", norm_kernel, {blocks_for(a.items, kWarps)}, kThreads, 0, a);
}

void spectral_energy(const simt::Queue& on, const SpectralArgs& a) {
  if (a.items == 0) return;
  const int table = a.items / 2 + 1 < kTable ? a.items / 2 + 1 : kTable;
  simt::launch(on, "spectral_energy", spectral_kernel, {blocks_for(a.items, kTokens)}, kThreads,
               static_cast<size_t>(kTokens * kWarps + table) * sizeof(float), a);
}

}  // namespace mosaic::MOSAIC_SIMT
