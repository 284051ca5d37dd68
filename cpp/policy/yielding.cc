#include "policy/yielding.h"

#include <algorithm>
#include <limits>

namespace mosaic {

int spill_oldest(const ClusterStore& store, const Need& need, Eviction* out, int capacity) {
  if (need.kind != Need::Kind::kSlots || !store.can_spill()) return 0;
  // Next to the disk nothing may be left where that tier is small: what is hotter follows then.
  for (int tier = store.tiers().size() - 2; tier >= 0; --tier) {
    const int to = store.tiers().colder(tier);
    if (!store.tiers().is_disk(to) && store.tiers().free_slots(to) == 0) continue;
    int n = 0;
    for (int lane = 0; lane < store.shape().lanes && n < capacity; ++lane) {
      const ClusterIndex& index = store.index(lane);
      ClusterId oldest = kNone;
      for (const ClusterId c : index.live())
        if (store.pages_in(lane, c, tier) > 0 && (oldest == kNone || index[c].born < index[oldest].born)) oldest = c;
      if (oldest != kNone) out[n++] = {Eviction::Kind::kDemote, lane, oldest, kNone, tier};
    }
    if (n > 0) return n;
  }
  return 0;
}

int drop_oldest_frame(const ClusterStore& store, Eviction* out, int capacity) {
  int32_t oldest = std::numeric_limits<int32_t>::max();
  for (int lane = 0; lane < store.shape().lanes; ++lane)
    for (const ClusterId c : store.index(lane).live()) oldest = std::min(oldest, store.index(lane)[c].born);
  int n = 0;
  for (int lane = 0; lane < store.shape().lanes; ++lane)
    for (const ClusterId c : store.index(lane).live())
      if (store.index(lane)[c].born == oldest && n < capacity) out[n++] = {Eviction::Kind::kDrop, lane, c};
  return n;
}

namespace {

// Clusters with pages in the tier, least recently grown first. One pass over a lane: what it gives is kept sorted.
int coldest(const ClusterStore& store, const Need& need, int tier, Eviction* out, int wanted) {
  int n = 0;
  for (int k = 0; k < store.shape().lanes && n < wanted; ++k) {
    const int lane = (need.lane + k) % store.shape().lanes;  // the lane in need first
    const ClusterIndex& index = store.index(lane);
    const int first = n;
    for (const ClusterId c : index.live()) {
      const int32_t touched = index[c].touched;
      if (index[c].paged == 0 || touched >= need.frame) continue;
      if (n == wanted && touched >= index[out[n - 1].cluster].touched) continue;
      if (store.pages_in(lane, c, tier) == 0) continue;
      int at = n < wanted ? n++ : n - 1;
      for (; at > first && index[out[at - 1].cluster].touched > touched; --at) out[at] = out[at - 1];
      out[at] = {Eviction::Kind::kDemote, lane, c, kNone, tier};
    }
  }
  return n;
}

}  // namespace

int demote_coldest(const ClusterStore& store, const Need& need, Eviction* out, int capacity) {
  const int last = store.tiers().size() - 1;
  for (int tier = need.kind == Need::Kind::kHotSlots ? 0 : last; tier >= 0; --tier) {
    const int to = store.tiers().colder(tier);
    if (to == kNone || store.tiers().free_slots(to) == 0) continue;
    if (need.kind == Need::Kind::kSlots && !(store.tiers().is_disk(to) && store.can_spill())) continue;
    // A search costs as the clusters do: where there are many, more go at a time.
    const int ahead = std::clamp(store.index(need.lane).capacity() / 256, 4, 32);
    const int wanted = std::min(capacity, std::max(need.amount, ahead));
    int n = coldest(store, need, tier, out, wanted);
    if (n == 0 && need.kind == Need::Kind::kSlots) {  // all grew with this frame: the disk still comes before summaries
      Need any = need;
      any.frame = std::numeric_limits<int32_t>::max();
      n = coldest(store, any, tier, out, wanted);
    }
    if (n > 0) return n;
  }
  return 0;
}

int collapse_best(const ClusterStore& store, int lane, Eviction* out) {
  for (int k = 0; k < store.shape().lanes; ++k) {
    const int at = (lane + k) % store.shape().lanes;
    const ClusterIndex& index = store.index(at);
    ClusterId best = kNone;
    float least = std::numeric_limits<float>::infinity();
    for (const ClusterId c : index.live()) {
      if (index[c].paged == 0) continue;
      const float loss = (index.variance(c) + 1e-6f) * static_cast<float>(index[c].paged) /
                         static_cast<float>(pages_for(index[c].paged));
      if (loss < least) {
        least = loss;
        best = c;
      }
    }
    if (best == kNone) continue;
    out[0] = {Eviction::Kind::kCollapse, at, best};
    return 1;
  }
  return 0;
}

}  // namespace mosaic
