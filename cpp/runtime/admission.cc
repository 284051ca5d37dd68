// What is kept: the oldest frame leaves the window, the policy places its tokens, and when the store is short of
// something the policy says what yields until there is room. Every token ends in the account.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/trace.h"
#include "runtime/kv_memory.h"

namespace mosaic {

// A policy that lets nothing go refuses before the frame begins, so that a refusal changes nothing.
void KvMemory::refuse_frame_without_room() {
  if (!policy_->needs().refuses || window_.frames() < plan_.window.frames || !window_.has_first_frame()) return;
  const int pages = pages_for(window_.frame(0).tokens) * lanes();
  while (store_.free_slots() < pages && store_.spilling() > 0) store_.poll_spills(true);  // each frees a slot
  uint64_t have = 0;
  int free = 0;
  for (int t = 0; t < store_.tiers().size(); ++t) {
    have += store_.tiers().capacity_bytes(t);
    if (!store_.tiers().is_disk(t) || store_.can_spill()) free += store_.tiers().free_slots(t);
  }
  if (free >= pages && !store_.index(0).full()) return;
  throw MemoryCapError(std::string("policy ") + policy_->name() + ": frame " + std::to_string(frames_) + " needs " +
                       std::to_string(pages) + " pages (" +
                       format_bytes(static_cast<uint64_t>(pages) * store_.tiers().slot_bytes(0)) + "); " +
                       format_bytes(plan_.config.cap_bytes) + " cap, all " + format_bytes(have) +
                       " of its pages hold earlier frames. Raise memory=, or choose a policy that yields.");
}

SceneId KvMemory::scene_of(const float* embedding) {
  SceneTable* scenes = store_.scenes();
  if (scenes == nullptr) return kNone;
  const SceneId scene = policy_->scene(store_, embedding);
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

void KvMemory::admit_oldest() {
  const trace::Span span("admit");
  const WindowFrame frame = window_.frame(0);
  if (!window_.has_first_frame()) {
    window_.keep_first_frame(*backend_.ops);
    if (records_) records_->skip();
    window_.pop();
    return;
  }
  if (records_) {
    records_->admit(window_, scratch_);
    window_.pop();
    return;
  }
  const auto leave = [&] {
    for (int i = 0; i < plan_.block_frames; ++i) window_.pop();
  };
  filed_ = 0;
  try {
    const SceneId scene = scene_of(window_.embedding(0));
    if (policy_->needs().by_token) {
      for (int lane = 0; lane < lanes(); ++lane) admit_tokens(lane, frame, scene);
    } else {
      admit_whole(frame, scene);
    }
  } catch (...) {
    // A policy written elsewhere may throw. The window is full, so the frame leaves all the same: what of it the store
    // has not taken is dropped and counted, the newest frame is in, and the stream may go on.
    int64_t tokens = 0;
    for (int i = 0; i < plan_.block_frames; ++i) tokens += window_.frame(i).tokens;
    store_.drop_tokens(static_cast<int>(tokens * lanes() - filed_));
    leave();
    throw;
  }
  leave();
}

// The oldest frames of the window, as many as leave together, one behind the other in the scratch.
int KvMemory::read_block(int lane) {
  const auto row = static_cast<size_t>(plan_.store.page.row());
  int rows = 0;
  for (int f = 0; f < plan_.block_frames; ++f) {
    const int tokens = window_.frame(f).tokens;
    if (plan_.window.received) std::copy_n(window_.received(lane, f), tokens, scratch_.received + rows);
    backend_.ops->decode_run(plan_.window.codec, plan_.store.page, window_.page(Strip::kFrame, lane, 0, f).data,
                             window_.page_pitch(), tokens, scratch_.k + static_cast<size_t>(rows) * row,
                             scratch_.v + static_cast<size_t>(rows) * row, row);
    for (int at = 0, page = 0; at < tokens; at += kPageTokens, ++page) {
      const PageView view = window_.page(Strip::kFrame, lane, page, f);
      const int n = std::min(kPageTokens, tokens - at);
      std::memcpy(scratch_.meta + rows, view.meta, static_cast<size_t>(n) * sizeof(TokenMeta));
      rows += n;
    }
  }
  backend_.ops->wait();
  return rows;
}

void KvMemory::admit_whole(const WindowFrame& frame, SceneId scene) {
  AdmitBlock block;
  block.lane = -1;
  block.frame = frame.number;
  block.scene = scene;
  const auto kept = [&] {
    policy_->admit(store_, block, scratch_.placement);
    return scratch_.placement[0].cluster != Placement::kDrop;
  };
  // A frame is kept in every lane or in none: room for all of it is made first. Making room may change the policy's mind.
  const int pages = pages_for(frame.tokens) * lanes();
  bool fits = kept();
  int idle = 0;
  while (fits) {
    bool clusters = false;
    for (int lane = 0; lane < lanes(); ++lane) clusters |= store_.index(lane).full();
    if (!clusters && store_.free_slots() >= pages) break;
    const Need need{clusters ? Need::Kind::kClusters : Need::Kind::kSlots, 0, pages, frame.number};
    const int slots = store_.free_slots();
    fits = relieve(need, 0, 0) && kept();
    // What a policy gives up must make room in the end.
    idle = clusters || store_.free_slots() > slots ? 0 : idle + 1;
    fits = fits && idle < 64;
  }
  if (!fits) {
    store_.drop_tokens(frame.tokens * lanes());
    return;
  }
  for (int lane = 0; lane < lanes(); ++lane) {
    const int n = read_block(lane);
    ClusterId made = kNone;
    const Short s = store_.open(lane, scene, {scratch_.k, scratch_.v, scratch_.meta, n}, frame.number, &made);
    if (s != Short::kNothing) store_.drop_tokens(n);
    filed_ += n;
  }
}

// New pages are born exact while the hottest tier has room; older pages make it by going one tier down.
void KvMemory::keep_hot_slots(int lane, const WindowFrame& frame) {
  if (store_.tiers().size() < 2 || store_.tiers().is_disk(1)) return;
  const int wanted = std::min(std::max(frame.tokens / 4, 1), std::max(store_.tiers().spec(0).slots / (2 * lanes()), 1));
  const int missing = wanted - store_.tiers().free_slots(0);
  if (missing > 0) relieve({Need::Kind::kHotSlots, lane, missing, frame.number}, 0, 0);
}

void KvMemory::admit_tokens(int lane, const WindowFrame& frame, SceneId scene) {
  keep_hot_slots(lane, frame);
  const int n = read_block(lane);
  policy_->admit(store_,
                 {lane,
                  {scratch_.k, scratch_.v, scratch_.meta, n},
                  frame.number,
                  plan_.block_frames,
                  scene,
                  plan_.window.received ? scratch_.received : nullptr},
                 scratch_.placement);
  fresh_count_ = 0;
  for (int i = 0; i < n; ++i) {
    place(lane, i, n, frame, scene);
    ++filed_;
  }
}

// A cluster on disk is cut at once where the policy asks for it and the pages of DRAM can hold it beside others.
bool KvMemory::splits_now(int lane, ClusterId c) const {
  int slots = 0;
  for (int t = 0; t < store_.tiers().size(); ++t)
    if (!store_.tiers().is_disk(t)) slots += store_.tiers().spec(t).slots;
  return policy_->needs().eager_splits && 2 * store_.slots_to_split(lane, c) <= slots;
}

void KvMemory::place(int lane, int i, int n, const WindowFrame& frame, SceneId scene) {
  const auto row = static_cast<size_t>(plan_.store.page.row());
  const Run token{scratch_.k + static_cast<size_t>(i) * row, scratch_.v + static_cast<size_t>(i) * row,
                  scratch_.meta + i, 1};
  ClusterIndex& index = store_.index(lane);
  Placement& to = scratch_.placement[i];
  ClusterId made = kNone;  // by the last call
  const auto note_new = [&](Short s) {
    if (s == Short::kNothing && made != kNone && fresh_count_ < n) scratch_.fresh[fresh_count_++] = made;
    return s;
  };
  for (int attempt = 0; attempt < 16; ++attempt) {
    if (to.cluster == Placement::kDrop) break;
    if (to.cluster == Placement::kOpen && to.together == kNone && fresh_count_ > 0 && index.has_means()) {
      // The labels were made before this frame opened clusters of its own: it may belong to one of those.
      AssignArgs args = index.against_means(plan_.store.value_weight);
      args.k = token.k;
      args.v = token.v;
      args.items = 1;
      args.rows = scratch_.fresh;
      args.n_rows = fresh_count_;
      ClusterId best = kNone;
      float similarity = 0;
      args.best = &best;
      args.similarity = &similarity;
      backend_.ops->for_host().assign(args);
      if (best != kNone && 2 - 2 * similarity <= policy_->reach(lane)) to.cluster = best;
    }
    Short s = Short::kNothing;
    made = kNone;
    int slots = 1;
    if (to.cluster == Placement::kOpen) {
      s = note_new(store_.open(lane, scene, token, frame.number, &made, to.tag));
      for (int j = i; j < n && s == Short::kNothing && to.together != kNone; ++j)
        if (scratch_.placement[j].together == to.together && scratch_.placement[j].cluster == Placement::kOpen)
          scratch_.placement[j].cluster = made;
    } else if (!to.keep) {
      store_.absorb(lane, to.cluster, token, frame.number);
    } else if (index.has_means() && store_.variance_with(lane, to.cluster, token.k, token.v) >
                                        policy_->tolerance(lane, index.count(to.cluster) + 1)) {
      const bool later = index[to.cluster].disk_pages > 0 && !splits_now(lane, to.cluster);
      slots = later ? 3 : store_.slots_to_split(lane, to.cluster);  // what it may need at once
      s = later ? note_new(store_.defer(lane, to.cluster, token, frame.number, &made))
                : note_new(store_.split(lane, to.cluster, token, frame.number, &made));
    } else {
      s = store_.append(lane, to.cluster, token, frame.number);
    }
    if (s == Short::kNothing) return;
    const Need need{s == Short::kSlots ? Need::Kind::kSlots : Need::Kind::kClusters, lane, slots, frame.number};
    if (!relieve(need, i, n)) break;
  }
  // No room could be made: the nearest summary takes it, or it is dropped; both are counted.
  if (to.cluster >= 0 && plan_.summaries) {
    store_.absorb(lane, to.cluster, token, frame.number);
  } else {
    store_.drop_tokens(1);
  }
}

constexpr int kMergeSlots = 2 * kAssignItems;  // of the pairs that merge at a time

bool KvMemory::relieve(Need need, int first_label, int labels) {
  if (need.kind == Need::Kind::kSlots) {  // what is on its way to the disk makes room before anything else yields
    while (store_.free_slots() < need.amount && store_.spilling() > 0) store_.poll_spills(true);
    if (store_.free_slots() >= need.amount) return true;
  }
  if (need.kind == Need::Kind::kClusters && policy_->needs().by_token) {
    // Single tokens that merge need pages. With a disk, room for those is made first, or they would be summarised.
    const int wanted =
        std::max(2, std::min({store_.index(need.lane).capacity() / 10 + 1, kMergeSlots, store_.tiers().spec(0).slots}));
    for (int before = -1; store_.can_spill() && store_.free_slots() < wanted && store_.free_slots() != before;) {
      before = store_.free_slots();
      relieve({Need::Kind::kSlots, need.lane, wanted, need.frame}, first_label, labels);
    }
  }
  const int n = policy_->relieve(store_, need, scratch_.relief, FrameScratch::kReliefs);
  for (int i = 0; i < n; ++i)  // labels are of the lane that asked
    carry_out(scratch_.relief[i], first_label, scratch_.relief[i].lane == need.lane ? labels : 0);
  // Slots that go to disk come free when their write is done.
  if (need.kind == Need::Kind::kSlots && store_.free_slots() < need.amount) store_.poll_spills(true);
  return n > 0;
}

void KvMemory::carry_out(const Relief& relief, int first_label, int labels) {
  switch (relief.kind) {
    case Relief::Kind::kDemote:
      store_.demote(relief.lane, relief.cluster, relief.tier);
      return;
    case Relief::Kind::kThin:
      store_.thin(relief.lane, relief.cluster, relief.keep);
      return;
    case Relief::Kind::kSummarise:
      store_.summarise(relief.lane, relief.cluster);
      return;
    case Relief::Kind::kMerge:
      store_.merge(relief.lane, relief.cluster, relief.other);
      break;
    case Relief::Kind::kDrop:
      store_.drop(relief.lane, relief.cluster);
      break;
  }
  if (labels == 0) return;
  // Labels of the frame in hand that name a cluster that is gone.
  const bool merged = relief.kind == Relief::Kind::kMerge;
  const ClusterId gone = merged ? relief.other : relief.cluster;
  for (int i = first_label; i < labels; ++i)
    if (scratch_.placement[i].cluster == gone)
      scratch_.placement[i].cluster = merged ? relief.cluster : Placement::kOpen;
  for (int i = 0; i < fresh_count_;) {  // two of them may have merged into one: it stands here twice
    if (scratch_.fresh[i] != gone) {
      ++i;
    } else if (merged) {
      scratch_.fresh[i++] = relief.cluster;
    } else {
      scratch_.fresh[i] = scratch_.fresh[--fresh_count_];
    }
  }
}

// The oldest turns of the dialogue leave until `tokens` more fit.
void KvMemory::shift_dialogue(int tokens) {
  int gone = 0, turns = 0;
  while (turns < turn_count_ && window_.branch_tokens - gone + tokens > plan_.config.branch_tokens)
    gone += turns_[turns++];
  std::copy(turns_ + turns, turns_ + turn_count_, turns_);
  turn_count_ -= turns;
  dropped_dialogue_ += gone;
  const int left = window_.branch_tokens - gone;
  const auto row = static_cast<size_t>(plan_.store.page.row());
  const CodecId codec = plan_.window.codec;
  for (int lane = 0; lane < lanes(); ++lane) {
    for (int i = 0; i < left; ++i) {
      const PageView from = window_.page(Strip::kBranch, lane, (gone + i) / kPageTokens);
      const PageView to = window_.page(Strip::kBranch, lane, i / kPageTokens);
      const int at = (gone + i) % kPageTokens;
      backend_.ops->decode(codec, plan_.store.page, from.data, at, at + 1, scratch_.k, scratch_.v, row);
      backend_.ops->encode_row(codec, plan_.store.page, scratch_.k, scratch_.v, i % kPageTokens, to.data);
      to.meta[i % kPageTokens] = from.meta[at];
    }
  }
  window_.branch_tokens = left;
  question_start_ -= gone;
}

}  // namespace mosaic
