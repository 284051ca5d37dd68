#include "policy/retrieval.h"

#include <algorithm>
#include <cmath>

namespace mosaic {

int score_clusters(const ClusterStore& store, const SelectQuery& query, ScoreMode mode, const SelectScratch& scratch) {
  const ClusterIndex& index = store.index(query.lane);
  int n = 0;
  for (const ClusterId c : index.live())
    if (index[c].last_time >= query.since_ms) scratch.rows[n++] = c;
  std::sort(scratch.rows, scratch.rows + n);
  score_rows(store, query, mode, n, scratch);
  return n;
}

void score_rows(const ClusterStore& store, const SelectQuery& query, ScoreMode mode, int n,
                const SelectScratch& scratch) {
  const ClusterIndex& index = store.index(query.lane);
  for (int i = 0; i < n; ++i) scratch.bias[i] = std::log(static_cast<float>(index.count(scratch.rows[i])));
  ScoreArgs args;
  args.q = query.q;
  args.tokens = query.tokens;
  args.q_heads = query.q_heads;
  args.q_stride = query.q_stride;
  args.shape = store.shape().page;
  args.scale = query.scale;
  args.mode = mode;
  args.mean_k = index.mean_k();
  args.rows = scratch.rows;
  args.row_bias = scratch.bias;
  args.n_rows = n;
  args.score = scratch.score;
  store.ops().score(args);
}

void take_best(const ClusterStore& store, const SelectQuery& query, int n, int most, const SelectScratch& scratch,
               SelectResult* result) {
  const ClusterIndex& index = store.index(query.lane);
  const int order = store.ops().top_k(scratch.score, n, n, result->chosen);
  int tokens = 0;
  result->n = 0;
  for (int i = 0; i < order && (most == 0 || result->n < most); ++i) {
    const int at = result->chosen[i];
    const ClusterId c = scratch.rows[at];
    if (tokens + index[c].paged > query.max_tokens) continue;
    tokens += index[c].paged;
    result->score[result->n] = scratch.score[at];
    result->chosen[result->n++] = c;
  }
}

SettingReader& read_frames_read(SettingReader& reader, PolicyNeeds::Reading* read) {
  using Frames = PolicyNeeds::Reading::Frames;
  constexpr int kNewest = 15'000;  // ReKV's window
  int choice = 0, newest = kNewest;
  reader.choice("frames_read", &choice, {"kept", "newest", "chosen"}).number("newest_tokens", &newest, 1, 1 << 24);
  read->by_frames = choice == 2 ? Frames::kChosen : Frames::kKept;
  read->newest = choice == 1 ? newest : PolicyNeeds::kAll;
  return reader;
}

SettingReader& read_query(SettingReader& reader, PolicyNeeds::Reading* read) {
  using Query = PolicyNeeds::Reading::Query;
  int choice = 0;
  reader.choice("query", &choice, {"question", "last", "mean"});
  read->query = choice == 0 ? Query::kQuestion : choice == 1 ? Query::kLast : Query::kAll;
  return reader;
}

SettingReader& read_score(SettingReader& reader, ScoreMode* mode) {
  int choice = *mode == ScoreMode::kMass ? 0 : 1;
  reader.choice("score", &choice, {"mass", "dot"});
  *mode = choice == 0 ? ScoreMode::kMass : ScoreMode::kDot;
  return reader;
}

}  // namespace mosaic
