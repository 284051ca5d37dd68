// The signals of pots where their tokens stand, in pages: recent keys summed by place, redundancy and norms. A warp takes a
// place, or a token, whose row it decodes into registers. Sums go in a fixed order, that of the items.
#include <algorithm>

#include "backend/cuda/kernels.h"
#include "backend/cuda/record_row.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / simt::kWarp;

struct Pots {
  PotArgs lane[kMostPots];
};
static_assert(sizeof(Pots) <= 4096);

// The keys, or values, of a head of token `at`.
template <bool kKeys>
MOSAIC_DEVICE void read_row(const PageEntry& page, int d, int head, int at, WarpRow* row) {
  const std::byte* const kb = page.data + head_offset(page.codec, d, head);
  with_codec(page.codec, [&](auto codec) { read_row<decltype(codec), kKeys>(kb, d, at, row); });
}

MOSAIC_DEVICE float square_of(const WarpRow& row, int d) {
  float square = 0;
#pragma unroll
  for (int i = 0; i < kRowParts; ++i) {
    if (lane() + simt::kWarp * i < d) square += row.x[i] * row.x[i];
  }
  return square;
}

// The page that item `item` is in, or the last one before it.
MOSAIC_DEVICE int page_of(const PotArgs& a, int item) {
  int low = 0, high = a.n_pages - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (a.pages[middle].first <= item) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// A token's key, of unit length, into the sum of its place.
MOSAIC_DEVICE void add_key(const PotArgs& a, const PageEntry& page, int at, float* sum) {
  const int d = a.shape.head_dim;
  WarpRow row;
  float square = 0;
  for (int head = 0; head < a.shape.heads; ++head) {
    read_row<true>(page, d, head, at, &row);
    square += square_of(row, d);
  }
  const float length = sqrtf(simt::sum_lanes(square, simt::kWarp));
  if (!(length > 0)) return;
  for (int head = 0; head < a.shape.heads; ++head) {
    if (a.shape.heads > 1) read_row<true>(page, d, head, at, &row);
#pragma unroll
    for (int i = 0; i < kRowParts; ++i) {
      const int c = lane() + simt::kWarp * i;
      if (c < d) sum[head * d + c] += row.x[i] / length;
    }
  }
}

// Grid: x four places, y a lane. A warp goes through the recent pages, and adds what is of its place.
MOSAIC_KERNEL(kThreads, 1) recent_pages_kernel(MOSAIC_PARAMETER Pots all) {
  const PotArgs& a = all.lane[simt::block_y()];
  const int place = simt::block_x() * kWarps + simt::thread() / simt::kWarp;
  if (place >= a.places) return;
  float* const sum = a.sum + static_cast<size_t>(place) * a.shape.row();
  for (int c = lane(); a.fresh && c < a.shape.row(); c += simt::kWarp) sum[c] = 0;
  simt::meet_warp();
  int added = 0;
  for (int p = a.n_pages > 0 ? page_of(a, a.recent) : 0; p < a.n_pages; ++p) {
    const PageEntry page = a.pages[p];
    const int item = page.first + lane();
    const bool mine = lane() < page.span() && item >= a.recent && a.place[item] == place;
    for (unsigned left = simt::ballot(mine); left != 0; left &= left - 1, ++added)
      add_key(a, page, page.begin() + lowest_bit(left), sum);
  }
  if (lane() == 0) a.count[place] = (a.fresh ? 0 : a.count[place]) + added;
}

// Grid: x a page, y a lane. A warp a token.
MOSAIC_KERNEL(kThreads, 1) page_signals_kernel(MOSAIC_PARAMETER Pots all) {
  const PotArgs& a = all.lane[simt::block_y()];
  if (simt::block_x() >= a.n_pages) return;
  const PageEntry page = a.pages[simt::block_x()];
  const int d = a.shape.head_dim;
  for (int i = simt::thread() / simt::kWarp; i < page.span(); i += kWarps) {
    const int item = page.first + i, place = a.score != nullptr ? a.place[item] : kNone;
    float dot = 0, keys = 0, values = 0;
    for (int head = 0; head < a.shape.heads; ++head) {
      WarpRow row;
      read_row<false>(page, d, head, page.begin() + i, &row);
      values += square_of(row, d);
      if (place == kNone) continue;
      read_row<true>(page, d, head, page.begin() + i, &row);
      keys += square_of(row, d);
      const float* const sum = a.sum + static_cast<size_t>(place) * a.shape.row() + head * d;
#pragma unroll
      for (int j = 0; j < kRowParts; ++j) {
        const int c = lane() + simt::kWarp * j;
        if (c < d) dot += row.x[j] * sum[c];
      }
    }
    dot = simt::sum_lanes(dot, simt::kWarp);
    keys = simt::sum_lanes(keys, simt::kWarp);
    values = simt::sum_lanes(values, simt::kWarp);
    if (lane() != 0) continue;
    a.norm[item] = sqrtf(values);
    if (a.score == nullptr) continue;
    const float length = place != kNone ? sqrtf(keys) * static_cast<float>(a.count[place]) : 0.0f;
    a.score[item] = length > 0 ? -dot / length : 0.0f;
  }
}

// Grid: x as many as the lane with the most has, y a lane.
template <class Count>
simt::Grid grid_of(std::span<const PotArgs> lanes, const Count& count) {
  int most = 0;
  for (const PotArgs& a : lanes) most = std::max(most, count(a));
  return {static_cast<unsigned>(most), static_cast<unsigned>(lanes.size())};
}

Pots pots_of(std::span<const PotArgs> lanes) {
  Pots all;
  std::copy(lanes.begin(), lanes.end(), all.lane);
  return all;
}

}  // namespace

void add_recent_pages(const simt::Queue& on, std::span<const PotArgs> lanes) {
  const simt::Grid grid = grid_of(lanes, [](const PotArgs& a) { return (a.places + kWarps - 1) / kWarps; });
  if (grid.x > 0) simt::launch(on, "add_recent_pages", recent_pages_kernel, grid, kThreads, 0, pots_of(lanes));
}

void page_signals(const simt::Queue& on, std::span<const PotArgs> lanes) {
  const simt::Grid grid = grid_of(lanes, [](const PotArgs& a) { return a.n_pages; });
  if (grid.x > 0) simt::launch(on, "page_signals", page_signals_kernel, grid, kThreads, 0, pots_of(lanes));
}

}  // namespace mosaic::MOSAIC_SIMT
