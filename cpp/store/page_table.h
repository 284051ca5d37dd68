// PageTable: the record of every page of the store - whose it is, where its one current copy lies, how full it is - and
// the chain of pages of each cluster. Fixed capacity, planned with the tiers: a page of any tier, disk too, costs one
// record of DRAM. Not thread-safe: KvMemory's caller holds the lock.
#pragma once

#include "core/clock.h"
#include "memory/region.h"
#include "store/cluster_index.h"

namespace mosaic {

struct Page {
  SlotId slot = kNone;  // slot of its tier
  int16_t lane = 0;
  int8_t tier = -1;   // row of the tier chain; -1: the record is free
  uint8_t count = 0;  // tokens, 1..kPageTokens
  ClusterId cluster = kNone;
  PageId next = kNone;    // next page of the cluster; or next free record
  SlotId staged = kNone;  // slot of the fetch cache that holds a read copy (disk pages only)
  uint8_t spilling = 0;   // a background write of it is under way: slot is still the DRAM one
  TimeMs first_time;      // of its earliest and latest token
  TimeMs last_time;
};

class PageTable {
 public:
  PageTable(Region& region, int capacity)
      : pages_(region.take<Page>("page table", capacity, Page{})), capacity_(capacity) {
    for (int i = 0; i + 1 < capacity && !region.is_counting(); ++i) pages_[i].next = i + 1;
    free_ = capacity > 0 ? 0 : kNone;
  }

  int capacity() const { return capacity_; }
  int live() const { return live_; }
  Page& operator[](PageId id) { return pages_[id]; }
  const Page& operator[](PageId id) const { return pages_[id]; }

  // A record for a page that lies in (tier, slot); kNone when the table is full.
  PageId add(int lane, ClusterId cluster, int tier, SlotId slot) {
    const PageId id = free_;
    if (id == kNone) return kNone;
    free_ = pages_[id].next;
    pages_[id] = Page{};
    pages_[id].lane = static_cast<int16_t>(lane);
    pages_[id].cluster = cluster;
    pages_[id].tier = static_cast<int8_t>(tier);
    pages_[id].slot = slot;
    ++live_;
    return id;
  }
  void remove(PageId id) {
    pages_[id] = Page{};
    pages_[id].next = free_;
    free_ = id;
    --live_;
  }
  // A page that lies in DRAM becomes the last of a cluster's chain.
  void link(Cluster* cluster, PageId id) {
    (cluster->tail == kNone ? cluster->head : pages_[cluster->tail].next) = id;
    pages_[id].next = kNone;
    cluster->tail = id;
    cluster->paged += pages_[id].count;
  }
  // A page leaves the chain; where it lies is left to say.
  void unlink(Cluster* cluster, PageId id) {
    PageId before = kNone;
    for (PageId p = cluster->head; p != id; p = pages_[p].next) before = p;
    (before == kNone ? cluster->head : pages_[before].next) = pages_[id].next;
    if (cluster->tail == id) cluster->tail = before;
    cluster->paged -= pages_[id].count;
  }

 private:
  Page* pages_;
  int capacity_;
  int live_ = 0;
  PageId free_ = kNone;
};

}  // namespace mosaic
