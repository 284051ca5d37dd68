// The parts that a plan shows: rows of a region's account put together, and the knob that makes each smaller.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "memory/region.h"
#include "runtime/plan.h"

namespace mosaic {

// Every part there is, in the order they are shown, with the bytes of `rows`. The first `of_core` rows are the core's; what
// follows is what a policy booked under names of its own. Throws InvariantError where a row of the core's belongs to no part.
std::vector<Plan::Part> parts_of(std::span<const Region::Row> rows, size_t of_core);

}  // namespace mosaic
