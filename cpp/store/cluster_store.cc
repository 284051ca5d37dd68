#include "store/cluster_store.h"

#include <algorithm>
#include <cstring>

namespace mosaic {

namespace {

// Rows of the scratch for single tokens, where waiting for one costs more than its room: few beside the others.
int spare_rows(const StoreShape& s, bool has_private) {
  return has_private && s.index.dim > 0 ? std::clamp(s.max_run / kPageTokens, 1, 8) : 1;
}

int total_slots(const StoreShape& s) {
  Size n;
  for (const TierSpec& tier : s.tiers) n = n + tier.slots;
  return n.to_int("pages of all tiers");
}

bool has_disk(const StoreShape& s) { return s.tiers.back().medium == Medium::disk; }

size_t coldest_page_bytes(const StoreShape& s) { return page_bytes(s.tiers.back().codec, s.page); }

std::vector<ClusterIndex> index_of_lanes(Region& region, const StoreShape& s) {
  std::vector<ClusterIndex> index;
  index.reserve(static_cast<size_t>(s.lanes));
  for (int lane = 0; lane < s.lanes; ++lane) index.emplace_back(region, s.index);
  return index;
}

}  // namespace

ClusterStore::ClusterStore(Region& region, const StoreShape& s, Ops& ops, SpillIo* io)
    : shape_(s),
      ops_(ops),
      tiers_(s.tiers, s.page, region, s.spill_dir, io),
      pages_(region, total_slots(s)),
      fetch_(region, s.fetch_slots, coldest_page_bytes(s)),
      index_(index_of_lanes(region, s)),
      scenes_(s.scenes > 0 ? std::optional<SceneTable>(std::in_place, region, s.scenes, s.embedding_dim)
                           : std::nullopt),
      run_(region, s.max_run, row(), s.value_weight, spare_rows(s, region.has_private())) {
  if (region.has_private() && s.max_members > s.max_run && s.index.dim == 0)  // clusters without end, for good in pages
    packed_ = region.take<PackPage>("scratch", s.dram_slots());
  if (!has_disk(s)) return;
  spills_.emplace(region, s.page, tiers_, ops, counters_);
  auto* const queue = region.take<std::byte>("copy queue", CopyEngine::bytes_for(kCopyQueue));
  if (!region.is_counting()) copies_.emplace(*tiers_.spill(), kCopyQueue, queue);
}

ClusterStore::~ClusterStore() {
  if (copies_) copies_->drain();
}

bool ClusterStore::can_spill() const {
  return tiers_.spill() != nullptr && !spills_->is_paused() && !reading_.rests() &&
         tiers_.free_slots(tiers_.size() - 1) > 0;
}

int ClusterStore::pages_in(int lane, ClusterId c, int tier) const {
  int n = 0;
  for (PageId p = index(lane)[c].head; p != kNone; p = pages_[p].next) n += pages_[p].tier == tier ? 1 : 0;
  return n;
}

int64_t& ClusterStore::counter_in(TokenAccount& account, int tier) const {
  if (tiers_.is_disk(tier)) return account.spilled;
  return codec_is_exact(shape_.codec(tier)) ? account.exact : account.quantised;
}

// A cluster of one token needs no page where its mean, which is half precision, holds the token as exactly as a page would.
bool ClusterStore::mean_may_hold_token(int lane) const {
  return index(lane).has_means() && shape_.codec(0) != CodecId::kFp32;
}

bool ClusterStore::holds_token_in_mean(int lane, ClusterId c) const {
  const ClusterIndex& index = this->index(lane);
  return mean_may_hold_token(lane) && index.count(c) == 1 && index[c].paged == 0;
}

float ClusterStore::variance_with(int lane, ClusterId c, const float* k, const float* v) const {
  const ClusterIndex& index = this->index(lane);
  const double n = index.count(c);
  const size_t d = row();
  const auto similarity = [&](const half_t* mean, const float* x) {
    double dot = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < d; ++i) {
      const double m = (n * half_to_float(mean[i]) + x[i]) / (n + 1);
      dot += m * x[i];
      aa += m * m;
      bb += static_cast<double>(x[i]) * x[i];
    }
    return aa > 0 && bb > 0 ? dot / std::sqrt(aa * bb) : 0.0;
  };
  const auto at = static_cast<size_t>(c) * d;
  double s = similarity(index.mean_k() + at, k);
  const double w = shape_.value_weight;
  if (w > 0) s = (s + w * similarity(index.mean_v() + at, v)) / (1 + w);
  return static_cast<float>((n * index.variance(c) + 2 - 2 * s) / (n + 1));
}

