// What Python holds of a store.
#pragma once

#include "store/cluster_store.h"

namespace mosaic::bindings {

struct StoreView {
  const ClusterStore* store = nullptr;
};

}  // namespace mosaic::bindings
