#include "store/spill_ring.h"

#include <algorithm>
#include <cstring>

namespace mosaic {

SpillRing::SpillRing(Region& region, PageShape shape, TierChain& tiers, Ops& ops, StoreCounters& counters)
    : shape_(shape), tiers_(tiers), ops_(ops), counters_(counters) {
  if (region.has_private())
    staging_ = region.take<std::byte>("spill staging", Size(kCapacity) * tiers.slot_bytes(tiers.size() - 1));
}

void SpillRing::push(PageId id, const Page& page, SlotId slot, CopyEngine& copies) {
  const int at = (first_ + size_++) % kCapacity;
  Write& write = writes_[static_cast<size_t>(at)];
  write.page = id;
  write.slot = slot;
  const PageView view = tiers_.page(page.tier, page.slot);
  std::byte* whole = reinterpret_cast<std::byte*>(view.meta);
  if (!tiers_.is_whole(page.tier)) {
    whole = staging_ + static_cast<size_t>(at) * tiers_.slot_bytes(tiers_.size() - 1);
    std::memcpy(whole, view.meta, kPageMetaBytes);
    ops_.copy(whole + kPageMetaBytes, view.data, data_bytes(tiers_.spec(page.tier).codec, shape_));
  }
  ops_.wait();  // the page may have been written just now
  copies.write(slot, whole, &write.written, page.lane);
}

SpillRing::Taken SpillRing::pop(CopyEngine& copies) {
  Write& write = writes_[static_cast<size_t>(first_)];
  const Taken taken{write.page, write.slot, copies.wait(write.written)};
  write.page = kNone;
  first_ = (first_ + 1) % kCapacity;
  --size_;
  if (marked_ > 0) --marked_;
  return taken;
}

void SpillRing::failed(Status status) {
  ++counters_.failed_spills;
  if (patience_.failed(status == Status::no_space)) ++counters_.spill_pauses;
}

void SpillRing::serialize(Snapshot& s) {
  s.in_range(size_, 0, kCapacity, "writes under way");
  s.in_range(marked_, 0, size_, "older writes under way");
  patience_.serialize(s);
}

int SpillRing::number_of(PageId page) const {
  for (int number = 0; number < size_; ++number)
    if (at(number).page == page) return number;
  return kNone;
}

void SpillRing::put_back(int number, PageId page, SlotId slot, Status status) {
  Write& write = writes_[static_cast<size_t>((first_ + number) % kCapacity)];
  write.page = page;
  write.slot = slot;
  write.written.set_finished(status);
}

}  // namespace mosaic
