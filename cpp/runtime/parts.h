// Parts: everything a session takes from its Region. Built on the session's region they are what it works with; built on a
// counting region they are the account of a plan, and good for nothing else.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "runtime/admission.h"
#include "runtime/block_selection.h"
#include "runtime/evidence.h"
#include "runtime/plan.h"
#include "runtime/records.h"
#include "runtime/staging.h"
#include "store/cluster_store.h"

namespace mosaic {

struct Parts {
  // The policy is bound last, the kernels are given their scratch. Throws what the parts throw: SpillError where no spill
  // file can be made, MemoryCapError where the region is smaller than was counted.
  Parts(Region& region, const Plan& plan, Policy& policy, Ops& ops, SpillIo* io = nullptr);

  Window window;
  ClusterStore store;
  std::optional<Records> records;  // of a policy by records; the store is empty then
  RopeTable rope;
  SelectionScratch selecting;  // what the selections of all lanes share while one is built
  std::vector<BlockSelection>
      selections;  // [lanes], then as many for frames that read what is kept; where kernels read the tables themselves, one
                   // for all lanes is enough of those that are made anew for every lane
  Admission::Scratch admitting;
  Staging staging;
  Evidence evidence;
  size_t core_rows = 0;  // of the region's account; what follows is the policy's
};

}  // namespace mosaic
