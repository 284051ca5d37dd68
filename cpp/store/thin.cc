// Thinning: some members of clusters go, and what stays is packed into the pages that held them. What is kept is written over
// pages that were read: any number of members needs two pages of scratch, and nobody waits. Where kernels have memory of
// their own, the pages of all clusters are listed and packed by one launch.
#include <algorithm>
#include <cstring>

#include "store/cluster_store.h"

namespace mosaic {

void ClusterStore::thin(std::span<const Thinning> clusters) {
  size_t listed = 0;  // the first of those that are listed
  for (size_t i = 0; i < clusters.size(); ++i) {
    const auto same = [&](const Thinning& t) { return t.lane == clusters[i].lane && t.cluster == clusters[i].cluster; };
    const auto others = clusters.subspan(listed, i - listed);
    if (n_packing_ == packing_.size() || std::ranges::any_of(others, same)) pack_listed(), listed = i;
    make_room_to_list(clusters[i]);
    thin_one(clusters[i]);
  }
  pack_listed();
}

void ClusterStore::make_room_to_list(const Thinning& t) {
  if (packed_ == nullptr) return;
  Size pages;
  for (PageId id = index(t.lane)[t.cluster].head; id != kNone; id = pages_[id].next) pages = pages + 1;
  if ((pages + packed_pages_).value() <= shape_.dram_slots().value()) return;
  pack_listed();
  ops_.wait();  // kernels may still read the list
  packed_pages_ = 0;
}

void ClusterStore::pack_listed() {
  if (n_packing_ > 0) ops_.pack_pages(shape_.page, std::span(packing_).first(n_packing_), run_.k(0), run_.v(0));
  n_packing_ = 0;
}

void ClusterStore::thin_one(const Thinning& t) {
  Cluster& cluster = index(t.lane)[t.cluster];
  const uint8_t* keep = t.keep;
  PageId to = next_open(cluster.head);  // where what was kept is written, never behind what was read
  const int ring = std::max(shape_.max_run / kPageTokens, 1) * kPageTokens;  // a cluster of less than a page needs less
  int kept = 0;                                                              // rows so far
  int gone = 0;
  bool changed = false;  // since the first token that went
  const int first_listed = packed_pages_;
  const auto write = [&](int n) {
    const int first = (kept - n) % ring;
    Page& page = pages_[to];
    const PageView view = tiers_.page(page.tier, page.slot);
    std::memset(view.meta, 0, kPageMetaBytes);
    std::memcpy(view.meta, run_.meta(first), static_cast<size_t>(n) * sizeof(TokenMeta));
    if (packed_ == nullptr)
      ops_.encode(shape_.codec(page.tier), shape_.page, run_.k(first), run_.v(first), row(), n, view.data);
    counter_of(page.tier) += n - page.count;
    cluster.paged += n - page.count;
    page.count = static_cast<uint8_t>(n);
    note_times(&page, run_.meta(first), n);
    to = next_open(page.next);
  };
  // Tokens [begin, end) of a page, but for what stands in the ring's next page.
  const auto read = [&](const Page& page, int begin, int end) {
    const int n = std::min(end - begin, kPageTokens - kept % kPageTokens), at = kept % ring;
    const PageView view = tiers_.page(page.tier, page.slot);
    if (packed_ == nullptr)
      ops_.decode(shape_.codec(page.tier), shape_.page, view.data, begin, begin + n, run_.k(at), run_.v(at), row());
    std::memcpy(run_.meta(at), view.meta + begin, static_cast<size_t>(n) * sizeof(TokenMeta));
    kept += n;
    if (kept % kPageTokens == 0) write(kPageTokens);
    return n;
  };
  for (PageId id = cluster.head; id != kNone; id = pages_[id].next) {
    const Page page = pages_[id];
    const uint8_t* const wanted = keep;
    keep += page.count;
    if (next_open(id) != id) continue;
    const auto going = static_cast<int>(std::count(wanted, keep, uint8_t{0}));
    gone += going;
    if (!changed && going == 0) {  // nothing before it moved
      to = next_open(page.next);
      continue;
    }
    changed = true;
    if (packed_ != nullptr) list_page(page, wanted);
    for (int begin = 0, end = 0; begin < page.count;
         begin = end) {  // in runs: one call is much cheaper than one a token
      for (end = begin + 1; end < page.count && (wanted[end] != 0) == (wanted[begin] != 0);) ++end;
      while (begin < end && wanted[begin] != 0) begin += read(page, begin, end);
    }
  }
  if (!changed) return;
  if (kept % kPageTokens > 0) write(kept % kPageTokens);
  if (packed_ != nullptr) packing_[n_packing_++] = {packed_ + first_listed, packed_pages_ - first_listed};
  release_emptied(&cluster, to);
  account_unpaged(t.lane, t.cluster, gone);
  if (!index(t.lane).has_means()) index(t.lane).counts()[t.cluster] -= gone;
  ++counters_.thinned_clusters;
}

// The page itself, or the first behind it that lies in DRAM and is not being written to the disk.
PageId ClusterStore::next_open(PageId id) const {
  while (id != kNone && (tiers_.is_disk(pages_[id].tier) || pages_[id].spilling != 0)) id = pages_[id].next;
  return id;
}

void ClusterStore::list_page(const Page& page, const uint8_t* wanted) {
  uint16_t stay = 0;
  for (int i = 0; i < page.count; ++i) stay |= static_cast<uint16_t>((wanted[i] != 0 ? 1u : 0u) << i);
  packed_[packed_pages_++] = {tiers_.page(page.tier, page.slot).data, stay, shape_.codec(page.tier)};
}

// From `to` on nothing was written to what is open: it is empty now. The chain is walked once: pots may be long.
void ClusterStore::release_emptied(Cluster* cluster, PageId to) {
  PageId before = kNone;
  for (PageId id = cluster->head; id != to; id = pages_[id].next) before = id;
  while (to != kNone) {
    const PageId empty = to, next = pages_[empty].next;
    if (next_open(empty) == empty) {
      (before == kNone ? cluster->head : pages_[before].next) = next;
      if (cluster->tail == empty) cluster->tail = before;
      cluster->paged -= pages_[empty].count;
      release_page(empty);
    } else {
      before = empty;
    }
    to = next;
  }
}

}  // namespace mosaic
