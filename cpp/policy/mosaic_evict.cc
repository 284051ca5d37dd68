// What mosaic gives up: denser codec, colder tier, members behind their mean, and two clusters for one.
#include <algorithm>

#include "policy/mosaic.h"
#include "policy/yielding.h"

namespace mosaic {

int Mosaic::evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) {
  if (need.kind == Need::Kind::kClusters) {
    if (!fills()) return clustering_.merge_closest(store, need.lane, out, capacity);
    // Where every scene is down to one unit, units of different scenes must merge: nothing is dropped.
    const int n = merge_in_order(store, need.lane, true, out, capacity);
    return n > 0 ? n : merge_in_order(store, need.lane, false, out, capacity);
  }
  // Denser codec, then colder tier: a page goes one tier down where that has room, coldest tier first.
  if (const int n = demote_coldest(store, need, out, capacity); n > 0 || need.kind == Need::Kind::kHotSlots) return n;
  return collapse_best(store, need.lane, out);
}

// Units that were filled in order: each with the one that came next (in its scene), disjoint, the smallest pairs first.
// About a tenth of the index, so that the search is paid rarely.
int Mosaic::merge_in_order(const ClusterStore& store, int lane, bool inside, Eviction* out, int capacity) {
  const ClusterIndex& index = store.index(lane);
  const int wanted = std::clamp(index.capacity() / 10, 1, std::min(capacity, 48));  // more would be felt in one frame
  int units = 0;
  for (const ClusterId c : index.live()) rows_[units++] = c;
  const auto earlier = [&](ClusterId a, ClusterId b) {
    if (inside && index[a].scene != index[b].scene) return index[a].scene < index[b].scene;
    return index[a].born != index[b].born ? index[a].born < index[b].born : a < b;
  };
  std::sort(rows_, rows_ + units, earlier);
  int n = 0;
  while (n < wanted) {
    int best = kNone, least = std::numeric_limits<int>::max();
    for (int i = 0; i + 1 < units; ++i) {
      const ClusterId a = rows_[i], b = rows_[i + 1];
      if (a == kNone || b == kNone || (inside && index[a].scene != index[b].scene)) continue;
      if (index.count(a) + index.count(b) >= least) continue;
      best = i;
      least = index.count(a) + index.count(b);
    }
    if (best == kNone) break;
    out[n++] = {Eviction::Kind::kMerge, lane, rows_[best], rows_[best + 1]};
    rows_[best] = rows_[best + 1] = kNone;  // taken
  }
  return n;
}

}  // namespace mosaic
