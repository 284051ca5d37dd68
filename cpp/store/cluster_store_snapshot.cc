// A store into a snapshot and back: the lanes' clusters, and behind them the pages of each, from wherever they lie. A page that
// is being written to the disk is a page of DRAM with a number among the writes; a read copy is its page's slot of the fetch
// cache, filled again from what the disk holds.
#include <cstring>

#include "core/error.h"
#include "memory/uncounted_moves.h"
#include "store/cluster_store.h"

namespace mosaic {

struct ClusterStore::PageState {
  int8_t tier = 0;
  uint8_t count = 0;
  TimeMs first_time, last_time;
  int32_t write = kNone;      // its number among the writes under way,
  uint8_t write_status = 0;   // and what came of it
  int32_t staged = kNone;     // slot of the fetch cache,
  uint32_t stamp = 0;         // its last use,
  uint8_t staged_status = 0;  // and what came of the read
  bool is_readable = true;    // on disk; else it is lost when it is asked for

  void serialize(Snapshot& s, int tiers, int writes, int fetch_slots) {
    constexpr auto kLast = static_cast<uint8_t>(Status::no_space);
    s.in_range(tier, 0, static_cast<int8_t>(tiers - 1), "the tier of a page");
    s.in_range(count, 1, kPageTokens, "tokens of a page");
    s.item(first_time);
    s.item(last_time);
    s.in_range(write, kNone, writes - 1, "a page among the writes under way");
    s.in_range(write_status, 0, kLast, "what came of a write");
    s.in_range(staged, kNone, fetch_slots - 1, "a page in the fetch cache");
    s.item(stamp);
    s.in_range(staged_status, 0, kLast, "what came of a read");
    s.flag(is_readable, "whether a page can be read");
  }
};

void ClusterStore::serialize(Snapshot& s, RestoredPage* room) {
  if (copies_) copies_->drain();  // what is under way becomes known, and is not taken in
  UncountedMoves moves(tiers_.spill());
  s.section("STOR");
  clock_.serialize(s);
  s.item(account_);
  for (const int64_t n :
       {account_.seen, account_.exact, account_.quantised, account_.spilled, account_.collapsed, account_.dropped})
    s.require(n >= 0 && n < int64_t{1} << 60, "an account counts from 0");
  s.item(counters_);
  reading_.serialize(s);
  fetch_.serialize(s);
  if (spills_) spills_->serialize(s);
  if (scenes_) scenes_->serialize(s);
  for (ClusterIndex& index : index_) index.serialize(s, shape_.scenes, room->bounds());
  s.section("PAGE");
  for (int lane = 0; lane < shape_.lanes; ++lane)
    for (const ClusterId c : index(lane).live()) {
      int32_t pages = 0;
      for (PageId id = index(lane)[c].head; id != kNone; id = pages_[id].next) ++pages;
      s.in_range(pages, 0, pages_.capacity(), "pages of a cluster");
      if (s.is_reading()) {
        for (int i = 0; i < pages; ++i) restore_page(s, lane, c, room);
      } else {
        for (PageId id = index(lane)[c].head; id != kNone; id = pages_[id].next) save_page(s, id, room);
      }
    }
  for (int number = 0; number < spilling(); ++number) s.require(!spills_->is_empty_at(number), "a write is of a page");
  moves.end();
  tiers_.serialize(s);
  if (copies_) copies_->serialize(s);
}

void ClusterStore::save_page(Snapshot& s, PageId id, RestoredPage* room) {
  const Page& page = pages_[id];
  PageState state{page.tier, page.count, page.first_time, page.last_time};
  if (page.spilling != 0) {
    state.write = spills_->number_of(id);
    state.write_status = static_cast<uint8_t>(spills_->status_at(state.write));
  }
  const bool is_staged = page.staged != kNone;
  if (is_staged) {
    const FetchCache::Entry& copy = fetch_[page.staged];
    state.staged = page.staged;
    state.stamp = copy.stamp;
    state.staged_status = static_cast<uint8_t>(copy.copied.status());
  }
  std::byte* whole = nullptr;  // of a page on disk
  const size_t bytes = tiers_.slot_bytes(page.tier);
  if (tiers_.is_disk(page.tier)) {
    const bool has_copy = is_staged && fetch_[page.staged].copied.status() == Status::ok;
    whole = has_copy ? fetch_.address(page.staged) : room->memory(bytes);
    state.is_readable = has_copy || tiers_.spill()->read(page.slot, whole) == Status::ok;
  }
  state.serialize(s, tiers_.size(), spilling(), fetch_.slots());
  if (whole == nullptr) {
    const PageView view = tiers_.page(page.tier, page.slot);
    s.bytes(view.meta, kPageMetaBytes);
    s.kernel_bytes(ops_, view.data, data_bytes(shape_.codec(page.tier), shape_.page));
  } else if (state.is_readable) {
    s.bytes(whole, bytes);
  }
}

void ClusterStore::restore_page(Snapshot& s, int lane, ClusterId c, RestoredPage* room) {
  PageState state;
  state.serialize(s, tiers_.size(), spilling(), fetch_.slots());
  const bool is_disk = tiers_.is_disk(state.tier);
  Cluster& cluster = index(lane)[c];
  s.require(int64_t{cluster.paged} + state.count <= shape_.max_members, "a cluster has no more members than it may");
  s.require(state.write == kNone || (state.tier == tiers_.size() - 2 && spills_->is_empty_at(state.write)),
            "a page that is written is the only one of its number, and goes to the disk next");
  s.require(state.staged == kNone || (is_disk && fetch_[state.staged].page == kNone), "a read copy is of one page");
  if (tiers_.free_slots(state.tier) == 0) s.refuse("a tier has more pages than slots");
  const SlotId slot = tiers_.acquire(state.tier);
  if (slot == kNone) throw SpillError("snapshot: the disk refuses a page. Free space there, or set spill_dir=.");
  const PageId id = pages_.add(lane, c, state.tier, slot);
  Page& page = pages_[id];
  page.count = state.count;
  page.first_time = state.first_time;
  page.last_time = state.last_time;
  pages_.link(&cluster, id);
  if (is_disk) {
    ++cluster.disk_pages;
    restore_disk_page(s, state, slot, id, room);
  } else {
    restore_dram_page(s, state, slot, room);
  }
  if (state.write == kNone) return;
  const int disk = tiers_.size() - 1;
  const SlotId there = tiers_.free_slots(disk) > 0 ? tiers_.acquire(disk) : kNone;
  const auto status = static_cast<Status>(state.write_status);
  if (there == kNone ||
      (status == Status::ok && tiers_.spill()->write(there, room->memory(tiers_.slot_bytes(disk))) != Status::ok))
    throw SpillError("snapshot: the disk refuses a page. Free space there, or set spill_dir=.");
  page.spilling = 1;
  spills_->put_back(state.write, id, there, status);
}

// The whole page stays in the room: it may be on its way to the disk.
void ClusterStore::restore_dram_page(Snapshot& s, const PageState& state, SlotId slot, RestoredPage* room) {
  const CodecId codec = shape_.codec(state.tier);
  const size_t bytes = page_bytes(codec, shape_.page);
  const PageView whole = whole_page(room->memory(bytes));
  s.bytes(whole.meta, bytes);
  s.require(room->hold(whole.meta, state.count), "a token of a page is in the stream");
  s.require(room->is_finite(codec, whole.data, rows_of(0, state.count)), "a token of a page is of numbers");
  const PageView to = tiers_.page(state.tier, slot);
  std::memcpy(to.meta, whole.meta, kPageMetaBytes);
  ops_.copy(to.data, whole.data, data_bytes(codec, shape_.page));
  ops_.wait();
}

void ClusterStore::restore_disk_page(Snapshot& s, const PageState& state, SlotId slot, PageId id, RestoredPage* room) {
  const CodecId codec = shape_.codec(state.tier);
  const size_t bytes = page_bytes(codec, shape_.page);
  const PageView whole = whole_page(room->memory(bytes));
  if (state.is_readable) {
    s.bytes(whole.meta, bytes);
    s.require(room->hold(whole.meta, state.count), "a token of a page is in the stream");
    s.require(room->is_finite(codec, whole.data, rows_of(0, state.count)), "a token of a page is of numbers");
    if (tiers_.spill()->write(slot, reinterpret_cast<const std::byte*>(whole.meta)) != Status::ok)
      throw SpillError("snapshot: the disk tier needs " + format_bytes(tiers_.used_bytes(state.tier)) +
                       " so far and '" + shape_.spill_dir + "' has no more room. Free space there, or set spill_dir=.");
  }
  if (state.staged == kNone) return;
  FetchCache::Entry& entry = fetch_[state.staged];
  const auto status = static_cast<Status>(state.staged_status);
  s.require(status != Status::ok || state.is_readable, "a read copy has what it is a copy of");
  if (status == Status::ok) std::memcpy(fetch_.address(state.staged), whole.meta, bytes);
  entry.page = id;
  entry.stamp = state.stamp;
  entry.copied.set_finished(status);
  pages_[id].staged = state.staged;
}

}  // namespace mosaic
