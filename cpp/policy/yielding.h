// What yields: the steps of the cap's ladder that policies share. Each fills out[capacity] and returns how many; 0: this
// step has nothing to give.
#pragma once

#include "policy/policy.h"

namespace mosaic {

// By frame: the clusters that were born first go to disk, one of each lane.
int spill_oldest(const ClusterStore& store, const Need& need, Eviction* out, int capacity);
// By frame: the oldest frame is dropped, from every lane at once, so that all layers remember the same.
int drop_oldest_frame(const ClusterStore& store, Eviction* out, int capacity);
// By token: the clusters that grew longest ago go one tier down where that has room, coldest tier first, those of the lane
// in need before others. kHotSlots: from any tier; kSlots: to the disk, and where all grew with this frame, those too.
int demote_coldest(const ClusterStore& store, const Need& need, Eviction* out, int capacity);
// By token: the members of the cluster whose mean stands for them with the least error per page that comes free.
int collapse_best(const ClusterStore& store, int lane, Eviction* out);

}  // namespace mosaic
