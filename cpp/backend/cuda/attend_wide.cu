// attend by heads of more than 128 channels: the kernels of attend_exact.h.
#include "backend/cuda/attend_exact.h"

namespace mosaic::MOSAIC_SIMT {

void queue_wide(const simt::Queue& on, const AttendLanes& all, int lanes, const RopeTable& rope, int splits,
                const Parts& parts) {
  queue_exact<256, true>(on, all, lanes, rope, splits, parts);
}

}  // namespace mosaic::MOSAIC_SIMT
