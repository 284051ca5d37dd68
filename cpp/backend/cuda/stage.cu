// stage: all that a layer of a block needs before it is attended, in one launch. Its blocks of threads have one of three
// tasks: the rows of a head in one page of one lane, a share of the numbers that are looked at, a share of the bytes that are
// brought over. Compiled without fused multiply-add, as pages.cu is.
#include <algorithm>

#include "backend/cuda/kernels.h"
#include "backend/cuda/number_check.h"
#include "backend/cuda/page_rows.h"

namespace mosaic::MOSAIC_SIMT {
namespace {

constexpr int kThreads = kPageThreads;
constexpr int kMostPieces = 64;  // what a launch's arguments hold

struct Stage {
  CodecId codec;
  PageShape shape;
  const float *k, *v;
  size_t stride;
  int begin, end;  // of the run
  std::byte* pages;
  size_t pitch, lane_pitch;
  int run_pages;  // of a lane
  StageArgs::Numbers numbers[3];
  NumberFaults* faults;
  int page_blocks, number_blocks, copy_blocks;
  int n_pieces;
  StageArgs::Piece piece[kMostPieces];
};

// Words of 16 bytes where all of it lies so, else of 4.
MOSAIC_DEVICE void bring(const StageArgs::Piece& piece, size_t first, size_t step) {
  const auto at = reinterpret_cast<uintptr_t>(piece.to) | reinterpret_cast<uintptr_t>(piece.from) | piece.bytes;
  if (at % sizeof(simt::Bytes16) == 0) {
    for (size_t i = first; i < piece.bytes / sizeof(simt::Bytes16); i += step)
      static_cast<simt::Bytes16*>(piece.to)[i] = static_cast<const simt::Bytes16*>(piece.from)[i];
  } else {
    for (size_t i = first; i < piece.bytes / sizeof(uint32_t); i += step)
      static_cast<uint32_t*>(piece.to)[i] = static_cast<const uint32_t*>(piece.from)[i];
  }
}

MOSAIC_KERNEL(kThreads, 1) stage_kernel(MOSAIC_PARAMETER Stage s) {
  int block = simt::block_x();
  if (block < s.page_blocks) {
    const int head = block % s.shape.heads, page = block / s.shape.heads % s.run_pages;
    const int lane = block / (s.shape.heads * s.run_pages);
    const size_t from = static_cast<size_t>(lane) * s.shape.row();
    set_run(s.codec, s.shape, head, page, s.begin, s.end, s.k + from, s.v + from, s.stride,
            s.pages + lane * s.lane_pitch, s.pitch, nullptr);
    return;
  }
  block -= s.page_blocks;
  if (block < s.number_blocks) {
    const size_t first = static_cast<size_t>(block) * kThreads + static_cast<size_t>(simt::thread());
    for (int i = 0; i < 3; ++i)
      if (s.numbers[i].x != nullptr)
        look_at_numbers(s.numbers[i].x, s.numbers[i].n, first, static_cast<size_t>(s.number_blocks) * kThreads,
                        s.faults, s.numbers[i].cut);
    return;
  }
  block -= s.number_blocks;
  const size_t first = static_cast<size_t>(block) * kThreads + static_cast<size_t>(simt::thread());
  for (int i = 0; i < s.n_pieces; ++i) bring(s.piece[i], first, static_cast<size_t>(s.copy_blocks) * kThreads);
}

int blocks_for(size_t n, size_t each, int most) {
  return static_cast<int>(std::min<size_t>((n + each - 1) / each, static_cast<size_t>(most)));
}

}  // namespace

void stage(const simt::Queue& on, const StageArgs& a) {
  Stage s{};
  s.codec = a.codec, s.shape = a.shape, s.k = a.k, s.v = a.v, s.stride = a.stride;
  s.begin = a.first, s.end = a.first + a.count, s.pages = a.pages, s.pitch = a.pitch, s.lane_pitch = a.lane_pitch;
  s.run_pages = pages_for(s.end);
  s.page_blocks = a.count > 0 ? a.lanes * s.run_pages * a.shape.heads : 0;
  size_t numbers = 0;
  for (size_t i = 0; i < a.numbers.size(); ++i) s.numbers[i] = a.numbers[i], numbers += a.numbers[i].n;
  s.faults = a.faults;
  s.number_blocks = blocks_for(numbers, kThreads, 4 * on.processors);
  for (size_t done = 0; done == 0 || done < a.pieces.size();) {
    const auto pieces = a.pieces.subspan(done, std::min<size_t>(a.pieces.size() - done, kMostPieces));
    size_t bytes = 0;
    for (const StageArgs::Piece& piece : pieces) {
      bytes += piece.bytes;
      simt::carried(on, piece.to, piece.from, piece.bytes);
    }
    std::copy(pieces.begin(), pieces.end(), s.piece);
    s.n_pieces = static_cast<int>(pieces.size());
    s.copy_blocks = blocks_for(bytes, kThreads * sizeof(simt::Bytes16), 2 * on.processors);
    const int blocks = s.page_blocks + s.number_blocks + s.copy_blocks;
    if (blocks > 0) simt::launch(on, "stage", stage_kernel, {static_cast<unsigned>(blocks)}, kThreads, kPageCodes, s);
    s.page_blocks = s.number_blocks = 0;  // the rest are pieces
    done += std::max<size_t>(pieces.size(), 1);
  }
}

}  // namespace mosaic::MOSAIC_SIMT
