// SpillRing: pages on their way to the disk, in the order their writes were queued, and when a disk that fails is left
// alone. The DRAM slot stays a page's current copy until its write is known to be good; what that means for the page and
// the account is the store's. Which writes are taken in depends on the calls alone, never on how fast the disk was, and a
// pause is counted in frames: two runs with one history stay the same. Not thread-safe; the writes run on CopyEngine's
// thread and announce themselves through their Completion, so the ring outlives the engine.
#pragma once

#include <array>

#include "backend/ops.h"
#include "memory/copy_engine.h"
#include "memory/region.h"
#include "memory/tier.h"
#include "store/account.h"
#include "store/page_table.h"
#include "store/patience.h"

namespace mosaic {

class SpillRing {
 public:
  struct Write {
    PageId page = kNone;
    SlotId slot = kNone;  // of the disk tier
    Completion written;
  };
  // The last tier of the chain is the disk.
  SpillRing(Region& region, PageShape shape, TierChain& tiers, Ops& ops, StoreCounters& counters);

  int size() const { return size_; }  // writes under way
  bool is_full() const { return size_ == kCapacity; }
  bool is_paused() const { return patience_.rests(); }
  // A frame passes: a pause comes nearer to its end. True if there was one.
  bool pass_frame() { return patience_.pass_frame(); }
  // Writes that were under way at the last mark() and are not taken yet.
  bool has_marked() const { return marked_ > 0; }
  void mark() { marked_ = size_; }

  // Queue the write of a page that lies in DRAM. Not full.
  void push(PageId id, const Page& page, SlotId slot, CopyEngine& copies);
  // The oldest write, waited for if need be; it leaves the ring. Not empty.
  struct Taken {
    PageId page;
    SlotId slot;
    Status status;
  };
  Taken pop(CopyEngine& copies);
  // What a write, or a slot that was asked for, came to.
  void succeeded() { patience_.went_well(); }
  void failed(Status status);

  // Writes are through but not taken in. The pages themselves are the store's to write: it asks for each page's number
  // among them, and puts it back there. Not to be used before it has.
  void serialize(Snapshot& s);
  int number_of(PageId page) const;
  Status status_at(int number) const { return at(number).written.status(); }
  SlotId slot_at(int number) const { return at(number).slot; }
  bool is_empty_at(int number) const { return at(number).page == kNone; }
  void put_back(int number, PageId page, SlotId slot, Status status);

 private:
  const Write& at(int number) const { return writes_[static_cast<size_t>((first_ + number) % kCapacity)]; }

  static constexpr int kCapacity = 64;

  PageShape shape_;
  TierChain& tiers_;
  Ops& ops_;
  StoreCounters& counters_;
  std::byte* staging_ = nullptr;  // a page for every write under way, where their data is out of the host's reach
  std::array<Write, kCapacity> writes_;
  int first_ = 0;
  int size_ = 0;
  int marked_ = 0;
  Patience patience_;
};

}  // namespace mosaic
