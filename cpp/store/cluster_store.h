// ClusterStore: the capped KV store. Tokens live in pages, pages belong to clusters, clusters to a lane and a scene;
// pages lie in the tiers of a chain (exact > quantised > disk) and clusters are moved, collapsed, merged, split and read
// as units. Everything is taken from one Region when the store is built; when a slot, a page record or a cluster row is
// missing the call says which, changes nothing, and the policy chooses what yields.
//   cluster_store.cc  tokens in, pages and the account      reshape.cc  split, merge, compact; thin.cc  thin
//   movement.cc       demotion, spill and fetch             check.cc    the invariants
//   cluster_store_snapshot.cc  into a file and out of one
//   What is being written to the disk, and when a failing one is left alone, is SpillRing.
// Mechanism, no choices. Not thread-safe: KvMemory's caller holds the lock; only CopyEngine has a thread of its own.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "backend/ops.h"
#include "core/clock.h"
#include "memory/copy_engine.h"
#include "memory/region.h"
#include "memory/spill_file.h"
#include "memory/tier.h"
#include "store/account.h"
#include "store/cluster_index.h"
#include "store/fetch_cache.h"
#include "store/page_table.h"
#include "store/patience.h"
#include "store/run.h"
#include "store/run_scratch.h"
#include "store/scene_table.h"
#include "store/spill_ring.h"

namespace mosaic {

struct StoreShape {
  int lanes = 0;
  int layer_lanes = 1;  // of one layer
  PageShape page;
  ClusterIndex::Shape index;  // of every lane
  int scenes = 0;             // 0: no visual level
  int embedding_dim = 0;
  std::vector<TierSpec> tiers;  // hot to cold
  int fetch_slots = 0;          // read copies of disk pages
  int max_run = 0;              // most tokens that are reshaped at once; most tokens of one batch
  int max_members = 0;          // of one cluster; what joins it beyond is in its summary alone. One with more than
                                // max_run is never split
  std::string spill_dir;        // where the spill file is made, if there is a disk tier
  float value_weight = 0;       // of the metric of clusters (AssignArgs)

  CodecId codec(int tier) const { return tiers[static_cast<size_t>(tier)].codec; }
  Size dram_slots() const {
    Size n;
    for (const TierSpec& tier : tiers) n = n + (tier.medium == Medium::disk ? 0 : tier.slots);
    return n;
  }
  int most_cut() const { return std::min(max_members, max_run); }  // members of the largest cluster that is cut in two
};

// What a call is short of. kNothing means it was done.
enum class Short : uint8_t { kNothing, kSlots, kClusters };

class ClusterStore {
 public:
  // Takes all its memory from the region; on a counting one it has none, and is good for nothing else.
  ClusterStore(Region& region, const StoreShape& shape, Ops& ops, SpillIo* io = nullptr);
  ~ClusterStore();

  // ---- read-only: what a policy sees -------------------------------------------------------------------------------
  const StoreShape& shape() const { return shape_; }
  const ClusterIndex& index(int lane) const { return index_[static_cast<size_t>(lane)]; }
  const SceneTable* scenes() const { return scenes_ ? &*scenes_ : nullptr; }
  const PageTable& pages() const { return pages_; }
  const TierChain& tiers() const { return tiers_; }
  // Slots a new page could take at once, in any DRAM tier.
  int free_slots() const { return tiers_.free_dram_slots(); }
  // True while a spill tier exists, has a free slot and is not left alone after failures.
  bool can_spill() const;
  const TokenAccount& account() const { return account_; }
  const Clock& clock() const { return clock_; }  // of all tokens, those in records and in the window too
  Clock& clock() { return clock_; }
  const StoreCounters& counters() const { return counters_; }
  Ops& ops() const { return ops_; }
  // Pages of a cluster in DRAM tier `tier`.
  int pages_in(int lane, ClusterId c, int tier) const;

  // ---- tokens in ---------------------------------------------------------------------------------------------------
  ClusterIndex& index(int lane) { return index_[static_cast<size_t>(lane)]; }
  SceneTable* scenes() { return scenes_ ? &*scenes_ : nullptr; }
  // Tokens become exact members of c: page and mean. All or nothing. Several have a page's rows in front that are free.
  Short append(int lane, ClusterId c, const Run& token, int32_t frame);
  // A token joins the summary of c only.
  void absorb(int lane, ClusterId c, const Run& token, int32_t frame);
  // A new cluster of these tokens, whole (a frame as a unit); `made` is its id.
  Short open(int lane, SceneId scene, const Run& run, int32_t frame, ClusterId* made, uint8_t tag = 0);
  // c holds tokens of this run and no others, those whose label it is, and learned them one by one: its mean and variance
  // are made anew from all of them, rounded to half once. labels: [n] c or kNone.
  void learn_again(int lane, ClusterId c, const Run& run, const int32_t* labels);
  // Tokens that are kept nowhere.
  void drop_tokens(int n) {
    account_.seen += n;
    account_.dropped += n;
  }
  // Variance c would have with this token.
  float variance_with(int lane, ClusterId c, const float* k, const float* v) const;

