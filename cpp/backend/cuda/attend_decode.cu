// attend by 16 query rows at most, of any head: the kernel of attend_tensor.h.
#include "backend/cuda/attend_tensor.h"

namespace mosaic::MOSAIC_SIMT {

void queue_decode(const simt::Queue& on, const AttendLanes& all, int lanes, const RopeTable& rope, int splits,
                  const Parts& parts) {
  queue_tensor<1, 4, 0>(on, all, lanes, rope, splits, parts);
}

}  // namespace mosaic::MOSAIC_SIMT
