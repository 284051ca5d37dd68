// top_k in one block, without scratch: the k-th largest key by its bytes (four histograms of radix select), then every
// index that is above it, and of those that equal it the first, in order (a scan by votes), then a bitonic sort of the
// k found in shared memory. A k that does not fit there is taken in runs, each of what comes behind the last: five more
// reads of the scores a run, and nothing is sorted where it lies, which may be the host's memory. A key is the score's bits
// as an unsigned number of the same order; a number of key and index is never equal to another, so the sort needs no
// stability and the bytes are the same every time.
#include <bit>

#include "backend/cuda/kernels.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / simt::kWarp;
constexpr int kBins = 256;
constexpr int kInShared = kWarps * kBins / 2;  // items that are sorted where the histograms were

struct Shared {
  int count[kWarps]
           [kBins];  // a histogram a warp, so that only lanes of one warp wait for each other; at last the items
  int bin[kBins];
  int digit, left;
  int above[kWarps], equal[kWarps];
};

MOSAIC_DEVICE uint32_t ordered(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f + 0.0f);  // -0 equals +0
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// Larger comes first: the score, then the lower index.
MOSAIC_DEVICE uint64_t rank_of(const float* score, int32_t i) {
  return static_cast<uint64_t>(ordered(score[i])) << 32 | (0xffffffffu - static_cast<uint32_t>(i));
}

// Sorts n items into falling order: comparators all point one way, so those that reach beyond n are left out.
MOSAIC_DEVICE void sort_falling(int n, uint64_t* item) {
  const auto end = static_cast<unsigned>(n);
  for (unsigned width = 2; width / 2 < end; width *= 2) {
    for (unsigned step = width / 2; step > 0; step /= 2) {
      simt::barrier();
      for (auto i = static_cast<unsigned>(simt::thread());; i += kThreads) {
        const unsigned within = i & (step - 1), base = (i - within) * 2, low = base + within;
        if (base >= end) break;
        const unsigned high = 2 * step == width ? base + width - 1 - within : low + step;  // the first step mirrors
        if (high < end && item[low] < item[high]) {
          const uint64_t x = item[low];
          item[low] = item[high], item[high] = x;
        }
      }
    }
  }
  simt::barrier();
}

// The k largest of those not above `bound` -> index, in falling order. Returns the next bound.
MOSAIC_DEVICE uint64_t take_run(const float* score, int n, int k, uint64_t bound, int32_t* index) {
  Shared& at = *simt::shared<Shared>();
  const int thread = simt::thread(), warp = thread / simt::kWarp, lane = thread % simt::kWarp;
  // `prefix`: the leading bytes of the k-th largest key; `left`: how many of those that have them are taken.
  uint32_t prefix = 0, mask = 0;
  int left = k;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = lane; i < kBins; i += simt::kWarp) at.count[warp][i] = 0;
    simt::barrier();
    for (int i = thread; i < n; i += kThreads) {
      const uint64_t rank = rank_of(score, i);
      const auto key = static_cast<uint32_t>(rank >> 32);
      if (rank <= bound && (key & mask) == prefix) simt::count_one(&at.count[warp][key >> shift & 255u]);
    }
    simt::barrier();
    if (thread < kBins) {
      int sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += at.count[w][thread];
      at.bin[thread] = sum;
    }
    simt::barrier();
    if (thread < kBins) {
      int above = 0;
      for (int i = thread + 1; i < kBins; ++i) above += at.bin[i];
      if (above < left && left <= above + at.bin[thread]) at.digit = thread, at.left = left - above;
    }
    simt::barrier();
    prefix |= static_cast<uint32_t>(at.digit) << shift;
    mask |= 255u << shift;
    left = at.left;
  }

  int above_before = 0, equal_before = 0;  // in the rounds so far
  for (int first = 0; first < n; first += kThreads) {
    const int i = first + thread;
    const uint64_t rank = i < n ? rank_of(score, i) : 0;
    const auto key = static_cast<uint32_t>(rank >> 32);
    const bool is_there = i < n && rank <= bound, is_above = is_there && key > prefix,
               is_equal = is_there && key == prefix;
    const unsigned above = simt::ballot(is_above), equal = simt::ballot(is_equal), lower = (1u << lane) - 1;
    simt::barrier();  // the last round's counts have been read
    if (lane == 0) at.above[warp] = simt::ones(above), at.equal[warp] = simt::ones(equal);
    simt::barrier();
    int my_above = above_before + simt::ones(above & lower), my_equal = equal_before + simt::ones(equal & lower);
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) my_above += at.above[w], my_equal += at.equal[w];
      above_before += at.above[w], equal_before += at.equal[w];
    }
    const int before = my_above + (my_equal < left ? my_equal : left);
    if (is_above || (is_equal && my_equal < left)) index[before] = i;
  }
  simt::barrier();

  uint64_t* const item = reinterpret_cast<uint64_t*>(at.count);
  for (int i = thread; i < k; i += kThreads) item[i] = rank_of(score, index[i]);
  sort_falling(k, item);
  for (int i = thread; i < k; i += kThreads)
    index[i] = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(item[i]));
  const uint64_t least = item[k - 1];
  simt::barrier();  // all have read it
  return least - 1;
}

MOSAIC_KERNEL(kThreads, 1) top_k_kernel(const float* score, int n, int k, int32_t* index) {
  uint64_t bound = ~uint64_t{0};
  for (int first = 0; first < k; first += kInShared)
    bound = take_run(score, n, k - first < kInShared ? k - first : kInShared, bound, index + first);
}

}  // namespace

void top_k(const simt::Queue& on, const float* score, int n, int k, int32_t* index) {
  if (n <= 0 || k <= 0) return;
  simt::launch(on, "top_k", top_k_kernel, {}, kThreads, sizeof(Shared), score, n, k, index);
}

}  // namespace mosaic::MOSAIC_SIMT
