// What Python holds of a store. A view that a policy was given knows when its memory is gone.
#pragma once

#include "core/error.h"
#include "store/cluster_store.h"

namespace mosaic::bindings {

struct StoreView {
  const ClusterStore* held = nullptr;
  bool lent = false;  // to a policy: it does not keep the memory alive, so arrays of it are copies

  const ClusterStore& store() const {
    if (held == nullptr) throw InvalidInput("StoreView: the memory it looked into is gone.");
    return *held;
  }
};

}  // namespace mosaic::bindings
