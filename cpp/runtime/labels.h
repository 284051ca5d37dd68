// Labels: where the tokens of the batch in hand go, in one lane. The policy writes them, admission reads them one by one,
// and while it does clusters merge and go: Labels is told of all that yields, so that no label names a cluster that is
// gone. It also knows the clusters that this batch opened, which the policy could not know. Not thread-safe.
#pragma once

#include <algorithm>
#include <span>

#include "memory/region.h"
#include "policy/policy.h"

namespace mosaic {

class Labels {
 public:
  Labels(Region& region, Size tokens)
      : placement_(region.take<Placement>("frame scratch", tokens)),
        opened_(region.take<ClusterId>("frame scratch", tokens)) {}

  // The n tokens of a lane, for the policy to write. kNone, 1: a frame as a whole.
  Placement* begin(int lane, int n) {
    lane_ = lane;
    n_ = n;
    opened_count_ = 0;
    return placement_;
  }
  // From here on nothing follows.
  void end() { begin(kNone, 0); }
  int size() const { return n_; }
  // As it is now: what yields may change it.
  Placement at(int i) const { return placement_[i]; }
  void set(int i, ClusterId cluster) { placement_[i].cluster = cluster; }

  // The clusters opened for this batch so far.
  std::span<const ClusterId> opened() const { return {opened_, static_cast<size_t>(opened_count_)}; }
  // Token i opened a cluster; those behind it that are to share one with it have it now.
  void opened_for(int i, ClusterId made) {
    note_opened(made);
    const int32_t together = placement_[i].together;
    for (int j = i; j < n_ && together != kNone; ++j)
      if (placement_[j].together == together && placement_[j].cluster == Placement::kOpen) set(j, made);
  }
  void note_opened(ClusterId made) {
    if (made != kNone && opened_count_ < n_) opened_[opened_count_++] = made;
  }

  void follow(const Eviction& eviction) {
    const bool merged = eviction.kind == Eviction::Kind::kMerge;
    if (eviction.lane != lane_ || (!merged && eviction.kind != Eviction::Kind::kDrop)) return;
    const ClusterId gone = merged ? eviction.other : eviction.cluster;
    for (int i = 0; i < n_; ++i)
      if (placement_[i].cluster == gone) placement_[i].cluster = merged ? eviction.cluster : Placement::kOpen;
    for (int i = 0; i < opened_count_;) {  // two of them may have merged into one: it stands here twice
      if (opened_[i] != gone) {
        ++i;
      } else if (merged) {
        opened_[i++] = eviction.cluster;
      } else {
        opened_[i] = opened_[--opened_count_];
      }
    }
  }

 private:
  Placement* placement_;  // [tokens]
  ClusterId* opened_;     // [tokens]
  int lane_ = kNone;
  int n_ = 0;
  int opened_count_ = 0;
};

}  // namespace mosaic
