// attend by many query rows: the kernel of attend_tensor.h.
#include "backend/cuda/attend_tensor.h"

namespace mosaic::MOSAIC_SIMT {

void queue_prefill(const simt::Queue& on, const AttendArgs& a, const RopeTable& rope, int splits, const Parts& parts) {
  queue_tensor<8, 1, 0>(on, a, rope, splits, parts);
}

}  // namespace mosaic::MOSAIC_SIMT
