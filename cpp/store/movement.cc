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
    if (codec(to) == codec(tier)) {
      ops_.copy(there.data, from.data, data_bytes(codec(to), shape_.page));
    } else {
      ops_.decode(codec(tier), shape_.page, from.data, 0, page.count, run_k_, run_v_, row());
      ops_.encode(codec(to), shape_.page, run_k_, run_v_, row(), page.count, there.data);
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

// The DRAM slot stays the page's current copy until the write is known to be good.
bool ClusterStore::spill(PageId id) {
  if (!can_spill()) return false;
  if (spilling_count_ == kMaxSpilling) poll_spills(true);
  if (spilling_count_ == kMaxSpilling) return false;
  Page& page = pages_[id];
  const SlotId slot = tiers_.acquire(tiers_.size() - 1);
  if (slot == kNone) {  // one is free, or can_spill() were false: it was refused
    spill_failed(Status::no_space);
    return false;
  }
  const int at = (spilling_first_ + spilling_count_) % kMaxSpilling;
  Spilling& last = spilling_[static_cast<size_t>(at)];
  last.page = id;
  last.slot = slot;
  page.spilling = 1;
  ++spilling_count_;
  const PageView view = tiers_.page(page.tier, page.slot);
  std::byte* whole = reinterpret_cast<std::byte*>(view.meta);
  if (!tiers_.is_whole(page.tier)) {
    whole = spill_staging_ + static_cast<size_t>(at) * tiers_.slot_bytes(tiers_.size() - 1);
    std::memcpy(whole, view.meta, kPageMetaBytes);
    ops_.copy(whole + kPageMetaBytes, view.data, data_bytes(codec(page.tier), shape_.page));
  }
  ops_.wait();  // the page may have been written a moment ago
  copies_->write(slot, whole, &last.written, page.lane);
  return true;
}

// A full disk, or one that fails time after time, is left alone for some frames, counted by poll_spills(). The first
// failure after a pause starts the next, longer one; failures of writes queued before a pause do not lengthen it.
void ClusterStore::spill_failed(Status status) {
  ++counters_.failed_spills;
  if (++failed_in_a_row_ < kSpillPatience && status != Status::no_space) return;
  failed_in_a_row_ = kSpillPatience;
  if (pause_left_ > 0) return;
  ++counters_.spill_pauses;
  pause_left_ = next_pause_;
  next_pause_ = std::min(2 * next_pause_, kLongestPause);
}

// The oldest write, waited for if need be. True if it went well, so that its DRAM slot is free.
bool ClusterStore::finish_spill() {
  Spilling& s = spilling_[static_cast<size_t>(spilling_first_)];
  Page& page = pages_[s.page];
  const bool ok = copies_->wait(s.written) == Status::ok;
  const int disk = tiers_.size() - 1;
  page.spilling = 0;
  if (ok) {
    tiers_.release(page.tier, page.slot);
    counter_of(page.tier) -= page.count;
    counter_of(disk) += page.count;
    page.tier = static_cast<int8_t>(disk);
    page.slot = s.slot;
    ++index(page.lane)[page.cluster].disk_pages;
    ++counters_.demoted_pages;
    failed_in_a_row_ = 0;
    next_pause_ = kFirstPause;
  } else {  // the page is still whole in DRAM
    tiers_.release(disk, s.slot);
    spill_failed(s.written.status());
  }
  s.page = kNone;
  spilling_first_ = (spilling_first_ + 1) % kMaxSpilling;
  --spilling_count_;
  if (spilling_old_ > 0) --spilling_old_;
  return ok;
}

// Which writes are taken in depends on the calls alone, never on how fast the disk was: two runs stay the same.
void ClusterStore::poll_spills(bool wait) {
  if (wait) {
    while (spilling_count_ > 0 && !finish_spill()) {
    }
    return;
  }
  if (pause_left_ > 0) {
    --pause_left_;
    ++counters_.paused_frames;
  }
  while (spilling_old_ > 0) finish_spill();
  spilling_old_ = spilling_count_;
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
    account_.summarised -= others;
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
  const SlotId slot = fetch_.victim();
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
  *codec = this->codec(page.tier);
  if (!tiers_.is_disk(page.tier)) return tiers_.page(page.tier, page.slot);
  if (page.staged == kNone && !request(id)) return {};
  const SlotId slot = page.staged;
  if (copies_->wait(fetch_[slot].copied) != Status::ok) {
    lose(id);
    return {};
  }
  fetch_.use(slot);
  return whole_page(fetch_.address(slot));
}

// What was in the page is gone: its tokens stay in the cluster's mean, if it has one.
void ClusterStore::lose(PageId id) {
  const Page page = pages_[id];
  unlink(page.lane, page.cluster, id);
  release_page(id);
  account_unpaged(page.lane, page.cluster, page.count);
  if (!index(page.lane).has_means()) index(page.lane).counts()[page.cluster] -= page.count;
  ++counters_.lost_pages;
}

void ClusterStore::drain() {
  if (!copies_) return;
  while (spilling_count_ > 0) finish_spill();
  copies_->drain();
}

}  // namespace mosaic