void ClusterStore::update(int lane, const Run& run, const int32_t* labels) {
  ClusterIndex& index = this->index(lane);
  UpdateArgs args;
  args.k = run.k;
  args.v = run.v;
  args.items = run.n;
  args.dim = static_cast<int>(row());
  args.stride = row();
  args.labels = labels;
  args.mean_k = index.mean_k();
  args.mean_v = index.mean_v();
  args.count = index.counts();
  args.variance = index.variances();
  args.value_weight = shape_.value_weight;
  ops_.for_host().update_centroids(args);
}

// A run is learned at once: its mean is rounded to half once, not once a token.
void ClusterStore::learn(int lane, ClusterId c, const Run& run, int32_t frame) {
  ClusterIndex& index = this->index(lane);
  const int before = index.count(c);
  if (index.has_means()) {
    update(lane, run, run_.labels(c, run.n));
  } else {
    index.counts()[c] += run.n;
  }
  for (int i = 0; i < run.n; ++i) index.touch(c, before + i + 1, run.meta[i], clock_.time(run.meta[i]), frame);
}

void ClusterStore::learn_again(int lane, ClusterId c, const Run& run, const int32_t* labels) {
  ClusterIndex& index = this->index(lane);
  index.counts()[c] = 0;
  index.variances()[c] = 0;
  update(lane, run, labels);
  ++index[c].version;
}

void ClusterStore::release_page(PageId page) {
  // A background write still reads the DRAM slot: let it finish before the slot can be reused.
  while (pages_[page].spilling != 0) poll_spills(true);
  Page& p = pages_[page];
  if (p.staged != kNone) {
    FetchCache::Entry& entry = fetch_[p.staged];
    if (!entry.copied.done()) copies_->wait(entry.copied);
    entry.page = kNone;
    entry.pinned = false;
  }
  counter_of(p.tier) -= p.count;
  tiers_.release(p.tier, p.slot);
  pages_.remove(page);
}

void ClusterStore::release_pages(int lane, ClusterId c) {
  Cluster& cluster = index(lane)[c];
  for (PageId p = cluster.head; p != kNone;) {
    const PageId next = pages_[p].next;
    release_page(p);
    p = next;
  }
  cluster.head = cluster.tail = kNone;
  cluster.paged = 0;
  cluster.disk_pages = 0;
}

// Members that came by a merge are not in time order.
void ClusterStore::note_times(Page* page, const TokenMeta* meta, int n) const {
  int64_t first = clock_.time(meta[0]), last = first;
  for (int i = 1; i < n; ++i) {
    const int64_t time = clock_.time(meta[i]);
    first = std::min(first, time);
    last = std::max(last, time);
  }
  page->first_time = first;
  page->last_time = last;
}

void ClusterStore::write_pages(int lane, ClusterId c, const Run& run) {
  for (int at = 0; at < run.n; at += kPageTokens) {
    const int n = std::min(kPageTokens, run.n - at);
    SlotId slot = kNone;
    const int tier = tiers_.acquire_hottest(&slot);
    const PageId page = pages_.add(lane, c, tier, slot);
    Page& record = pages_[page];
    record.count = static_cast<uint8_t>(n);
    note_times(&record, run.meta + at, n);
    const PageView to = tiers_.page(tier, slot);
    std::memset(to.meta, 0, kPageMetaBytes);
    std::memcpy(to.meta, run.meta + at, static_cast<size_t>(n) * sizeof(TokenMeta));
    ops_.encode(shape_.codec(tier), shape_.page, run.k + static_cast<size_t>(at) * row(),
                run.v + static_cast<size_t>(at) * row(), row(), n, to.data);
    pages_.link(&index(lane)[c], page);
    counter_of(tier) += n;
  }
}

// The one token that c is becomes a member in a page, so that its mean may move.
Short ClusterStore::materialise(int lane, ClusterId c) {
  if (free_slots() < 1) return Short::kSlots;
  const ClusterIndex& index = this->index(lane);
  const auto at = static_cast<size_t>(c) * row();
  if (!run_.has_spare()) {  // they may still be on their way into pages
    ops_.wait();
    run_.free_spares();
  }
  const int spare = run_.take_spare();
  float* const k = run_.k(spare);
  float* const v = run_.v(spare);
  for (size_t i = 0; i < row(); ++i) {
    k[i] = half_to_float(index.mean_k()[at + i]);
    v[i] = half_to_float(index.mean_v()[at + i]);
  }
  const Cluster& cluster = index[c];
  const TokenMeta meta{static_cast<int32_t>(cluster.mean_position), Clock::low(cluster.first_time), cluster.h,
                       cluster.w};
  write_pages(lane, c, Run{k, v, &meta, 1});
  --account_.exact;
  return Short::kNothing;
}

