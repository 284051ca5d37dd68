#include "runtime/plan.h"

#include <algorithm>

#include "core/error.h"
#include "runtime/layout.h"

namespace mosaic {

namespace {

constexpr double kLeastLeft = 0.6;       // of the clusters, for a disk that is there for members alone
constexpr double kMostRows = 0.75;       // of the bytes to share out for the index of a memory with a disk
constexpr int kMostClusters = 1 << 16;   // of a lane, where the plan chooses
constexpr int64_t kMostSlots = 1 << 30;  // of all lanes,
constexpr int64_t kMostLane = 1 << 25;   // and of one: what reads everything must be able to count its tokens

bool fits(const Request& r, const Plan& plan) { return plan.total_bytes <= r.cap_bytes; }

// The least that works with the sizes of r.
Choice least_of(const Request& r) {
  Choice at{.slots = r.least_slots, .clusters = r.config.clusters, .scenes = r.config.scenes};
  at.archive_pages = r.archive_quota > 0 ? r.least_archive : 0;
  if (r.disk_is_bounded) {
    Choice alone = at;
    alone.disk = false;
    const uint64_t taken = lay_out(r, alone).total_bytes, cap = r.config.cap_bytes;
    at.disk_share_bytes = cap > taken ? (cap - taken) / 4 : 0;
  }
  return at;
}

[[noreturn]] void refuse(const Request& r, const Plan& plan) {
  const Plan::Part& most = *std::max_element(plan.parts.begin(), plan.parts.end(),
                                             [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  throw MemoryCapError(std::string("policy ") + r.policy->name() + " needs at least " +
                       format_bytes_up(plan.total_bytes) + " (" + std::to_string(plan.total_bytes) + " bytes; " +
                       most.name + " " + format_bytes(most.bytes) + "); memory= is " + format_bytes(r.cap_bytes) +
                       ". Raise memory=, or lower " + most.knob + ".");
}

// The request with sizes as for the whole cap, or where that is too much, as for the largest cap whose sizes fit: window,
// question, what is read and the rest grow with the cap by steps, and a step may be larger than what the cap has grown
// by. So what a cap accepts every larger one does. Throws MemoryCapError where not even the smallest sizes fit.
Request sized(const MemoryConfig& config, Policy& policy, const Backend& backend) {
  const auto as_for = [&](uint64_t cap) { return resolve(config, policy, backend, cap); };
  const auto least_fits = [](const Request& r) { return fits(r, lay_out(r, least_of(r))); };
  Request request = as_for(config.cap_bytes);
  if (least_fits(request)) return request;
  request = as_for(0);
  if (!least_fits(request)) refuse(request, lay_out(request, least_of(request)));
  uint64_t low = 0, high = config.cap_bytes;
  while (low + 1 < high) {
    const uint64_t middle = low + (high - low) / 2;
    Request larger = as_for(middle);
    if (least_fits(larger)) {
      request = std::move(larger);
      low = middle;
    } else {
      high = middle;
    }
  }
  return request;
}

// Clusters that a share of what the least leaves over buys.
int64_t bought(const Request& r, const Choice& at, double share) {
  constexpr int kProbe = 1024;
  Choice more = at;
  more.clusters += kProbe;
  const Plan plan = lay_out(r, at);
  const uint64_t before = plan.total_bytes, spare = r.cap_bytes - before;
  // What one more cluster costs: its row of the index, of the selections and of the shared scratch.
  double each = static_cast<double>(lay_out(r, more).total_bytes - before) / kProbe;
  if (!r.needs.has_means()) {  // a cluster without a mean is a page at least: more rows than pages would stay empty
    each += static_cast<double>(static_cast<uint64_t>(r.lanes) * page_bytes(*r.config.packed, plan.store.page));
    share = 1;
  }
  return static_cast<int64_t>(static_cast<double>(spare) * share / each);
}

int64_t clusters_wanted(const Request& r, const Choice& at, bool share_is_named) {
  const double share = r.keeps_members ? r.config.index_share : 1;
  const int64_t wanted = bought(r, at, share);
  if (!r.keeps_members || !r.needs.attends_means() || r.config.disk_bytes == 0 || share_is_named) return wanted;
  // What the disk costs of DRAM is taken from the pages, which it stands in for, not from the summaries.
  Choice alone = at;
  alone.disk = false;
  return std::max(wanted, std::min(bought(r, at, kMostRows), bought(r, alone, share)));
}

// Every piece is rounded up, and a disk takes its share too: all of the spare bytes may buy a few clusters less than the
// probe said, or many. At least as few as the least choice had fit.
Choice with_clusters_that_fit(const Request& r, Choice at) {
  constexpr int kSteps = 64;
  for (int step = 0; step < kSteps && at.clusters > r.needs.share.least_clusters; ++step) {
    if (fits(r, lay_out(r, at))) return at;
    --at.clusters;
  }
  if (fits(r, lay_out(r, at))) return at;
  int few = r.needs.share.least_clusters, many = at.clusters;
  while (few + 1 < many) {
    at.clusters = few + (many - few) / 2;
    (fits(r, lay_out(r, at)) ? few : many) = at.clusters;
  }
  at.clusters = few;
  return at;
}

Choice with_clusters(const Request& r, Choice at, bool share_is_named) {
  const int64_t wanted = clusters_wanted(r, at, share_is_named);
  at.clusters = static_cast<int>(std::clamp<int64_t>(wanted, r.needs.share.least_clusters, kMostClusters));
  if (r.choose_scenes) at.scenes = std::max(1, std::min(at.scenes, at.clusters / 4));  // or none could merge inside
  return with_clusters_that_fit(r, at);
}

// What a share of the bytes to share out buys of an archive: its pages are on disk, but what finds them is not.
Choice with_archive(const Request& r, Choice at) {
  const int64_t least = at.archive_pages / kPageTokens;
  const uint64_t before = lay_out(r, at).total_bytes;
  const uint64_t spare = r.cap_bytes - before;
  const uint64_t most = before + static_cast<uint64_t>(static_cast<double>(spare) * r.config.index_share);
  int64_t low = least, high = r.archive_quota / kPageTokens + 1;
  while (low + 1 < high) {
    at.archive_pages = (low + (high - low) / 2) * kPageTokens;
    (lay_out(r, at).total_bytes <= most ? low : high) = at.archive_pages / kPageTokens;
  }
  // Where pages have coarse keys, whole groups of them.
  if (const int64_t all = r.scanned_pages / kPageTokens; low > all)
    low = std::max(low - low % CoarseKeys::kMostPages, all);
  at.archive_pages = low * kPageTokens;
  return at;
}

// As many pages as what is left over holds.
Choice with_slots(const Request& r, Choice at) {
  int64_t most = r.needs.group.records ? kMostLane : std::min(kMostSlots, kMostLane * r.lanes);
  if (const int tokens = r.needs.share.most_tokens; tokens > 0)
    most = std::max<int64_t>(at.slots, std::min<int64_t>(most, pages_for(tokens) + 1));  // the search stops below it
  int64_t low = at.slots, high = at.slots;
  const auto fit = [&](int64_t slots) {
    at.slots = slots;
    try {
      return fits(r, lay_out(r, at));
    } catch (const InvalidInput&) {  // more than can be counted
      return false;
    }
  };
  while (high < most && fit(high)) {
    low = high;
    high = std::min(2 * high, most);
  }
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    (fit(middle) ? low : high) = middle;
  }
  at.slots = low;
  return at;
}

// The largest choice that fits: clusters first, where the plan chooses them, then pages for the rest of the cap.
Plan fitted(const MemoryConfig& config, Policy& policy, const Backend& backend) {
  const Request request = sized(config, policy, backend);
  Choice at = least_of(request);
  if (request.choose_clusters) at = with_clusters(request, at, config.index_share != 0);
  if (request.archive_quota > 0) at = with_archive(request, at);
  if (request.keeps_members) at = with_slots(request, at);
  Plan plan = lay_out(request, at);
  plan.config.cap_bytes = config.cap_bytes;
  if (!fits(request, plan))
    throw InvariantError("plan: takes " + std::to_string(plan.total_bytes) + " bytes under memory=" +
                         std::to_string(plan.config.cap_bytes) + " (a defect); raise memory= to go on.");
  return plan;
}

}  // namespace

Ops::Limits Plan::ops_limits() const {
  const ModelShape& m = config.model;
  if (log.lanes > 0) return {max_block, m.q_heads / m.kv_heads, {1, m.head_dim}, 1};  // a KV head at a time
  const int rows = std::max({store.index.capacity, select_rows, 1});
  return {std::max(max_block, kAssignItems), m.q_heads, {m.kv_heads, m.head_dim}, rows};
}

Ops::Limits Plan::host_limits() const {
  const ModelShape& m = config.model;
  const int items = store.index.dim > 0 ? kAssignItems : 1;
  return {items, m.q_heads / m.kv_heads, {1, m.head_dim}, std::max(max_block, 1), store.page.row()};
}

Plan make_plan(const MemoryConfig& config, Policy& policy, const Backend& backend) {
  check(config);
  if (policy.needs().share.members != PolicyNeeds::kWithDisk || config.disk_bytes == 0 || config.clusters > 0)
    return fitted(config, policy, backend);
  // Members on disk are worth having while most of the clusters stay; below that the disk is left alone.
  MemoryConfig alone = config;
  alone.disk_bytes = 0;
  Plan without = fitted(alone, policy, backend);
  try {
    Plan with = fitted(config, policy, backend);
    if (with.config.clusters >= kLeastLeft * without.config.clusters) return with;
  } catch (const MemoryCapError&) {  // too little for a disk, enough without
  }
  return without;
}

}  // namespace mosaic
