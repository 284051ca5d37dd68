// What policies that retrieve share: score every cluster of a lane against a question, and take the best ones within the
// budget of tokens. The policy says how clusters are scored and what a cluster's reading costs.
#pragma once

#include "policy/policy.h"

namespace mosaic {

// Clusters of the lane that `since` allows, ids in rising order into scratch.rows, their score into scratch.score; kMass
// weighs each by its count. Returns how many. The policy's clusters must have means. Scores may be queued: an op that is
// asked for next finds them, the host does after Ops::wait().
int score_clusters(const ClusterStore& store, const SelectQuery& query, ScoreMode mode, const SelectScratch& scratch);

// The same for the n clusters in scratch.rows, in whatever order they stand.
void score_rows(const ClusterStore& store, const SelectQuery& query, ScoreMode mode, int n,
                const SelectScratch& scratch);

// Of the n scored rows the best, in falling order, as long as their members fit in query.max_tokens; one that does not fit
// is left to its summary and smaller ones after it may still be taken. At most `most` of them (0: no limit).
void take_best(const ClusterStore& store, const SelectQuery& query, int n, int most, const SelectScratch& scratch,
               SelectResult* result);

// Reads "frames_read": kept, newest (of it, the newest `newest_tokens`) or chosen as for a question.
SettingReader& read_frames_read(SettingReader& reader, PolicyNeeds::Reading* read);

// Reads "query": question (its bare tokens), last (the last of them) or mean (of all, the template's too).
SettingReader& read_query(SettingReader& reader, PolicyNeeds::Reading* read);

// Reads "score": mass (attention mass per head and question token) or dot (mean query, dot product).
SettingReader& read_score(SettingReader& reader, ScoreMode* mode);

}  // namespace mosaic
