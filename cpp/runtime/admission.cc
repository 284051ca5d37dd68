#include "runtime/admission.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/trace.h"

namespace mosaic {

namespace {

constexpr int kAttempts = 16;                  // at filing one token, room being made between them
constexpr int kIdle = 64;                      // times that what yields may free no slot for a frame
constexpr int kMergeSlots = 2 * kAssignItems;  // of the pairs that merge at a time
constexpr uint64_t kShare = 64;                // of the cap, for the rows of lanes that are read together

Size batch_tokens(const Plan& plan) { return Size(plan.config.model.frame_tokens) * plan.batch_frames; }

// Rows of a lane in the scratch: its batch, and without means room in front for what ClusterStore::append() writes anew.
int front_rows(const Plan& plan) { return plan.store.lanes > 0 && plan.store.index.dim == 0 ? kPageTokens - 1 : 0; }
Size lane_rows(const Plan& plan) { return batch_tokens(plan) + front_rows(plan); }

// Lanes that are read together. Where kernels have memory of their own a launch costs more than the room does: those of a
// layer at least.
int lanes_at_once(const Plan& plan, bool has_private) {
  if (!has_private) return 1;
  const Size each = lane_rows(plan) * plan.store.page.row() * (2 * sizeof(float));
  const int64_t fit = std::max<int64_t>(plan.sized_for_bytes / kShare / each.bytes(), plan.layer_lanes);
  return static_cast<int>(std::clamp<int64_t>(fit, 1, std::max(plan.store.lanes, 1)));
}
int lanes_at_once(const Plan& plan) { return lanes_at_once(plan, plan.private_bytes > 0); }

// Of a lane's batch in the scratch.
size_t first_number(const Plan& plan, int lane) {
  const Size rows = lane_rows(plan) * (lane % lanes_at_once(plan)) + front_rows(plan);
  return (rows * plan.store.page.row()).value();
}

// Tokens of a batch from i on that join one cluster and one page of it, in a lane without means: how many were filed; none
// where room must be made first. Where there are means each token moves the one that the next is measured by.
int append_run(ClusterStore& store, const Labels& labels, int lane, int i, const Run& batch, int32_t frame) {
  const ClusterIndex& index = store.index(lane);
  const Placement to = labels.at(i);
  if (index.has_means() || to.cluster < 0 || !to.keep) return 0;
  const Cluster& cluster = index[to.cluster];
  const int in_page = cluster.tail == kNone ? 0 : store.pages()[cluster.tail].count % kPageTokens;
  const int most = std::min({kPageTokens - in_page, batch.n - i, store.shape().max_members - cluster.paged});
  int n = 0;
  while (n < most && labels.at(i + n).cluster == to.cluster && labels.at(i + n).keep) ++n;
  const size_t at = static_cast<size_t>(i) * static_cast<size_t>(store.shape().page.row());
  const Run run{batch.k + at, batch.v + at, batch.meta + i, n};
  return n > 1 && store.append(lane, to.cluster, run, frame) == Short::kNothing ? n : 0;
}

}  // namespace

Admission::Scratch::Scratch(Region& region, const Plan& plan) : labels(region, batch_tokens(plan)) {
  const Size tokens = batch_tokens(plan), rows = lane_rows(plan) * lanes_at_once(plan, region.has_private());
  k = region.take<float>("frame scratch", rows * plan.store.page.row());
  v = region.take<float>("frame scratch", rows * plan.store.page.row());
  meta = region.take<TokenMeta>("frame scratch", tokens);
  joined = region.take<int32_t>("frame scratch", tokens);
  attention_received = region.take<float>("frame scratch", plan.window.attention_received ? tokens : 0);
  evictions = region.take<Eviction>("frame scratch", kEvictions);
}

void Admission::refuse_without_room(int64_t frame) {
  if (!needs_.share.refuses || window_.frames() < plan_.window.frames || !window_.has_first_frame()) return;
  const TierChain& tiers = store_.tiers();
  const int pages = pages_for(window_.frame(0).tokens) * store_.shape().lanes;
  while (store_.free_slots() < pages && store_.spilling() > 0) store_.poll_spills(true);  // each frees a slot
  uint64_t have = 0;
  int free = 0;
  for (int t = 0; t < tiers.size(); ++t) {
    have += tiers.capacity_bytes(t);
    if (!tiers.is_disk(t) || store_.can_spill()) free += tiers.free_slots(t);
  }
  if (free >= pages && !store_.index(0).full()) return;
  throw MemoryCapError(std::string("policy ") + policy_.name() + ": frame " + std::to_string(frame) + " needs " +
                       std::to_string(pages) + " pages (" +
                       format_bytes(static_cast<uint64_t>(pages) * tiers.slot_bytes(0)) + "); " +
                       format_bytes(plan_.config.cap_bytes) + " cap, all " + format_bytes(have) +
                       " of its pages hold earlier frames. Raise memory=, or choose a policy that yields.");
}

SceneId Admission::scene_of(const float* embedding) {
  SceneTable* scenes = store_.scenes();
  if (scenes == nullptr) return kNone;
  const SceneId scene = policy_.scene(store_, embedding);
  if (scene != kNone) {
    scenes->add(scene, embedding);
    return scene;
  }
  if (scenes->full()) {
    const auto [into, from] = scenes->nearest_pair();
    if (from == kNone) {  // a table of one
      scenes->add(scenes->nearest(embedding).scene, embedding);
      return scenes->nearest(embedding).scene;
    }
    store_.merge_scenes(into, from);
  }
  return scenes->open(embedding);
}

void Admission::admit_oldest() {
  const trace::Span span("admit");
  if (window_.wants_first_frame()) {
    window_.keep_first_frame();
    if (records_) records_->skip();
    window_.pop();
    return;
  }
  if (records_) {
    records_->admit(window_, {scratch_.k, scratch_.v, scratch_.meta});
    window_.pop();
    return;
  }
  const auto leave = [&] {
    for (int i = 0; i < plan_.batch_frames; ++i) window_.pop();
  };
  filed_ = 0;
  try {
    admit({window_.frame(0), scene_of(window_.embedding(0))});
  } catch (...) {
    // A policy written elsewhere may throw. The window is full, so the frame leaves all the same: what of it the store
    // has not taken is dropped and counted, the newest frame is in, and the stream may go on.
    int64_t tokens = 0;
    for (int i = 0; i < plan_.batch_frames; ++i) tokens += window_.frame(i).tokens;
    store_.drop_tokens(static_cast<int>(tokens * store_.shape().lanes - filed_));
    leave();
    throw;
  }
  leave();
}

void Admission::admit(const Batch& batch) {
  if (!needs_.group.by_token) return admit_whole(batch);
  for (int lane = 0; lane < store_.shape().lanes; ++lane) admit_tokens(lane, batch);
}

// The oldest frames of the window, as many as leave together, one behind the other in the scratch; those of the lanes after
// this one too, as many as are read together.
int Admission::read_batch(int lane) {
  const auto row = static_cast<size_t>(plan_.store.page.row());
  const int together = lanes_at_once(plan_);
  const int lanes = lane % together != 0 ? 0 : std::min(together, store_.shape().lanes - lane);
  int rows = 0;
  for (int f = 0; f < plan_.batch_frames; ++f) {
    const int tokens = window_.frame(f).tokens;
    if (plan_.window.attention_received)
      std::copy_n(window_.attention_received(lane, f), tokens, scratch_.attention_received + rows);
    for (int i = lane; i < lane + lanes; ++i) {
      const size_t to = first_number(plan_, i) + static_cast<size_t>(rows) * row;
      window_.read(ops_, Strip::kFrame, i, tokens, scratch_.k + to, scratch_.v + to, scratch_.meta + rows, f);
    }
    rows += tokens;
  }
  if (lanes > 0 && ((needs_.group.by_token && !needs_.group.by_meta) || store_.index(lane).has_means()))
    ops_.wait();  // else kernels alone read them
  return rows;
}

// A frame is kept in every lane or in none: room for all of it is made first. Making room may change the policy's mind.
bool Admission::make_room_for_whole(const Batch& batch) {
  const int lanes = store_.shape().lanes;
  AdmitBatch asked;
  asked.lane = -1;
  asked.frame = batch.frame.number;
  asked.scene = batch.scene;
  const auto kept = [&] {
    policy_.admit(store_, asked, scratch_.labels.begin(kNone, 1));
    return scratch_.labels.at(0).cluster != Placement::kDrop;
  };
  const int pages = pages_for(batch.frame.tokens) * lanes;
  int idle = 0;
  while (kept()) {
    bool clusters = false;
    for (int lane = 0; lane < lanes; ++lane) clusters |= store_.index(lane).full();
    const int slots = store_.free_slots();
    if (!clusters && slots >= pages) return true;
    if (!make_room({clusters ? Need::Kind::kClusters : Need::Kind::kSlots, 0, pages, batch.frame.number})) return false;
    // What a policy gives up must make room in the end.
    idle = clusters || store_.free_slots() > slots ? 0 : idle + 1;
    if (idle == kIdle) return false;
  }
  return false;
}

void Admission::admit_whole(const Batch& batch) {
  const int lanes = store_.shape().lanes;
  if (!make_room_for_whole(batch)) return store_.drop_tokens(batch.frame.tokens * lanes);
  for (int lane = 0; lane < lanes; ++lane) {
    const int n = read_batch(lane);
    ClusterId made = kNone;
    const size_t at = first_number(plan_, lane);
    const Run run{scratch_.k + at, scratch_.v + at, scratch_.meta, n};
    if (store_.open(lane, batch.scene, run, batch.frame.number, &made) != Short::kNothing) store_.drop_tokens(n);
    filed_ += n;
  }
}

// New pages are born exact while the hottest tier has room; older pages make it by going one tier down.
void Admission::keep_hot_slots(int lane, const WindowFrame& frame) {
  const TierChain& tiers = store_.tiers();
  if (tiers.size() < 2 || tiers.is_disk(1)) return;
  const int share = std::max(tiers.spec(0).slots / (2 * store_.shape().lanes), 1);
  const int missing = std::min(std::max(frame.tokens / 4, 1), share) - tiers.free_slots(0);
  if (missing > 0) make_room({Need::Kind::kHotSlots, lane, missing, frame.number});
}

void Admission::admit_tokens(int lane, const Batch& batch) {
  scratch_.labels.end();
  keep_hot_slots(lane, batch.frame);
  const int n = read_batch(lane);
  const size_t at = first_number(plan_, lane);
  const AdmitBatch asked{lane,
                         {scratch_.k + at, scratch_.v + at, scratch_.meta, n},
                         batch.frame.number,
                         plan_.batch_frames,
                         batch.scene,
                         plan_.window.attention_received ? scratch_.attention_received : nullptr};
  policy_.admit(store_, asked, scratch_.labels.begin(lane, n));
  for (int i = 0; i < n;) {
    int filed = append_run(store_, scratch_.labels, lane, i, asked.tokens, batch.frame.number);
    if (filed == 0) {
      file(lane, i, batch);
      filed = 1;
    }
    i += filed;
    filed_ += filed;
  }
  learn_opened(lane, asked.tokens);
}

// Tokens that opened a cluster together were filed one by one: it learns them once more, as a run.
void Admission::learn_opened(int lane, const Run& run) {
  const ClusterIndex& index = store_.index(lane);
  if (!index.has_means()) return;
  for (const ClusterId c : scratch_.labels.opened()) {
    int n = 0;
    for (int i = 0; i < run.n; ++i) {
      const Placement to = scratch_.labels.at(i);
      scratch_.joined[i] = to.cluster == c && to.together != kNone ? c : kNone;
      n += scratch_.joined[i] == c ? 1 : 0;
    }
    if (n > 1 && index.is_live(c) && index.count(c) == n) store_.learn_again(lane, c, run, scratch_.joined);
  }
}

// A cluster on disk is cut at once where the policy asks for it and the pages of DRAM can hold it beside others.
bool Admission::splits_now(int lane, ClusterId c) const {
  int slots = 0;
  for (int t = 0; t < store_.tiers().size(); ++t)
    if (!store_.tiers().is_disk(t)) slots += store_.tiers().spec(t).slots;
  return needs_.group.eager_splits && 2 * store_.slots_to_split(lane, c) <= slots;
}

// The labels were made before this batch opened clusters of its own: a token may belong to one of those.
void Admission::join_opened(int lane, int i, const Run& token) {
  const ClusterIndex& index = store_.index(lane);
  const Placement to = scratch_.labels.at(i);
  const auto opened = scratch_.labels.opened();
  if (to.cluster != Placement::kOpen || to.together != kNone || opened.empty() || !index.has_means()) return;
  AssignArgs args = index.against_means(plan_.store.value_weight);
  args.k = token.k;
  args.v = token.v;
  args.items = 1;
  args.rows = opened.data();
  args.n_rows = static_cast<int>(opened.size());
  ClusterId best = kNone;
  float similarity = 0;
  args.best = &best;
  args.similarity = &similarity;
  ops_.for_host().assign(args);
  if (best != kNone && 2 - 2 * similarity <= policy_.radius(lane)) scratch_.labels.set(i, best);
}

Admission::Filed Admission::try_file(int lane, int i, const Run& token, const Batch& batch) {
  const ClusterIndex& index = store_.index(lane);
  const Placement to = scratch_.labels.at(i);
  const int32_t number = batch.frame.number;
  ClusterId made = kNone;
  if (to.cluster == Placement::kOpen) {
    const Short missing = store_.open(lane, batch.scene, token, number, &made, to.tag);
    if (missing == Short::kNothing) scratch_.labels.opened_for(i, made);
    return {missing};
  }
  if (!to.keep) {
    store_.absorb(lane, to.cluster, token, number);
    return {};
  }
  const bool grows_too_wide = index.has_means() && store_.variance_with(lane, to.cluster, token.k, token.v) >
                                                       policy_.tolerance(lane, index.count(to.cluster) + 1);
  if (!grows_too_wide) return {store_.append(lane, to.cluster, token, number)};
  const bool later = index[to.cluster].disk_pages > 0 && !splits_now(lane, to.cluster);
  const int slots = later ? 3 : store_.slots_to_split(lane, to.cluster);
  const Short missing = later ? store_.defer(lane, to.cluster, token, number, &made)
                              : store_.split(lane, to.cluster, token, number, &made);
  if (missing == Short::kNothing) scratch_.labels.note_opened(made);
  return {missing, slots};
}

void Admission::file(int lane, int i, const Batch& batch) {
  const size_t at = first_number(plan_, lane) + static_cast<size_t>(i) * static_cast<size_t>(plan_.store.page.row());
  const Run token{scratch_.k + at, scratch_.v + at, scratch_.meta + i, 1};
  for (int attempt = 0; attempt < kAttempts && scratch_.labels.at(i).cluster != Placement::kDrop; ++attempt) {
    join_opened(lane, i, token);
    const Filed filed = try_file(lane, i, token, batch);
    if (filed.missing == Short::kNothing) return;
    const auto kind = filed.missing == Short::kSlots ? Need::Kind::kSlots : Need::Kind::kClusters;
    if (!make_room({kind, lane, filed.slots, batch.frame.number})) break;
  }
  // No room could be made: the nearest summary takes it, or it is dropped; both are counted.
  const ClusterId nearest = scratch_.labels.at(i).cluster;
  if (nearest >= 0 && plan_.attends_means) {
    store_.absorb(lane, nearest, token, batch.frame.number);
  } else {
    store_.drop_tokens(1);
  }
}

// Single tokens that merge need pages. With a disk, room for those is made first, or they would be collapsed.
void Admission::make_room_to_merge(const Need& need) {
  const int wanted =
      std::max(2, std::min({store_.index(need.lane).capacity() / 10 + 1, kMergeSlots, store_.tiers().spec(0).slots}));
  for (int before = -1; store_.can_spill() && store_.free_slots() < wanted && store_.free_slots() != before;) {
    before = store_.free_slots();
    make_room({Need::Kind::kSlots, need.lane, wanted, need.frame});
  }
}

bool Admission::make_room(const Need& need) {
  if (need.kind == Need::Kind::kSlots) {  // what is on its way to the disk makes room before anything else yields
    while (store_.free_slots() < need.amount && store_.spilling() > 0) store_.poll_spills(true);
    if (store_.free_slots() >= need.amount) return true;
  }
  if (need.kind == Need::Kind::kClusters && needs_.group.by_token) make_room_to_merge(need);
  const int n = policy_.evict(store_, need, scratch_.evictions, Scratch::kEvictions);
  for (int i = 0; i < n;) i += carry_out({scratch_.evictions + i, static_cast<size_t>(n - i)});
  // Slots that go to disk come free when their write is done.
  if (need.kind == Need::Kind::kSlots && store_.free_slots() < need.amount) store_.poll_spills(true);
  return n > 0;
}

// The first, and those behind it that are thinned with it. Returns how many.
int Admission::carry_out(std::span<const Eviction> evictions) {
  std::array<ClusterStore::Thinning, ClusterStore::kThinned> thinned;
  size_t n = 0;
  for (; n < std::min(evictions.size(), thinned.size()) && evictions[n].kind == Eviction::Kind::kThin; ++n)
    thinned[n] = {evictions[n].lane, evictions[n].cluster, evictions[n].keep};
  if (n > 0) {
    store_.thin(std::span(thinned).first(n));
  } else {
    carry_out(evictions[0]);
    n = 1;
  }
  for (const Eviction& eviction : evictions.first(n)) scratch_.labels.follow(eviction);
  return static_cast<int>(n);
}

void Admission::carry_out(const Eviction& eviction) {
  switch (eviction.kind) {
    case Eviction::Kind::kDemote:
      store_.demote(eviction.lane, eviction.cluster, eviction.tier);
      return;
    case Eviction::Kind::kThin:
      return;  // with others
    case Eviction::Kind::kCollapse:
      return store_.collapse(eviction.lane, eviction.cluster);
    case Eviction::Kind::kMerge:
      return store_.merge(eviction.lane, eviction.cluster, eviction.other);
    case Eviction::Kind::kDrop:
      return store_.drop(eviction.lane, eviction.cluster);
  }
}

}  // namespace mosaic
