// What a part takes from a region, found out as a plan does: by building it on a counting one.
#pragma once

#include <utility>

#include "memory/region.h"

namespace mosaic::testing {

// take(region) builds the part, or binds it.
template <class Take>
size_t counted(const Take& take, bool has_private = false) {
  Region region = Region::counting(has_private);
  take(region);
  return region.used();
}

}  // namespace mosaic::testing
