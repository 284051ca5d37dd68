// Yielding and moving: pages go down the tier chain with their cluster, disk pages come back as read copies.
#include <algorithm>
#include <cstring>

#include "store/cluster_store.h"

namespace mosaic {

bool ClusterStore::demote(int lane, ClusterId c, int tier) {
  const int to = tiers_.colder(tier);
  if (to == kNone || tiers_.is_disk(tier)) return false;
  bool moved = false;
  for (PageId id = index(lane)[c].head; id != kNone; id = pages_[id].next) {
    Page& page = pages_[id];
    if (page.tier != tier || page.spilling != 0) continue;
    if (tiers_.is_disk(to)) {
      if (!spill(id)) break;
      moved = true;
      continue;
    }
    const SlotId slot = tiers_.acquire(to);
    if (slot == kNone) break;
    const PageView from = tiers_.page(tier, page.slot), there = tiers_.page(to, slot);
    std::memcpy(there.meta, from.meta, kPageMetaBytes);
    if (shape_.codec(to) == shape_.codec(tier)) {
      ops_.copy(there.data, from.data, data_bytes(shape_.codec(to), shape_.page));
    } else {
      GrowArgs grow;  // by no token
      grow.from_codec = shape_.codec(tier), grow.from = from.data, grow.held = page.count;
      grow.codec = shape_.codec(to), grow.to = there.data, grow.shape = shape_.page, grow.stride = row();
      grow.room_k = run_.k(0), grow.room_v = run_.v(0);
      ops_.grow_page(grow);
    }
    tiers_.release(tier, page.slot);
    counter_of(tier) -= page.count;
    counter_of(to) += page.count;
    page.tier = static_cast<int8_t>(to);
    page.slot = slot;
    ++counters_.demoted_pages;
    moved = true;
  }
  return moved;
}

bool ClusterStore::spill(PageId id) {
  if (!can_spill()) return false;
  if (spills_->is_full()) poll_spills(true);
  if (spills_->is_full()) return false;
  const SlotId slot = tiers_.acquire(tiers_.size() - 1);
  if (slot == kNone) {  // one is free, or can_spill() were false: it was refused
    spills_->failed(Status::no_space);
    return false;
  }
  pages_[id].spilling = 1;
  spills_->push(id, pages_[id], slot, *copies_);
  return true;
}

// The oldest write is taken in. True if it went well, so that its DRAM slot is free.
bool ClusterStore::finish_spill() {
  const SpillRing::Taken write = spills_->pop(*copies_);
  Page& page = pages_[write.page];
  const int disk = tiers_.size() - 1;
  page.spilling = 0;
  if (write.status != Status::ok) {  // the page is still whole in DRAM
    tiers_.release(disk, write.slot);
    spills_->failed(write.status);
    return false;
  }
  tiers_.release(page.tier, page.slot);
  counter_of(page.tier) -= page.count;
  counter_of(disk) += page.count;
  page.tier = static_cast<int8_t>(disk);
  page.slot = write.slot;
  ++index(page.lane)[page.cluster].disk_pages;
  ++counters_.demoted_pages;
  spills_->succeeded();
  return true;
}

void ClusterStore::poll_spills(bool wait) {
  if (!spills_) return;
  if (wait) {
    while (spills_->size() > 0 && !finish_spill()) {
    }
    return;
  }
  const bool no_writes = spills_->pass_frame(), no_reads = reading_.pass_frame();
  if (no_writes || no_reads) ++counters_.paused_frames;
  while (spills_->has_marked()) finish_spill();
  spills_->mark();
}

void ClusterStore::collapse(int lane, ClusterId c) {
  Cluster& cluster = index(lane)[c];
  const int members = cluster.paged;
  release_pages(lane, c);
  if (members > 0) account_unpaged(lane, c, members);
  ++counters_.collapsed_clusters;
}

void ClusterStore::drop(int lane, ClusterId c) {
  ClusterIndex& index = this->index(lane);
  const int members = index[c].paged;
  const int others = index.count(c) - members;
  if (holds_token_in_mean(lane, c)) {
    --account_.exact;
  } else if (index.has_means()) {
    account_.collapsed -= others;
  }
  account_.dropped += index.has_means() ? members + others : members;
  release_pages(lane, c);
  index.close(c);
  ++counters_.dropped_clusters;
}

bool ClusterStore::request(PageId id) {
  Page& page = pages_[id];
  if (!tiers_.is_disk(page.tier)) return true;
  if (page.staged != kNone) {
    fetch_.touch(page.staged);  // asked for: not the next to go
    ++counters_.fetch_hits;
    return true;
  }
  const SlotId slot = reading_.rests() ? kNone : fetch_.victim();
  if (slot == kNone) return false;
  FetchCache::Entry& entry = fetch_[slot];
  if (!entry.copied.done()) copies_->wait(entry.copied);
  if (entry.page != kNone) pages_[entry.page].staged = kNone;
  entry.page = id;
  entry.pinned = false;
  fetch_.touch(slot);
  page.staged = slot;
  copies_->read(page.slot, fetch_.address(slot), &entry.copied, page.lane);
  ++counters_.fetched_pages;
  return true;
}

PageView ClusterStore::resident(PageId id, CodecId* codec) {
  Page& page = pages_[id];
  *codec = shape_.codec(page.tier);
  if (!tiers_.is_disk(page.tier)) return tiers_.page(page.tier, page.slot);
  if (page.staged == kNone && !request(id)) return {};
  const SlotId slot = page.staged;
  if (copies_->wait(fetch_[slot].copied) != Status::ok) {
    if (reading_.failed()) ++counters_.read_pauses;
    lose(id);
    return {};
  }
  reading_.went_well();
  fetch_.use(slot);
  return whole_page(fetch_.address(slot));
}

// What was in the page is gone: its tokens stay in the cluster's mean, if it has one.
void ClusterStore::lose(PageId id) {
  const Page page = pages_[id];
  pages_.unlink(&index(page.lane)[page.cluster], id);
  --index(page.lane)[page.cluster].disk_pages;
  release_page(id);
  account_unpaged(page.lane, page.cluster, page.count);
  if (!index(page.lane).has_means()) index(page.lane).counts()[page.cluster] -= page.count;
  ++counters_.lost_pages;
}

void ClusterStore::drain() {
  if (!copies_) return;
  while (spills_->size() > 0) finish_spill();
  copies_->drain();
}

}  // namespace mosaic