  // ---- shape of clusters (reshape.cc) ------------------------------------------------------------------------------
  // Cut c, with one more token, in two by 2-means. The part nearer to the summary keeps the id. The token is filed.
  // Pages on disk are fetched first; where the fetch cache cannot hold them all, the split is deferred instead.
  Short split(int lane, ClusterId c, const Run& token, int32_t frame, ClusterId* made);
  // Free slots that split() asks for: pages that come back from disk, and a partial one on either side.
  int slots_to_split(int lane, ClusterId c) const;
  // Put a token that a spilled cluster could not absorb into its resident buffer (deferred split).
  Short defer(int lane, ClusterId c, const Run& token, int32_t frame, ClusterId* made);
  // Join a pending cluster with its buffer and split it. False if there was no room or nothing pending.
  bool settle(int lane, ClusterId c, int32_t frame);
  // `from` joins `into`, members and summary; `from` is gone.
  void merge(int lane, ClusterId into, ClusterId from);
  void merge_scenes(SceneId into, SceneId from);

  // ---- yielding and moving (movement.cc) ---------------------------------------------------------------------------
  // Move the pages of c that lie in `tier` one tier down. False if nothing moved.
  bool demote(int lane, ClusterId c, int tier);
  // Members with keep[i] == 0 go (into the summary, if there is one), i counted along the cluster's pages; what stays is
  // packed. Pages on disk or on their way there stay whole.
  struct Thinning {
    int lane;
    ClusterId cluster;
    const uint8_t* keep;
  };
  void thin(std::span<const Thinning> clusters);
  static constexpr int kThinned = 32;  // of them go to the kernels together
  // Members go, the summary stays.
  void collapse(int lane, ClusterId c);
  // The cluster goes, summary and all.
  void drop(int lane, ClusterId c);
  // Take in background writes: those that were queued before the last poll, or, with wait, the oldest ones until a slot
  // came free or none is under way. Blocks when the disk is slower than that.
  void poll_spills(bool wait);
  int spilling() const { return spills_ ? spills_->size() : 0; }  // writes under way
  // Ask for a page to be readable; DRAM pages already are. False: no room in the fetch cache now, or the disk rests.
  bool request(PageId page);
  // A page for reading, waiting for its copy; without data if it was lost (counted, and the page removed).
  PageView resident(PageId page, CodecId* codec);
  void unpin_all() { fetch_.unpin_all(); }
  void drain();

  SpillCounters disk() const { return tiers_.spill() != nullptr ? tiers_.spill()->counters() : SpillCounters{}; }
  CopyStats copies() const { return copies_ ? copies_->stats() : CopyStats{}; }
  // Between blocks, nothing pinned: clusters, and the pages of each where they lie; slots and ids of pages
  // are given anew. Saving leaves everything as it was, writes that are under way too.
  void serialize(Snapshot& s, RestoredPage* room);
  void check_invariants() const;

 private:
  struct PageState;  // of one page in a snapshot
  void save_page(Snapshot& s, PageId id, RestoredPage* room);
  void restore_page(Snapshot& s, int lane, ClusterId c, RestoredPage* room);
  void restore_dram_page(Snapshot& s, const PageState& state, SlotId slot, RestoredPage* room);
  void restore_disk_page(Snapshot& s, const PageState& state, SlotId slot, PageId id, RestoredPage* room);
  size_t row() const { return static_cast<size_t>(shape_.page.row()); }
  // The counter of an account that tokens of a tier stand in.
  int64_t& counter_in(TokenAccount& account, int tier) const;
  int64_t& counter_of(int tier) { return counter_in(account_, tier); }
  bool mean_may_hold_token(int lane) const;
  bool holds_token_in_mean(int lane, ClusterId c) const;
  // Members of c are no longer in pages: n tokens stand in its mean now, or nowhere.
  void account_unpaged(int lane, ClusterId c, int n);
  void update(int lane, const Run& run, const int32_t* labels);
  void learn(int lane, ClusterId c, const Run& run, int32_t frame);
  void note_times(Page* page, const TokenMeta* meta, int n) const;
  Short materialise(int lane, ClusterId c);
  Short add_row(int lane, ClusterId c, const Run& token);
  // New pages for rows of a run at the tail of c's chain; the caller has checked free_slots().
  void write_pages(int lane, ClusterId c, const Run& run);
  void release_page(PageId page);
  void release_pages(int lane, ClusterId c);
  int read_members(int lane, ClusterId c);
  void compact(int lane, ClusterId c);
  void thin_one(const Thinning& t);
  void make_room_to_list(const Thinning& t);
  void list_page(const Page& page, const uint8_t* wanted);
  void pack_listed();
  PageId next_open(PageId id) const;
  void release_emptied(Cluster* cluster, PageId to);
  ClusterId cut(int lane, ClusterId c, int n, int32_t frame);
  bool spill(PageId page);
  bool finish_spill();
  void lose(PageId page);

  StoreShape shape_;
  Clock clock_;
  Ops& ops_;
  TierChain tiers_;
  PageTable pages_;
  FetchCache fetch_;
  std::vector<ClusterIndex> index_;
  std::optional<SceneTable> scenes_;
  RunScratch run_;
  // Where kernels have memory of their own: pages of clusters that are thinned together, and which of them are a cluster's.
  PackPage* packed_ = nullptr;  // [pages of DRAM]
  int packed_pages_ = 0;
  std::array<PackArgs, kThinned> packing_;
  size_t n_packing_ = 0;
  TokenAccount account_;
  StoreCounters counters_;
  static constexpr int kCopyQueue = 128;
  std::optional<SpillRing> spills_;  // where there is a disk
  Patience reading_;
  // Last, so that its thread stops before what it writes to goes.
  std::optional<CopyEngine> copies_;
};

}  // namespace mosaic
