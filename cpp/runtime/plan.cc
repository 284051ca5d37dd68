#include "runtime/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "runtime/block_selection.h"
#include "runtime/evidence.h"
#include "runtime/records.h"
#include "runtime/staging.h"

namespace mosaic {

namespace {

void check(const MemoryConfig& c) {
  const ModelShape& m = c.model;
  const auto need = [](bool holds, const std::string& what) {
    if (!holds) throw InvalidInput("MemoryConfig: " + what);
  };
  need(m.layers > 0 && m.q_heads > 0 && m.kv_heads > 0 && m.head_dim > 0,
       "layers, heads and head_dim must be positive.");
  need(m.q_heads % m.kv_heads == 0,
       "q_heads=" + std::to_string(m.q_heads) + " is not a multiple of kv_heads=" + std::to_string(m.kv_heads) + ".");
  need(m.frame_tokens > 0, "frame_tokens must be positive.");
  need(m.embedding_dim > 0, "embedding_dim must be positive.");
  need(codec_is_exact(c.exact), std::string("exact=") + codec_name(c.exact) + " is not an exact codec (fp32, fp16).");
  need(c.refresh_every >= 0, "refresh_every must be 0 (once) or more tokens.");
  need(std::max({c.prefix_tokens, c.branch_tokens, c.retrieve_tokens, c.clusters, c.scenes, c.window_frames,
                 c.max_cluster_tokens}) <= 1 << 24,
       "counts must be at most 16,777,216.");
  need(c.exact_share >= 0 && c.exact_share < 1, "exact_share must be in [0, 1).");
  need(c.index_share >= 0 && c.index_share < 1, "index_share must be in [0, 1), 0: by the policy.");
  need(c.prefix_tokens >= 0 && c.branch_tokens >= 0 && c.retrieve_tokens >= 0 && c.clusters >= 0 && c.scenes >= 0 &&
           c.window_frames >= 0,
       "counts must not be negative.");
  need(c.max_cluster_tokens >= 2, "max_cluster_tokens must be at least 2.");
  need(c.disk_bytes == 0 || !c.spill_dir.empty(), "disk_bytes needs spill_dir=.");
}

constexpr int kUnknownContext = 1 << 20;
constexpr uint64_t kFetchShare = 16;  // of the cap for read copies of disk pages, where one layer's fit
constexpr double kLeastLeft = 0.6;    // of the clusters, for a disk that is there for members alone
constexpr double kMostRows = 0.75;    // of the bytes to share out for the index of a memory with a disk

// Whole frames of at most `tokens` in all; where frames are smaller than the largest more of them fit, within reason.
int pages_of_frames(int tokens, int frame_tokens) { return tokens / frame_tokens * pages_for(frame_tokens) + 16; }

// Members of a cluster that may stand in pages; 0: the policy keeps summaries alone.
int most_members(const PolicyNeeds& needs, const MemoryConfig& c) {
  if (needs.members == PolicyNeeds::kWithDisk) return c.disk_bytes > 0 ? kPageTokens : 0;
  return needs.members == PolicyNeeds::kAll ? c.max_cluster_tokens : needs.members;
}

// Of the packed pages, how many a card's own memory takes beside the exact ones.
int64_t slots_on_card(const Plan& plan, int64_t packed_slots) {
  const MemoryConfig& c = plan.config;
  if (!plan.private_data || c.device_bytes == 0) return packed_slots;
  uint64_t left = c.device_bytes;
  for (const TierSpec& tier : plan.store.tiers)
    left -= std::min<uint64_t>(left, static_cast<uint64_t>(tier.slots) * data_bytes(tier.codec, plan.store.page));
  return std::min<int64_t>(packed_slots, static_cast<int64_t>(left / data_bytes(*c.packed, plan.store.page)));
}

// Of a policy by records: as many pages in every lane's log.
void lay_out_records(Plan* plan, const Policy& policy, int64_t pages) {
  const MemoryConfig& c = plan->config;
  if (!codec_is_record(*c.packed))
    throw InvalidInput(std::string("packed=") + codec_name(*c.packed) + " has no records of single tokens, which policy " +
                       policy.name() + " keeps. Choose k5v3, k4v4, k4v3, k3v3, fp16 or fp32.");
  const int lanes = c.model.layers * plan->layer_lanes;
  const int listen = const_cast<Policy&>(policy).retention()->listen_frames();
  plan->log = {lanes, static_cast<int>(pages), plan->store.page, *c.packed, c.model.rope.is_multi()};
  plan->listening = {lanes, std::max(listen, c.window_frames + 1), c.model.frame_tokens};
}

// Everything but the page slots follows from the configuration; `slots` is what the search varies.
void lay_out(Plan* plan, const Policy& policy, Ops& ops, int64_t packed_slots) {
  const PolicyNeeds needs = policy.needs();
  MemoryConfig& c = plan->config;
  const ModelShape& m = c.model;
  const bool per_head = needs.per_head || needs.records;
  const PageShape page{per_head ? 1 : m.kv_heads, m.head_dim};
  const CodecId packed = *c.packed;
  StoreShape& s = plan->store;
  plan->layer_lanes = per_head ? m.kv_heads : 1;
  plan->block_frames = needs.by_token ? needs.frames : 1;
  s.lanes = m.layers * plan->layer_lanes;
  s.page = page;
  s.embedding_dim = m.embedding_dim;
  s.spill_dir = c.spill_dir;
  s.value_weight = needs.value_weight;
  s.private_data = plan->private_data;
  // Packing a cluster without end needs two pages of scratch.
  const int members = most_members(needs, c);
  const bool keeps = !needs.by_token || members > 0;
  s.max_run = std::max(
      {needs.by_token ? members : 0, m.frame_tokens * plan->block_frames, needs.unbounded ? 2 * kPageTokens : 0});
  s.max_members = needs.unbounded ? std::numeric_limits<int>::max() : keeps ? s.max_run : 0;
  s.scenes = needs.scenes ? c.scenes : 0;

  s.tiers.clear();
  const double exact_bytes = static_cast<double>(page_bytes(c.exact, page));
  const double packed_bytes = static_cast<double>(page_bytes(packed, page));
  if (needs.by_token && keeps && packed != c.exact) {
    const int64_t hot = static_cast<int64_t>(static_cast<double>(packed_slots) * packed_bytes * c.exact_share /
                                             (1 - c.exact_share) / exact_bytes);
    s.tiers.push_back({Place::device, c.exact, static_cast<int>(std::max<int64_t>(hot, 1))});
  }
  if (needs.records) {
    lay_out_records(plan, policy, packed_slots);
    packed_slots = 1;  // the store is empty
  }
  const int64_t on_card = slots_on_card(*plan, packed_slots);
  if (on_card > 0) s.tiers.push_back({Place::device, packed, static_cast<int>(on_card)});
  if (on_card < packed_slots) s.tiers.push_back({Place::host, packed, static_cast<int>(packed_slots - on_card)});
  int64_t disk_slots = 0;
  // Summaries alone have nothing to spill; and who reads everything would need all of it back in DRAM.
  if (c.disk_bytes > 0 && keeps && needs.selects) {
    disk_slots = static_cast<int64_t>(c.disk_bytes / SpillFile::stride_of(page_bytes(packed, page)));
    if (disk_slots < 1)
      throw MemoryCapError("disk tier: one page needs " + format_bytes(page_bytes(packed, page)) +
                           ", disk_bytes is " + format_bytes(c.disk_bytes) + ". Raise disk=.");
    // A page on disk costs a record and a checksum of DRAM: together at most a tenth of the cap, whatever the quota. Where
    // whole frames are retrieved their rows of the index are counted too, and as these are all that DRAM must hold of a
    // frame, they may take a third.
    const bool rows = needs.means && !needs.by_token;
    const double row = rows ? static_cast<double>(ClusterIndex::bytes_for({1024, page.row()})) / 1024 : 0;
    const double record = sizeof(Page) + sizeof(uint32_t) + 1 + row / pages_for(m.frame_tokens);
    const auto payable = static_cast<int64_t>(static_cast<double>(c.cap_bytes) / (rows ? 3 : 10) / record);
    const auto least = static_cast<int64_t>(static_cast<double>(plan->disk_share_bytes) / record);
    disk_slots = std::min<int64_t>({disk_slots, payable, rows ? payable : least, 1 << 28});
    if (needs.least_clusters > 2)  // a block opens about as many clusters: no more pages than clusters can name
      disk_slots = std::min(disk_slots, int64_t{s.lanes} * c.clusters *
                                            (needs.least_clusters + plan->block_frames * pages_for(m.frame_tokens)) /
                                            needs.least_clusters);
    disk_slots = std::max<int64_t>(disk_slots, 1);
    s.tiers.push_back({Place::disk, packed, static_cast<int>(disk_slots)});
  }
  int64_t all_slots = 0;
  for (const TierSpec& tier : s.tiers) all_slots += tier.slots;
  const int64_t lane_slots = needs.records ? plan->log.pages : all_slots / s.lanes + 1;
  const int frame_pages = pages_for(m.frame_tokens);
  s.index.dim = needs.means ? page.row() : 0;
  s.index.capacity = needs.records ? 0 : needs.by_token ? c.clusters : static_cast<int>(lane_slots / frame_pages + 2);

  const int window_frames = c.window_frames + plan->block_frames - 1;  // a block leaves when it is whole
  const int fixed_tokens = c.prefix_tokens + m.frame_tokens * (window_frames + 1) + c.branch_tokens;
  const int fixed_pages = pages_for(c.prefix_tokens) + frame_pages * (window_frames + 1) + pages_for(c.branch_tokens);
  int read_tokens = static_cast<int>(lane_slots * kPageTokens), read_pages = static_cast<int>(lane_slots);
  if (needs.selects) {
    read_tokens = keeps ? c.retrieve_tokens : 0;
    // Pages of a small cluster are not full: two per 16 tokens, and what finds no row is read as its summary.
    read_pages = needs.by_token ? read_tokens / 8 + 16 : pages_of_frames(c.retrieve_tokens, m.frame_tokens);
  }
  plan->select_tokens = read_tokens + fixed_tokens;
  plan->select_entries = read_pages + fixed_pages;
  // Means that are scored alone are not attended, but one token alone may lie in its mean and be read there.
  plan->select_rows = needs.summaries ? s.index.capacity : 0;
  plan->summaries = needs.summaries;
  if (needs.means && !needs.summaries) plan->select_rows = std::min(s.index.capacity, c.retrieve_tokens);
  if (needs.summary_frames != PolicyNeeds::kAll)
    plan->select_rows = std::min(plan->select_rows, needs.summary_frames * m.frame_tokens);
  // Read copies for two layers, the one that is attended and the next;
  // near the least cap, where they would cost the index its rows, for one, or a quarter of what there is to share out.
  const auto slots_of = [&](uint64_t bytes) { return static_cast<int64_t>(bytes / page_bytes(packed, page)); };
  const int64_t copies = std::min(std::max<int64_t>(read_pages, slots_of(c.cap_bytes / kFetchShare)),
                                  std::max<int64_t>(kPageTokens, slots_of(plan->disk_share_bytes)));
  const bool bounded = plan->disk_share_bytes != std::numeric_limits<uint64_t>::max();
  s.fetch_slots =
      static_cast<int>(std::min({2 * int64_t{read_pages}, bounded ? copies : 2 * int64_t{read_pages}, disk_slots}));
  plan->max_block = std::max({m.frame_tokens, c.branch_tokens, c.prefix_tokens});
  plan->rope_positions = plan->original ? plan->context + RopeTable::kFine
                                              : plan->select_tokens + plan->select_rows + plan->max_block +
                                                    RopeTable::kFine + (m.rope.grid_follows_time ? m.frame_tokens : 0);

  WindowShape& w = plan->window;
  w.lanes = m.layers * plan->layer_lanes;
  w.page = page;
  w.codec = c.exact;
  w.frames = window_frames;
  w.received = needs.received;
  w.frame_tokens = m.frame_tokens;
  w.prefix_tokens = c.prefix_tokens;
  w.branch_tokens = c.branch_tokens;
  w.embedding_dim = m.embedding_dim;

  uint64_t records = 0, records_there = 0;
  if (needs.records) {
    s.lanes = 0;
    Region counted(plan->private_data);
    const Records counting(counted, *plan, ops, *const_cast<Policy&>(policy).retention());
    records_there = counted.used_private();
    records = counted.used() - records_there;
  }
  const Ops::Limits limits = ops_limits(*plan);
  const auto lanes = static_cast<uint64_t>(needs.records ? 1 : s.lanes);  // that have a selection of their own
  const uint64_t window_there = plan->private_data ? Window::private_bytes_for(w) : 0;
  const uint64_t selections_there = lanes * BlockSelection::private_bytes_for(*plan);
  const uint64_t rope = Region::rounded(RopeTable::bytes_for(m.rope, plan->rope_positions));
  const uint64_t scratch = Region::rounded(ops.scratch_bytes(limits));
  const uint64_t host_scratch =
      &ops.for_host() != &ops ? Region::rounded(ops.for_host().scratch_bytes(host_limits(*plan))) : 0;
  const uint64_t pages_there = ClusterStore::private_bytes_for(s);
  plan->private_bytes = 0;
  if (plan->private_data)
    plan->private_bytes = window_there + selections_there + rope + scratch + pages_there + records_there;
  plan->parts = {
      {"window and question", Window::bytes_for(w, plan->private_data) + window_there},
      {"selections",
       lanes * BlockSelection::bytes_for(*plan) + selections_there + BlockSelection::shared_bytes_for(*plan)},
      {"rope", rope},
      {"kernel scratch", scratch + host_scratch},
      {"staging", Staging::bytes_for(*plan)},
      {"frame scratch", FrameScratch::bytes_for(*plan)},
      {"evidence", Evidence::bytes_for(Evidence::capacity_for(c.cap_bytes))},
      {"policy", policy.scratch_bytes(s)},
      {"records", records + records_there},
      {"pages", TierChain::bytes_for(s.tiers, page, plan->private_data) + pages_there},
      {"index", static_cast<uint64_t>(s.lanes) * ClusterIndex::bytes_for(s.index)},
      {"scenes", s.scenes > 0 ? SceneTable::bytes_for(s.scenes, s.embedding_dim) : 0},
      {"fetch cache", FetchCache::bytes_for(s.fetch_slots, page_bytes(s.tiers.back().codec, page))},
  };
  uint64_t store_parts = 0;
  for (size_t i = 9; i < plan->parts.size(); ++i) store_parts += plan->parts[i].bytes;
  plan->parts.push_back({"page table and split scratch", ClusterStore::bytes_for(s) + pages_there - store_parts});
  plan->total_bytes = 0;
  for (const Plan::Part& part : plan->parts) plan->total_bytes += part.bytes;
}

}  // namespace

Ops::Limits ops_limits(const Plan& plan) {
  const ModelShape& m = plan.config.model;
  if (plan.log.lanes > 0)  // a KV head at a time
    return {plan.max_block, m.q_heads / m.kv_heads, {1, m.head_dim}, 1};
  const int rows = std::max(plan.store.index.capacity, plan.select_rows);
  return {std::max(plan.max_block, kAssignItems), m.q_heads, {m.kv_heads, m.head_dim}, std::max(rows, 1)};
}

Ops::Limits host_limits(const Plan& plan) {
  const ModelShape& m = plan.config.model;
  return {1, m.q_heads / m.kv_heads, {1, m.head_dim}, std::max(plan.max_block, 1), plan.store.page.row()};
}

namespace {

// What makes this part of a plan smaller.
std::string knob_of(const std::string& part) {
  if (part == "selections" || part == "fetch cache") return "retrieve_tokens= or disk=";
  if (part == "rope") return "retrieve_tokens=, or take positions=\"contiguous\"";
  if (part == "kernel scratch") return "threads= or branch_tokens=";
  if (part == "policy") return "the policy's settings or clusters=";
  if (part == "index" || part == "scenes") return "clusters=, scenes= or disk=";
  if (part == "pages" || part == "page table and split scratch") return "max_cluster_tokens= or disk=";
  return "window_frames= or branch_tokens=";
}

Plan plan_as_asked(const MemoryConfig& config, const Policy& policy, const Backend& backend) {
  const PolicyNeeds needs = policy.needs();
  Ops& ops = *backend.ops;
  Plan plan;
  plan.private_data = backend.device->has_private();
  plan.config = config;
  MemoryConfig& c = plan.config;
  const ModelShape& m = c.model;
  if (!c.packed) c.packed = needs.records ? CodecId::kK5V3 : needs.refuses ? c.exact : CodecId::kInt4;
  const CodecId packed = *c.packed;
  if (c.model.scale == 0) c.model.scale = 1.0f / std::sqrt(static_cast<float>(m.head_dim));
  plan.original = c.positions == PositionRule::kOriginal || (c.positions == PositionRule::kAuto && m.context > 0);
  plan.context = m.context > 0 ? m.context : kUnknownContext;
  const int window_needed = std::max(m.video_window - 1, 0);
  if (c.window_frames == 0 && needs.records) {
    // Exact frames are dear beside records: four, or as many as a tenth of the cap holds.
    const uint64_t frame = static_cast<uint64_t>(m.layers) * m.frame_tokens *
                           (page_bytes(c.exact, {m.kv_heads, m.head_dim}) / kPageTokens);
    c.window_frames = std::max(window_needed, static_cast<int>(std::clamp<uint64_t>(c.cap_bytes / 10 / frame, 1, 4)));
  }
  if (c.window_frames == 0) c.window_frames = m.video_window > 0 ? std::max(window_needed, 3) : 8;
  if (c.window_frames < window_needed)
    throw InvalidInput("window_frames=" + std::to_string(c.window_frames) + " is less than the " +
                       std::to_string(window_needed) + " earlier frames this model's video tokens see.");
  const PageShape page{m.kv_heads, m.head_dim};
  const uint64_t token_bytes = static_cast<uint64_t>(m.layers) * page_bytes(packed, page) / kPageTokens;
  const auto cap_tokens = static_cast<int64_t>(c.cap_bytes / std::max<uint64_t>(token_bytes, 1));
  if (c.retrieve_tokens == 0 && needs.retrieve_frames > 0)
    c.retrieve_tokens = static_cast<int>(std::min(int64_t{needs.retrieve_frames} * m.frame_tokens,
                                                  std::max<int64_t>(cap_tokens / (needs.by_token ? 8 : 4), 64)));
  if (c.retrieve_tokens == 0)
    c.retrieve_tokens = static_cast<int>(std::clamp<int64_t>(cap_tokens / 12, 64, int64_t{64} * m.frame_tokens));
  if (c.scenes == 0) c.scenes = static_cast<int>(std::clamp<int64_t>(cap_tokens / m.frame_tokens / 8, 4, 64));
  if (c.branch_tokens == 0) {
    const uint64_t exact_bytes = static_cast<uint64_t>(m.layers) * page_bytes(c.exact, page) / kPageTokens;
    c.branch_tokens = static_cast<int>(std::clamp<uint64_t>(c.cap_bytes / 16 / exact_bytes, 32, 512));
  }
  if (plan.original && config.branch_tokens == 0)
    c.branch_tokens = std::min(c.branch_tokens, std::max(plan.context / 8, 16));
  const int tail = c.branch_tokens + std::max({m.frame_tokens, c.branch_tokens, c.prefix_tokens});
  if (plan.original && plan.context <= tail)
    throw InvalidInput("MemoryConfig: a model of context=" + std::to_string(plan.context) +
                       " positions has no room for a frame, prefix and question of " + std::to_string(tail) +
                       " tokens. Lower branch_tokens= or tokens_per_frame=.");
  if (needs.by_token && needs.clusters > 0) c.clusters = needs.clusters;
  const bool choose_clusters = needs.by_token && c.clusters == 0;
  if (choose_clusters) c.clusters = needs.least_clusters;
  if (c.index_share == 0) c.index_share = needs.index_share > 0 ? needs.index_share : 0.35;

  // The least that works: pages of a frame for each layer, and for one cluster without end those of a block.
  const int lanes = m.layers * (needs.per_head ? m.kv_heads : 1);
  const bool keeps = !needs.by_token || most_members(needs, c) > 0;
  const int frames = needs.unbounded ? needs.frames : 1;
  const int64_t least = needs.records ? pages_for(m.frame_tokens) : keeps ? std::max<int64_t>(lanes * int64_t{pages_for(m.frame_tokens * frames)}, 4) : 1;
  // Where clusters or what is read were named, the disk gives them all it can.
  if (c.disk_bytes > 0 && choose_clusters && needs.summaries && config.retrieve_tokens == 0) {
    c.disk_bytes = 0;
    lay_out(&plan, policy, ops, least);
    c.disk_bytes = config.disk_bytes;
    plan.disk_share_bytes = c.cap_bytes > plan.total_bytes ? (c.cap_bytes - plan.total_bytes) / 4 : 0;
  }
  lay_out(&plan, policy, ops, least);
  if (plan.total_bytes > c.cap_bytes) {
    const Plan::Part* most = &*std::max_element(plan.parts.begin(), plan.parts.end(),
                                                [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
    throw MemoryCapError(std::string("policy ") + policy.name() + " needs at least " + format_bytes(plan.total_bytes) +
                         " (" + most->name + " " + format_bytes(most->bytes) + "); memory= is " +
                         format_bytes(c.cap_bytes) + ". Raise memory=, or lower " + knob_of(most->name) + ".");
  }
  if (choose_clusters) {
    // Clusters that a share of what is left over buys.
    const auto bought = [&](double share) {
      lay_out(&plan, policy, ops, least);
      const uint64_t before = plan.total_bytes, spare = c.cap_bytes - before;
      // What one more cluster costs: its row of the index, of the selections and of the shared scratch.
      const int probe = 1024, had = c.clusters;
      c.clusters += probe;
      lay_out(&plan, policy, ops, least);
      double each = static_cast<double>(plan.total_bytes - before) / probe;
      c.clusters = had;
      if (!needs.means) {  // a cluster without a mean is a page at least: more rows than pages would stay empty
        each += static_cast<double>(static_cast<uint64_t>(lanes) * page_bytes(packed, plan.store.page));
        share = 1;
      }
      return static_cast<int64_t>(static_cast<double>(spare) * share / each);
    };
    int64_t wanted = bought(keeps ? c.index_share : 1);
    if (keeps && needs.summaries && c.disk_bytes > 0 && config.index_share == 0) {
      // What the disk costs of DRAM is taken from the pages, which it stands in for, not from the summaries.
      const int64_t most = bought(kMostRows);
      c.disk_bytes = 0;
      wanted = std::max(wanted, std::min(most, bought(c.index_share)));
      c.disk_bytes = config.disk_bytes;
    }
    c.clusters = static_cast<int>(std::clamp<int64_t>(wanted, needs.least_clusters, 1 << 16));
    if (config.scenes == 0)
      c.scenes = std::max(1, std::min(c.scenes, c.clusters / 4));  // or scenes could not merge inside
  }
  int64_t low = least, high = least;
  lay_out(&plan, policy, ops, low);
  // Every piece is rounded up, and a disk takes its share too: all of the spare bytes may buy a few clusters less than the
  // probe said, or many.
  for (int step = 0;
       choose_clusters && plan.total_bytes > c.cap_bytes && c.clusters > needs.least_clusters && step < 64; ++step) {
    --c.clusters;
    lay_out(&plan, policy, ops, low);
  }
  if (choose_clusters && plan.total_bytes > c.cap_bytes) {
    int few = needs.least_clusters, many = c.clusters;  // few fit, or this plan would have been refused above
    while (few + 1 < many) {
      c.clusters = few + (many - few) / 2;
      lay_out(&plan, policy, ops, low);
      (plan.total_bytes <= c.cap_bytes ? few : many) = c.clusters;
    }
    c.clusters = few;
    lay_out(&plan, policy, ops, low);
  }
  if (!keeps) return plan;
  while (plan.total_bytes <= c.cap_bytes && high < (int64_t{1} << 30)) {
    low = high;
    high *= 2;
    lay_out(&plan, policy, ops, high);
  }
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    lay_out(&plan, policy, ops, middle);
    (plan.total_bytes <= c.cap_bytes ? low : high) = middle;
  }
  lay_out(&plan, policy, ops, low);
  return plan;
}

Plan within_cap(Plan plan) {
  if (plan.total_bytes > plan.config.cap_bytes)
    throw InvariantError("plan: takes " + std::to_string(plan.total_bytes) + " bytes under memory=" +
                         std::to_string(plan.config.cap_bytes) + " (a defect); raise memory= to go on.");
  return plan;
}

}  // namespace

Plan make_plan(const MemoryConfig& config, const Policy& policy, const Backend& backend) {
  check(config);
  if (policy.needs().members != PolicyNeeds::kWithDisk || config.disk_bytes == 0 || config.clusters > 0)
    return within_cap(plan_as_asked(config, policy, backend));
  // Members on disk are worth having while most of the clusters stay; below that the disk is left alone.
  MemoryConfig alone = config;
  alone.disk_bytes = 0;
  Plan without = within_cap(plan_as_asked(alone, policy, backend));
  try {
    Plan with = within_cap(plan_as_asked(config, policy, backend));
    if (with.config.clusters >= kLeastLeft * without.config.clusters) return with;
  } catch (const MemoryCapError&) {  // too little for a disk, enough without
  }
  return without;
}

}  // namespace mosaic
