// TokenAccount: where every token ever seen is now, counted per lane token (one token of one layer). The sum of the
// others is always `seen`; what was lost to a bad checksum or a failed write is counted where it went, never
// silently.
#pragma once

#include <cstdint>

namespace mosaic {

struct TokenAccount {
  int64_t seen = 0;
  int64_t exact = 0;      // window, exact pages, and clusters of one token (their mean is the token)
  int64_t quantised = 0;  // packed in DRAM: pages, or records of a log (of whatever codec)
  int64_t spilled = 0;    // pages on disk
  int64_t collapsed = 0;  // only in a cluster's mean
  int64_t dropped = 0;
  int64_t total() const { return exact + quantised + spilled + collapsed + dropped; }
};

struct StoreCounters {
  int64_t splits = 0;
  int64_t deferred_splits = 0;  // put off because the cluster was on disk
  int64_t eager_splits = 0;     // not put off: the cluster's pages were fetched first
  int64_t merges = 0;
  int64_t demoted_pages = 0;
  int64_t thinned_clusters = 0;  // lost some of their members
  int64_t collapsed_clusters = 0;
  int64_t dropped_clusters = 0;
  int64_t lost_pages = 0;     // bad checksum or failed read: treated as a miss
  int64_t failed_spills = 0;  // write or its slot failed: the page stayed where it was
  int64_t spill_pauses = 0;   // times the disk was left alone for a while because of that,
  int64_t read_pauses = 0;    // or because no read went well
  int64_t paused_frames = 0;  // frames that passed meanwhile
  int64_t fetched_pages = 0;
  int64_t fetch_hits = 0;  // pages found in the fetch cache
};

}  // namespace mosaic
