// What attend finds without values: the log-sum-exp of any head, by the kernels of attend_exact.h.
#include "backend/cuda/attend_exact.h"

namespace mosaic::MOSAIC_SIMT {

void queue_lse(const simt::Queue& on, const AttendLanes& all, int lanes, const RopeTable& rope, int splits,
               const Parts& parts) {
  all.lane[0].shape.head_dim <= 128 ? queue_exact<128, false>(on, all, lanes, rope, splits, parts)
                                    : queue_exact<256, false>(on, all, lanes, rope, splits, parts);
}

}  // namespace mosaic::MOSAIC_SIMT
