// What Python holds of a store. A view that a policy was given knows when its memory is gone.
#pragma once

#include <memory>

#include "core/error.h"
#include "core/one_caller.h"
#include "store/cluster_store.h"

namespace mosaic::bindings {

struct StoreView {
  const ClusterStore* held = nullptr;
  const OneCaller* caller = nullptr;
  std::shared_ptr<const void> memory;  // whose store it is, unless it is lent
  bool lent = false;                   // to a policy: it does not keep the memory alive, so arrays of it are copies

  // look(store), while nobody changes it: refused where another thread is in a call of the memory.
  template <class Look>
  auto read(const Look& look) const {
    if (held == nullptr) throw InvalidInput("StoreView: the memory it looked into is gone.");
    return caller->look([&] { return look(*held); });
  }
};

}  // namespace mosaic::bindings
