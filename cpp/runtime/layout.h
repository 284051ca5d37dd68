// Layout: the steps of a plan that compute and decide nothing. A Request is what stays while sizes are searched, a Choice
// what is searched; together they say every size of a session. Pure functions, but for the policy's tables.
#pragma once

#include <limits>

#include "runtime/plan.h"

namespace mosaic {

struct Request {
  MemoryConfig config;  // every 0 that means "choose" resolved, but for what a Choice says; its cap is what sizes go by
  uint64_t cap_bytes = 0;  // what all must fit
  PolicyNeeds needs;
  Policy* policy = nullptr;
  Ops* ops = nullptr;
  bool has_private = false;  // kernels have memory of their own
  bool original = false;     // positions, as rule and model have it
  int context = 0;
  bool choose_clusters = false;
  bool choose_scenes = false;
  bool disk_is_bounded = false;  // DRAM for a disk is a share of what the fixed parts leave
  int lanes = 0;
  bool keeps_members = false;  // tokens stand in pages, with the disk as configured
  int64_t least_slots = 0;     // page slots below which nothing works
  int64_t archive_quota = 0;   // by record: pages of a lane that the disk holds,
  int64_t least_archive = 0;   // and the least that works: a frame's, and one that is not whole
  int scanned_pages = 0;       // of them, that are looked through
};

struct Choice {
  int64_t slots = 0;  // packed page slots in DRAM
  int clusters = 0;   // of a lane, by token
  int scenes = 0;
  bool disk = true;           // false: as if there were none
  int64_t archive_pages = 0;  // of a lane, by record
  // By token: DRAM that the records of a disk may take, and its read copies as much again.
  uint64_t disk_share_bytes = std::numeric_limits<uint64_t>::max();
};

// Resolves what does not depend on a search, with sizes as for `sized_for` bytes. Throws InvalidInput where the model needs
// a larger window.
Request resolve(const MemoryConfig& config, Policy& policy, const Backend& backend, uint64_t sized_for);
// Members of a cluster that may stand in pages; 0: the policy keeps summaries alone.
int most_members(const PolicyNeeds& needs, const MemoryConfig& config);
// Every size for this choice, and the account of the parts.
Plan lay_out(const Request& request, const Choice& choice);

}  // namespace mosaic