// Behind the last token of c's last page, where that has room for all of them, else in a new one.
Short ClusterStore::add_row(int lane, ClusterId c, const Run& run) {
  const PageId tail = index(lane)[c].tail;
  const bool open_tail = tail != kNone && pages_[tail].count + run.n <= kPageTokens &&
                         !tiers_.is_disk(pages_[tail].tier) && pages_[tail].spilling == 0;
  if (!open_tail) {
    if (free_slots() < pages_for(run.n)) return Short::kSlots;
    write_pages(lane, c, run);
    return Short::kNothing;
  }
  Page& page = pages_[tail];
  const int n = page.count;
  PageView view = tiers_.page(page.tier, page.slot);
  if (codec_is_exact(shape_.codec(page.tier))) {
    for (int i = 0; i < run.n; ++i) {
      const size_t at = static_cast<size_t>(i) * row();
      ops_.encode_row(shape_.codec(page.tier), shape_.page, run.k + at, run.v + at, n + i, view.data);
    }
  } else {
    // Keys share a scale per channel: the page is written anew, in an exact slot while one is free. Where rows of the host
    // are needed for that, what it holds is read in front of a run, or a token alone is put behind it.
    const size_t before = static_cast<size_t>(n) * row();
    GrowArgs grow;
    grow.from_codec = shape_.codec(page.tier), grow.from = view.data, grow.held = n;
    grow.shape = shape_.page, grow.k = run.k, grow.v = run.v, grow.stride = row(), grow.count = run.n;
    grow.room_k = run.n > 1 ? const_cast<float*>(run.k) - before : run_.k(0);
    grow.room_v = run.n > 1 ? const_cast<float*>(run.v) - before : run_.v(0);
    const SlotId hot = codec_is_exact(shape_.codec(0)) ? tiers_.acquire(0) : kNone;
    if (hot != kNone) {
      const PageView to = tiers_.page(0, hot);
      std::memcpy(to.meta, view.meta, kPageMetaBytes);
      tiers_.release(page.tier, page.slot);
      counter_of(page.tier) -= n;
      counter_of(0) += n;
      page.tier = 0;
      page.slot = hot;
      view = to;
    }
    grow.codec = shape_.codec(page.tier), grow.to = view.data;
    ops_.grow_page(grow);
  }
  for (int i = 0; i < run.n; ++i) {
    view.meta[n + i] = run.meta[i];
    const int64_t time = clock_.time(run.meta[i]);
    page.first_time = std::min<int64_t>(page.first_time, time);
    page.last_time = std::max<int64_t>(page.last_time, time);
  }
  page.count = static_cast<uint8_t>(n + run.n);
  index(lane)[c].paged += run.n;
  counter_of(page.tier) += run.n;
  return Short::kNothing;
}

Short ClusterStore::append(int lane, ClusterId c, const Run& run, int32_t frame) {
  ClusterIndex& index = this->index(lane);
  if (mean_may_hold_token(lane) && index.count(c) == 0) {  // the first token is the mean
    ++account_.exact;
  } else {
    if (index[c].paged >= shape_.max_members) {  // full: it joins the summary
      absorb(lane, c, run, frame);
      return Short::kNothing;
    }
    if (holds_token_in_mean(lane, c)) {
      if (const Short s = materialise(lane, c); s != Short::kNothing) return s;
    }
    if (const Short s = add_row(lane, c, run); s != Short::kNothing) return s;
  }
  account_.seen += run.n;
  learn(lane, c, run, frame);
  return Short::kNothing;
}

void ClusterStore::absorb(int lane, ClusterId c, const Run& token, int32_t frame) {
  if (holds_token_in_mean(lane, c)) {
    --account_.exact;
    ++account_.collapsed;
  }
  learn(lane, c, token, frame);
  ++account_.seen;
  account_unpaged(lane, c, 1);
}

void ClusterStore::account_unpaged(int lane, ClusterId c, int n) {
  if (holds_token_in_mean(lane, c)) {
    account_.exact += n;
  } else {
    (index(lane).has_means() ? account_.collapsed : account_.dropped) += n;
  }
}

Short ClusterStore::open(int lane, SceneId scene, const Run& run, int32_t frame, ClusterId* made, uint8_t tag) {
  ClusterIndex& index = this->index(lane);
  if (index.full()) return Short::kClusters;
  const bool in_mean = mean_may_hold_token(lane) && run.n == 1;
  const bool paged = !in_mean && shape_.max_members > 0;  // else every byte is a summary's
  if (paged && free_slots() < pages_for(run.n)) return Short::kSlots;
  const ClusterId c = index.open(scene, frame);
  index[c].tag = tag;
  if (paged) write_pages(lane, c, run);
  learn(lane, c, run, frame);
  if (!paged) account_unpaged(lane, c, run.n);
  account_.seen += run.n;
  *made = c;
  return Short::kNothing;
}

}  // namespace mosaic
