// Selector: what a block reads of window and store, one BlockSelection for each lane. For video tokens of a windowed model
// that is the last frames, for everything else prefix, first frame, selected clusters, summaries and the window; of a policy
// by records prefix, first frame, all of the lane's log and the window, in one selection for all lanes in turn. Disk pages of
// the next layer are asked for while this one computes. Not thread-safe.
#pragma once

#include <vector>

#include "backend/backend.h"
#include "runtime/block_selection.h"
#include "runtime/records.h"
#include "runtime/staging.h"
#include "store/cluster_store.h"

namespace mosaic {

enum class BlockKind : uint8_t { kNone, kFrame, kPrefix, kQuestion };

// The block that is being attended, as selection sees it.
struct Reader {
  BlockKind kind = BlockKind::kNone;
  int tokens = 0;
  int lead = 0;               // of a question's tokens, the first that are its template's,
  int trail = 0;              // and the last
  Since since;                // what is older is not read
  int32_t next_position = 0;  // original, of the token after the stream's last
};

class Selector {
 public:
  Selector(const Plan& plan, Policy& policy, Backend& backend, Window& window, ClusterStore& store,
           std::optional<Records>& records, Staging& staging, SelectionScratch& scratch,
           std::vector<BlockSelection>& selections)
      : plan_(plan),
        reads_query_(policy.needs().reads_query()),
        selects_(policy.needs().selects()),
        newest_(policy.needs().read.newest),
        query_(policy.needs().read.query),
        policy_(policy),
        backend_(backend),
        window_(window),
        store_(store),
        records_(records),
        staging_(staging),
        scratch_(scratch),
        selections_(selections) {}

  // What the lane reads for this block with query q, chosen when it has not been since the last clear(), complete with the
  // dialogue and every page where it lies now.
  BlockSelection& ready(int lane, const Reader& reader, const float* q);
  // Before ready() is asked for lanes side by side: copies of what they read on disk, for all of them at once, where those
  // of other lanes were written over them.
  void fetch_recalled(int first, int lanes, BlockKind kind);
  // What ready() gave for the lane.
  BlockSelection& selection(int lane, BlockKind kind) {
    const bool kept = reads_kept(kind);
    if (!scratch_.apart && (records_ || kept)) return selections_[kept ? static_cast<size_t>(plan_.window.lanes) : 0];
    return selections_[static_cast<size_t>(lane + (kept ? plan_.window.lanes : 0))];
  }
  // Whether the lanes' selections stand beside each other, so that lanes can be attended together.
  bool stand_apart() const { return scratch_.apart && store_.tiers().spill() == nullptr; }
  void clear() {
    for (BlockSelection& s : selections_) s.clear();
    if (records_) records_->forget_recalled();
  }
  int64_t unread_pages() const { return unread_pages_; }  // chosen, but no room to read them, or lost
  void serialize(Snapshot& s) { s.item(unread_pages_); }  // choices are made anew

 private:
  const ModelShape& model() const { return plan_.config.model; }
  bool attends_means() const { return plan_.attends_means && plan_.config.summaries; }
  void select_window(int lane, const Reader& reader);
  // A frame that reads what is kept: from a table of its own.
  bool reads_kept(BlockKind kind) const { return plan_.frame_tokens > 0 && kind == BlockKind::kFrame; }
  BlockSelection* begin(int lane, const Reader& reader);
  void add_newest_frames(BlockSelection* s, int lane, const Reader& reader);
  void select_stored(int lane, const Reader& reader, const float* q);
  void select_records(int lane, const Reader& reader);
  void finish(BlockSelection* s, int lane);
  void read_everything(BlockSelection* s, int lane, const Reader& reader);
  void read_kept(BlockSelection* s, int lane);
  void read_chosen(BlockSelection* s, int lane, const Reader& reader, const float* q);
  // The policy's choice, best first. It stands in the scratch until the next one is made.
  SelectResult choose_clusters(int lane, const Reader& reader, const float* q);
  void keep_within(const ClusterIndex& index, int max_tokens, SelectResult* result) const;
  void request_ahead(int lane, const Reader& reader, const float* q);
  void add_strip(BlockSelection* s, int lane, Strip strip, int tokens, int frame = 0);
  void add_cluster(BlockSelection* s, int lane, ClusterId c, Since since, bool from_disk = true);
  int add_page(BlockSelection* s, PageId id, Since since);
  void append_branch(BlockSelection* s, int lane, int32_t next_position);
  void resolve(BlockSelection* s);

  const Plan& plan_;
  const bool reads_query_, selects_;
  const int newest_;  // tokens that a frame reads of what is kept
  const PolicyNeeds::Reading::Query query_;
  Policy& policy_;
  Backend& backend_;
  Window& window_;
  ClusterStore& store_;
  std::optional<Records>& records_;
  Staging& staging_;
  SelectionScratch& scratch_;
  std::vector<BlockSelection>& selections_;  // as in Parts
  int64_t unread_pages_ = 0;
};

}  // namespace mosaic
