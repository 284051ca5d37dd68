// edge, unit="summaries": Mosaic's nested clusters taken to their end, for a hard cap: many fine clusters of tokens in normalised
// [key; value] space, without scenes above them, whose summaries (mean key, mean value, + log count) are the memory.
//   admit    a token joins the nearest cluster within the radius, else opens one; at capacity the closest pair merges, one
//            pair at a time, and the radius rises to their distance. What is alike costs one row however often it comes;
//            what is rare keeps a row of its own.
//   select   clusters by attention mass per head and question token over their summaries; only the best are attended,
//            so that a long stream neither dilutes the answer nor delays it.
//   evict  nearly all bytes are summaries. Where there is a disk (`members`) up to a page of members is kept for each
//            cluster besides, goes to disk and is read for the clusters that were selected.
#include <algorithm>

#include "policy/clustering.h"
#include "policy/edge_summaries.h"
#include "policy/retrieval.h"
#include "policy/yielding.h"

namespace mosaic {

namespace {

enum class Members : uint8_t {
  kDisk,    // members are kept where there is a disk for them
  kAlways,  // and without one, in pages of DRAM
  kNever,   // every byte is a summary's
};

struct SummarySettings {
  Members members = Members::kDisk;
  float share = 0.9f;      // of the bytes for summaries, where members are kept
  int frames = 6;          // summaries attended for a question, the best, in frames' worth of tokens; 0: all
  float value_weight = 1;  // of values beside keys in the metric; 0: keys alone
  float radius = 0.02f;    // where the joining distance starts
  ScoreMode score = ScoreMode::kMass;
};

class EdgeOfSummaries final : public Policy {
 public:
  explicit EdgeOfSummaries(const SummarySettings& settings) : s_(settings) {}
  const char* name() const override { return "edge"; }
  PolicyNeeds needs() const override {
    PolicyNeeds needs;
    needs.group.by_token = true;
    needs.group.value_weight = s_.value_weight;
    needs.means = PolicyNeeds::Means::kAttended;
    needs.read.of = PolicyNeeds::Reading::Of::kChosen;
    needs.read.summary_frames = s_.frames > 0 ? s_.frames : PolicyNeeds::kAll;
    needs.share.index = s_.share;
    needs.share.members = s_.members == Members::kAlways ? kPageTokens
                          : s_.members == Members::kDisk ? PolicyNeeds::kWithDisk
                                                         : 0;
    return needs;
  }

  void bind(const StoreShape& shape, Region& region) override { clustering_.bind(shape, region, s_.radius); }

  void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override {
    clustering_.label(store, batch, out);
    if (store.shape().max_members > 0) return;
    for (int i = 0; i < batch.tokens.n; ++i) out[i].keep = false;
  }
  float radius(int lane) const override { return clustering_.radius(lane); }

  void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
              SelectResult* result) override {
    const ClusterIndex& index = store.index(query.lane);
    int n = score_clusters(store, query, s_.score, scratch);
    n = keep_recent(index, query, n, store.ops(), scratch);
    const int best = store.ops().top_k(scratch.score, n, std::min(query.max_summaries, n), result->chosen);
    // The members of the best are read within the budget; the rest of them are attended as what they are anyway.
    int tokens = 0, rows = 0;
    result->n = 0;
    for (int i = 0; i < best; ++i) {
      const int at = result->chosen[i];
      const ClusterId c = scratch.rows[at];
      const int members = index[c].paged;
      if (members > 0 && tokens + members <= query.max_tokens) {
        tokens += members;
        result->score[result->n] = scratch.score[at];
        result->chosen[result->n++] = c;  // never ahead of i
      } else {
        result->attend[rows++] = c;
      }
    }
    result->attended = rows;
  }

  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    if (need.kind == Need::Kind::kClusters) return clustering_.merge_closest(store, need.lane, out, capacity);
    if (const int n = demote_coldest(store, need, out, capacity); n > 0) return n;
    return need.kind == Need::Kind::kHotSlots ? 0 : collapse_best(store, need.lane, out);
  }
  void serialize(Snapshot& s, const ClusterStore&) override { clustering_.serialize(s); }

 private:
  // A mean over older tokens too is not what `since` asks for.
  static int keep_recent(const ClusterIndex& index, const SelectQuery& query, int scored, Ops& ops,
                         const SelectScratch& scratch) {
    const auto old = [&](ClusterId c) { return index[c].paged == 0 && index[c].first_time < query.since_ms; };
    if (std::none_of(scratch.rows, scratch.rows + scored, old)) return scored;
    ops.wait();  // for the scores
    int n = 0;
    for (int i = 0; i < scored; ++i) {
      if (old(scratch.rows[i])) continue;
      scratch.rows[n] = scratch.rows[i];
      scratch.score[n++] = scratch.score[i];
    }
    return n;
  }

  SummarySettings s_;
  Clustering clustering_;
};

}  // namespace

std::unique_ptr<Policy> make_edge_of_summaries(const PolicySettings& settings) {
  SummarySettings s;
  SettingReader reader("edge", settings);
  int members = 0;
  read_score(reader, &s.score)
      .choice("members", &members, {"disk", "always", "never"})
      .number("share", &s.share, 0.01, 0.99)
      .number("frames", &s.frames, 0, 1 << 10)
      .number("value_weight", &s.value_weight, 0, 100)
      .number("radius", &s.radius, 0, 4)
      .finish();
  s.members = static_cast<Members>(members);
  return std::make_unique<EdgeOfSummaries>(s);
}

}  // namespace mosaic
