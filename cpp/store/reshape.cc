// Clusters change shape: 2-means split, deferred split of spilled clusters, merge, and packing of half-empty pages.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "store/cluster_store.h"

namespace mosaic {

// All members of c into the scratch; how many could be read.
int ClusterStore::read_members(int lane, ClusterId c) {
  int n = 0;
  for (PageId id = index(lane)[c].head; id != kNone;) {
    const PageId next = pages_[id].next;
    const int count = pages_[id].count;
    CodecId codec{};
    if (const PageView view = resident(id, &codec); view.data != nullptr) {
      ops_.decode(codec, shape_.page, view.data, 0, count, run_.k(n), run_.v(n), row());
      std::memcpy(run_.meta(n), view.meta, static_cast<size_t>(count) * sizeof(TokenMeta));
      n += count;
    }
    id = next;
  }
  ops_.wait();
  return n;
}

// The n rows of the scratch, sides chosen, replace the members of c: side 0 stays, side 1 becomes a new cluster.
ClusterId ClusterStore::cut(int lane, ClusterId c, int n, int32_t frame) {
  ClusterIndex& index = this->index(lane);
  const int zeros = run_.part_sides(n);
  // What was only in the summary cannot be told apart: it stays with side 0, and the old mean stands for it.
  const int residual = index.count(c) - index[c].paged;
  const int born = index[c].born;
  release_pages(lane, c);
  const ClusterId b = index.open(index[c].scene, frame);
  write_pages(lane, c, run_.run(0, zeros));
  write_pages(lane, b, run_.run(zeros, n - zeros));
  index.counts()[c] = residual;
  if (residual == 0) index.variances()[c] = 0;
  learn(lane, c, run_.run(0, zeros), frame);
  learn(lane, b, run_.run(zeros, n - zeros), frame);
  index[c].born = index[b].born = born;
  ++counters_.splits;
  return b;
}

int ClusterStore::slots_to_split(int lane, ClusterId c) const {
  const Cluster& cluster = index(lane)[c];
  return 3 + (cluster.disk_pages > 0 ? std::min(cluster.disk_pages, pages_for(cluster.paged)) : 0);
}

Short ClusterStore::split(int lane, ClusterId c, const Run& token, int32_t frame, ClusterId* made) {
  ClusterIndex& index = this->index(lane);
  if (index.full()) return Short::kClusters;
  const auto open_alone = [&] {
    const Short s = open(lane, index[c].scene, token, frame, made);
    if (s == Short::kNothing) ++counters_.splits;
    return s;
  };
  // Only a summary: nothing to cut. Or more than can be cut.
  if (index[c].paged == 0 || index[c].paged > shape_.most_cut()) return open_alone();
  if (free_slots() < slots_to_split(lane, c)) return Short::kSlots;
  const bool fetched = index[c].disk_pages > 0;
  const int members = read_members(lane, c);
  if (fetched) {
    unpin_all();
    if (members != index[c].paged) return defer(lane, c, token, frame, made);
    if (members == 0) return open_alone();  // the disk lost them
    ++counters_.eager_splits;
  }
  run_.put(members, token);
  const int ones = run_.two_means(members + 1);
  if (ones == 0 || ones == members + 1 || (ones == 1 && run_.is_on_side_1(members))) return open_alone();
  *made = cut(lane, c, members + 1, frame);
  ++account_.seen;
  return Short::kNothing;
}

Short ClusterStore::defer(int lane, ClusterId c, const Run& token, int32_t frame, ClusterId* made) {
  ClusterIndex& index = this->index(lane);
  const ClusterId buffer = index[c].buffer;
  if (buffer != kNone && index[buffer].paged < shape_.most_cut() / 2) {
    *made = buffer;
    return append(lane, buffer, token, frame);
  }
  if (buffer != kNone) {  // the buffer is full: it stands on its own from here
    index[buffer].buffer_of = kNone;
    index[c].buffer = kNone;
  }
  const Short s = open(lane, index[c].scene, token, frame, made);
  if (s != Short::kNothing) return s;
  index[c].buffer = *made;
  index[*made].buffer_of = c;
  ++counters_.deferred_splits;
  return s;
}

bool ClusterStore::settle(int lane, ClusterId c, int32_t frame) {
  ClusterIndex& index = this->index(lane);
  const ClusterId buffer = index[c].buffer;
  if (buffer == kNone) return false;
  // Join, then cut in two. Where they do not fit together they simply stay two clusters.
  if (index[c].paged + index[buffer].paged + 1 > shape_.most_cut() || index[c].paged == 0) {
    index[buffer].buffer_of = kNone;
    index[c].buffer = kNone;
    return true;
  }
  if (free_slots() < pages_for(index[c].paged + index[buffer].paged) + 3 || index.full()) return false;
  if (holds_token_in_mean(lane, buffer)) materialise(lane, buffer);
  merge(lane, c, buffer);
  const int n = read_members(lane, c);
  if (n != index[c].paged || n < 2) return true;  // not all could be read now: they stay joined
  const int ones = run_.two_means(n);
  if (ones > 0 && ones < n) cut(lane, c, n, frame);
  return true;
}

// Pages that lie in DRAM become as few as their tokens need; what is on disk, or on its way there, stays as it is.
void ClusterStore::compact(int lane, ClusterId c) {
  Cluster& cluster = index(lane)[c];
  const auto open = [&](PageId id) { return !tiers_.is_disk(pages_[id].tier) && pages_[id].spilling == 0; };
  int pages = 0, tokens = 0;
  for (PageId id = cluster.head; id != kNone; id = pages_[id].next) {
    pages += open(id) ? 1 : 0;
    tokens += open(id) ? pages_[id].count : 0;
  }
  if (tokens > shape_.max_run || pages <= pages_for(tokens)) return;
  int n = 0;
  PageId before = kNone;
  for (PageId id = cluster.head; id != kNone;) {
    const Page page = pages_[id];
    if (!open(id)) {
      before = id;
    } else {
      const PageView view = tiers_.page(page.tier, page.slot);
      ops_.decode(shape_.codec(page.tier), shape_.page, view.data, 0, page.count, run_.k(n), run_.v(n), row());
      std::memcpy(run_.meta(n), view.meta, static_cast<size_t>(page.count) * sizeof(TokenMeta));
      n += page.count;
      (before == kNone ? cluster.head : pages_[before].next) = page.next;
      if (cluster.tail == id) cluster.tail = before;
      cluster.paged -= page.count;
      release_page(id);
    }
    id = page.next;
  }
  write_pages(lane, c, run_.run(0, n));
}

void ClusterStore::merge(int lane, ClusterId into, ClusterId from) {
  ClusterIndex& index = this->index(lane);
  // Single tokens stay exact while there is a slot for them.
  for (const ClusterId c : {into, from})
    if (holds_token_in_mean(lane, c) && shape_.max_members > 0 && free_slots() == 0) poll_spills(true);
  for (const ClusterId c : {into, from})
    if (holds_token_in_mean(lane, c) && shape_.max_members > 0) materialise(lane, c);
  if (index[into].paged + index[from].paged > shape_.max_members)
    collapse(lane, index.variance(into) < index.variance(from) ? into : from);
  for (const ClusterId c : {into, from}) {  // what is in a mean alone is a part of it from here
    if (!holds_token_in_mean(lane, c)) continue;
    --account_.exact;
    ++account_.collapsed;
  }
  Cluster& a = index[into];
  Cluster& b = index[from];
  for (PageId id = b.head; id != kNone; id = pages_[id].next) pages_[id].cluster = into;
  if (b.head != kNone) {
    (a.tail == kNone ? a.head : pages_[a.tail].next) = b.head;
    a.tail = b.tail;
    a.paged += b.paged;
    a.disk_pages += b.disk_pages;
  }
  b.head = b.tail = kNone;
  b.paged = b.disk_pages = 0;
  index.absorb(into, from, shape_.value_weight);
  ++counters_.merges;
  compact(lane, into);
}

void ClusterStore::merge_scenes(SceneId into, SceneId from) {
  scenes_->merge(into, from);
  for (ClusterIndex& index : index_) index.relabel_scene(from, into);
}

}  // namespace mosaic
