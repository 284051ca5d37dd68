// FetchCache: read copies of disk pages. The page itself stays on disk (reading costs no flash wear); the copy lives here
// until its slot is needed. Least recently used goes first; a pinned copy - part of what is being attended - never goes.
// Not thread-safe; the copies arrive on CopyEngine's thread and announce themselves through their Completion.
#pragma once

#include <memory>

#include "core/ids.h"
#include "memory/copy_engine.h"
#include "memory/region.h"

namespace mosaic {

class FetchCache {
 public:
  struct Entry {
    PageId page = kNone;
    uint32_t stamp = 0;  // of its last use
    bool pinned = false;
    Completion copied;
  };
  FetchCache(Region& region, int slots, size_t slot_bytes)
      : slab_(region.take<std::byte>("fetch cache", Size(slots) * slot_bytes)),
        entries_(region.take<Entry>("fetch cache", slots)),
        slots_(slots),
        slot_bytes_(slot_bytes) {
    if (!region.is_counting()) std::uninitialized_value_construct_n(entries_, slots);
  }
  int slots() const { return slots_; }
  std::byte* address(SlotId slot) const { return slab_ + static_cast<size_t>(slot) * slot_bytes_; }
  Entry& operator[](SlotId slot) { return entries_[slot]; }
  const Entry& operator[](SlotId slot) const { return entries_[slot]; }
  void touch(SlotId slot) { entries_[slot].stamp = ++clock_; }
  void use(SlotId slot) {
    touch(slot);
    entries_[slot].pinned = true;
  }
  // The slot to fill next: an empty one, or the least recently used that is not pinned. It may still be arriving: which
  // one goes must not depend on how fast the disk is.
  SlotId victim() const {
    SlotId best = kNone;
    for (SlotId s = 0; s < slots_; ++s) {
      const Entry& e = entries_[s];
      if (e.page == kNone) return s;
      if (e.pinned) continue;
      if (best == kNone || e.stamp < entries_[best].stamp) best = s;
    }
    return best;
  }
  // When it was last used; entries are written with their pages.
  void serialize(Snapshot& s) { s.item(clock_); }
  void unpin_all() {
    for (SlotId s = 0; s < slots_; ++s) entries_[s].pinned = false;
  }

 private:
  std::byte* slab_;
  Entry* entries_;
  int slots_;
  size_t slot_bytes_;
  uint32_t clock_ = 0;
};

}  // namespace mosaic
