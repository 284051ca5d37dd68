#include "runtime/layout.h"

#include <algorithm>

#include "core/error.h"
#include "runtime/parts.h"
#include "runtime/plan_parts.h"

namespace mosaic {

namespace {

constexpr uint64_t kFetchShare = 16;  // of the cap for read copies of disk pages, where one layer's fit
constexpr int64_t kMostDiskSlots = 1 << 28;
constexpr int kSinks = 4;  // first tokens that every later one attends to; where the prefix has them, frames are alike
constexpr int kLeastRead = 32;       // pages of an archive, by a lane,
constexpr uint64_t kReadShare = 32;  // or as many as this share of the cap holds: what is chosen lies scattered
constexpr int kLeastKept = 32;       // pages of a lane that a frame reads beside twice its share
constexpr int kBehindContext = 64;   // positions
constexpr int kStretch = 64;         // tokens of an archive that are cut into clusters together,
constexpr uint64_t kTailShare = 32;  // or half as many, where those that wait to be cut would take more of the cap

// Whole frames of at most `tokens` in all; where frames are smaller than the largest more of them fit, within reason.
int pages_of_frames(int tokens, int frame_tokens) { return tokens / frame_tokens * pages_for(frame_tokens) + 16; }

bool keeps_members(const Request& r, const Plan& plan) {
  return !r.needs.group.by_token || most_members(r.needs, plan.config) > 0;
}

void shape_lanes(const Request& r, Plan* plan) {
  const PolicyNeeds& needs = r.needs;
  const ModelShape& m = plan->config.model;
  StoreShape& s = plan->store;
  const bool per_head = needs.group.per_head || needs.group.records;
  plan->layer_lanes = per_head ? m.kv_heads : 1;
  plan->together = r.has_private ? std::min(plan->layer_lanes, kLanesTogether) : 1;
  plan->original = r.original;
  plan->context = r.context;
  plan->batch_frames = needs.group.by_token ? needs.group.frames : 1;
  plan->attends_means = needs.attends_means();
  s.lanes = r.lanes;
  s.layer_lanes = plan->layer_lanes;
  s.page = {per_head ? 1 : m.kv_heads, m.head_dim};
  s.embedding_dim = m.embedding_dim;
  s.spill_dir = plan->config.spill_dir;
  s.value_weight = needs.group.value_weight;
  const int batch = (Size(m.frame_tokens) * plan->batch_frames).to_int("tokens of the frames of a batch");
  const bool grows = needs.group.unbounded || (needs.group.grows_on_disk && plan->config.disk_bytes > 0);
  // Packing a cluster without end needs two pages of scratch.
  s.max_run =
      std::max({needs.group.by_token ? most_members(needs, plan->config) : 0, batch, grows ? 2 * kPageTokens : 0});
  s.max_members = grows ? std::numeric_limits<int>::max() : keeps_members(r, *plan) ? s.max_run : 0;
  s.scenes = needs.group.scenes ? plan->config.scenes : 0;
}

// Of a policy by records: as many pages in every lane's log, and nothing in the store.
void shape_log(const Request& r, const Choice& choice, Plan* plan) {
  const MemoryConfig& c = plan->config;
  if (!codec_is_record(*c.packed))
    throw InvalidInput(std::string("packed=") + codec_name(*c.packed) +
                       " has no records of single tokens, which policy " + r.policy->name() +
                       " keeps. Choose k5v3, k4v4, k4v3, k3v3, k2v2, k8v8, fp16 or fp32.");
  plan->log = {r.lanes,
               Size(choice.slots).to_int("pages of a lane's log"),
               plan->store.page,
               *c.packed,
               c.exact,
               c.model.rope.is_multi(),
               c.model.rope.is_multi() && choice.archive_pages > 0};
  const int listen = std::max(r.policy->retention()->listen_frames(), c.window_frames + 1);
  plan->listening = {r.lanes, listen, c.model.frame_tokens, r.policy->retention()->listens()};
  plan->store.lanes = 0;
  plan->store.tiers = {{Medium::device, *c.packed, 1}};
  if (choice.archive_pages == 0) return;
  ArchiveShape& a = plan->archive;
  a.lanes = r.lanes;
  a.pages = Size(choice.archive_pages).to_int("pages of the archive");
  a.page = plan->store.page;
  a.codec = *c.packed;
  a.scanned = r.scanned_pages;
  a.places = plan->log.places;
  a.folder = c.spill_dir;
  if (const DiskWishes disk = r.policy->retention()->disk(); disk.clusters) {
    const Size tails = Size(a.lanes) * data_bytes(a.codec, a.page) * (kStretch / kPageTokens);
    a.stretch = tails <= Size(c.cap_bytes / kTailShare) ? kStretch : kStretch / 2;
    a.of_values = disk.of_values;
  }
  const uint64_t scattered = std::min<uint64_t>(c.cap_bytes / kReadShare / data_bytes(a.codec, a.page),
                                                static_cast<uint64_t>(a.most_scanned()));
  const int room = a.stretch > 0 ? 0 : static_cast<int>(scattered);  // clusters lie in one piece
  a.most_read = std::min(a.pages, std::max({kLeastRead, c.retrieve_tokens / 8, room}));
  a.together = plan->together;
  a.copies_stay = Size(a.lanes) * a.most_read * data_bytes(a.codec, a.page) <= Size(c.cap_bytes / kFetchShare);
}

// Of the packed pages, how many a card's own memory takes beside the exact ones.
int64_t slots_on_card(const Request& r, const Plan& plan, int64_t packed_slots) {
  const MemoryConfig& c = plan.config;
  if (!r.has_private || c.device_bytes == 0) return packed_slots;
  uint64_t left = c.device_bytes;
  for (const TierSpec& tier : plan.store.tiers)
    left -= std::min<uint64_t>(left, static_cast<uint64_t>(tier.slots) * data_bytes(tier.codec, plan.store.page));
  return std::min<int64_t>(packed_slots, static_cast<int64_t>(left / data_bytes(*c.packed, plan.store.page)));
}

// A page on disk costs a record and a checksum of DRAM: together at most a tenth of the cap, whatever the quota. Where
// whole frames are retrieved their rows of the index are counted too, and as these are all that DRAM must hold of a
// frame, they may take a third.
int64_t disk_slots(const Request& r, const Choice& choice, const Plan& plan) {
  const MemoryConfig& c = plan.config;
  const StoreShape& s = plan.store;
  const PolicyNeeds& needs = r.needs;
  // Summaries alone have nothing to spill; and who reads everything would need all of it back in DRAM.
  if (c.disk_bytes == 0 || !keeps_members(r, plan) || !needs.selects()) return 0;
  const size_t page = page_bytes(*c.packed, s.page);
  const auto quota = static_cast<int64_t>(c.disk_bytes / SpillFile::stride_of(page));
  if (quota < 1)
    throw MemoryCapError("disk tier: one page needs " + format_bytes(page) + ", disk_bytes is " +
                         format_bytes(c.disk_bytes) + ". Raise disk=.");
  const int frame_pages = pages_for(c.model.frame_tokens);
  const bool rows = needs.has_means() && !needs.group.by_token;
  double row = 0;
  if (rows) {
    constexpr int kProbe = 1024;
    Region region = Region::counting();
    const ClusterIndex index(region, {kProbe, s.page.row()});
    row = static_cast<double>(region.used()) / kProbe;
  }
  const double record = sizeof(Page) + sizeof(uint32_t) + 1 + row / frame_pages;
  const auto payable = static_cast<int64_t>(static_cast<double>(c.cap_bytes) / (rows ? 3 : 10) / record);
  const auto shared = static_cast<int64_t>(static_cast<double>(choice.disk_share_bytes) / record);
  int64_t slots = std::min({quota, payable, rows ? payable : shared, kMostDiskSlots});
  if (needs.share.least_clusters > 2) {  // a batch opens about as many clusters: no more pages than clusters can name
    const int64_t named = needs.share.least_clusters + int64_t{plan.batch_frames} * frame_pages;
    slots = std::min(slots, int64_t{s.lanes} * c.clusters * named / needs.share.least_clusters);
  }
  return std::max<int64_t>(slots, 1);
}

// Returns the slots of the disk.
int64_t shape_tiers(const Request& r, const Choice& choice, Plan* plan) {
  const MemoryConfig& c = plan->config;
  StoreShape& s = plan->store;
  const auto add = [&](Medium medium, CodecId codec, int64_t slots) {
    s.tiers.push_back({medium, codec, Size(slots).to_int("pages of a tier")});
  };
  const double exact_bytes = static_cast<double>(page_bytes(c.exact, s.page));
  const double packed_bytes = static_cast<double>(page_bytes(*c.packed, s.page));
  if (r.needs.group.by_token && keeps_members(r, *plan) && *c.packed != c.exact) {
    const auto hot = static_cast<int64_t>(static_cast<double>(choice.slots) * packed_bytes * c.exact_share /
                                          (1 - c.exact_share) / exact_bytes);
    add(Medium::device, c.exact, std::max<int64_t>(hot, 1));
  }
  const int64_t on_card = slots_on_card(r, *plan, choice.slots);
  if (on_card > 0) add(Medium::device, *c.packed, on_card);
  if (on_card < choice.slots) add(Medium::host, *c.packed, choice.slots - on_card);
  const int64_t on_disk = disk_slots(r, choice, *plan);
  if (on_disk > 0) add(Medium::disk, *c.packed, on_disk);
  return on_disk;
}

void shape_window(const Request& r, Plan* plan) {
  const MemoryConfig& c = plan->config;
  WindowShape& w = plan->window;
  w.lanes = r.lanes;
  w.page = plan->store.page;
  w.codec = *c.window_codec;
  w.frames = c.window_frames + plan->batch_frames - 1;  // a batch leaves when it is whole
  w.keeps_first = !r.needs.group.records || c.prefix_tokens < kSinks;
  w.attention_received = r.needs.group.attention_received;
  w.frame_tokens = c.model.frame_tokens;
  w.prefix_tokens = c.prefix_tokens;
  w.branch_tokens = c.branch_tokens;
  w.embedding_dim = c.model.embedding_dim;
}

// What is read at most: the fixed parts, and as much of the store as the policy reads. Returns the store's pages.
int64_t shape_selections(const Request& r, int64_t lane_slots, int64_t dram_slots, Plan* plan) {
  const PolicyNeeds& needs = r.needs;
  const MemoryConfig& c = plan->config;
  const int frame_tokens = c.model.frame_tokens;
  const Size frames = Size(plan->window.frames) + (plan->window.keeps_first ? 1 : 0);
  const Size fixed_tokens = Size(c.prefix_tokens) + frames * frame_tokens + c.branch_tokens;
  const Size fixed_pages = Size(Window::most_pieces(c.prefix_tokens)) + frames * Window::most_pieces(frame_tokens) +
                           Window::most_pieces(c.branch_tokens);
  Size read_tokens = (Size(lane_slots) + plan->archive.most_read) * kPageTokens;
  Size read_pages = Size(lane_slots) + plan->archive.most_read;
  if (needs.selects()) {
    read_tokens = keeps_members(r, *plan) ? c.retrieve_tokens : 0;
    // Pages of a small cluster are not full: two per 16 tokens, and what finds no row is read as its summary.
    read_pages = needs.group.by_token ? read_tokens.value() / 8 + 16 : pages_of_frames(c.retrieve_tokens, frame_tokens);
  }
  plan->select_tokens = (read_tokens + fixed_tokens).to_int("tokens read at once (window_frames=, retrieve_tokens=)");
  plan->select_entries = (read_pages + fixed_pages).to_int("pages read at once (window_frames=, retrieve_tokens=)");
  // Means that are scored alone are not attended, but one token alone may lie in its mean and be read there.
  const int capacity = plan->store.index.capacity;
  plan->select_rows = needs.attends_means() ? capacity : needs.has_means() ? std::min(capacity, c.retrieve_tokens) : 0;
  if (needs.read.summary_frames != PolicyNeeds::kAll)
    plan->select_rows =
        std::min(plan->select_rows, (Size(needs.read.summary_frames) * frame_tokens).to_int("summaries"));
  plan->max_block = std::max({frame_tokens, c.branch_tokens, c.prefix_tokens});
  if (needs.frames_read_kept() && c.model.video_window == 0) {
    // Lanes share the slots: by token one may hold more than its share, in a small store much more.
    const int64_t share = dram_slots / r.lanes + 1;
    const Size kept = needs.group.by_token ? std::min(dram_slots, 2 * share + kLeastKept) : share;
    const int most = needs.read.newest == PolicyNeeds::kAll ? kMostCounted : needs.read.newest;
    plan->frame_entries = (kept + fixed_pages).to_int("pages that a frame reads");
    plan->frame_tokens = (Size(std::min<int64_t>((kept * kPageTokens).value(), most)) + fixed_tokens)
                             .to_int("tokens that a frame reads");
    plan->frame_rows = needs.has_means() ? capacity : 0;
  }
  const Size beyond = c.model.rope.grid_follows_time ? frame_tokens : 0;
  plan->rope_positions =
      plan->original ? plan->context + kBehindContext
                     : (Size(std::max(plan->select_tokens, plan->frame_tokens)) +
                        std::max(plan->select_rows, plan->frame_rows) + plan->max_block + kBehindContext + beyond)
                           .to_int("positions");
  return read_pages.value();
}

// Read copies for two layers, the one that is attended and the next; near the least cap, where they would cost the index
// its rows, for one, or a quarter of what there is to share out.
int fetch_slots(const Choice& choice, const Plan& plan, int64_t read_pages, int64_t on_disk) {
  const size_t page = page_bytes(*plan.config.packed, plan.store.page);
  const int64_t both = 2 * read_pages;
  if (choice.disk_share_bytes == std::numeric_limits<uint64_t>::max()) return static_cast<int>(std::min(both, on_disk));
  const auto slots_of = [&](uint64_t bytes) { return static_cast<int64_t>(bytes / page); };
  const int64_t copies = std::min(std::max<int64_t>(read_pages, slots_of(plan.config.cap_bytes / kFetchShare)),
                                  std::max<int64_t>(kPageTokens, slots_of(choice.disk_share_bytes)));
  return static_cast<int>(std::min({both, copies, on_disk}));
}

void count_parts(const Request& r, Plan* plan) {
  Region region = Region::counting(r.has_private);
  const Parts parts(region, *plan, *r.policy, *r.ops);
  plan->parts = parts_of(region.rows(), parts.core_rows);
  plan->total_bytes = region.used();
  plan->private_bytes = region.private_used();
}

}  // namespace

Plan lay_out(const Request& r, const Choice& choice) {
  Plan plan;
  plan.config = r.config;
  plan.sized_for_bytes = r.config.cap_bytes;
  plan.config.clusters = choice.clusters;
  plan.config.scenes = choice.scenes;
  if (!choice.disk) plan.config.disk_bytes = 0;
  shape_lanes(r, &plan);
  StoreShape& s = plan.store;
  int64_t on_disk = 0, lane_slots = choice.slots, dram_slots = choice.slots;
  if (r.needs.group.records) {
    shape_log(r, choice, &plan);
  } else {
    on_disk = shape_tiers(r, choice, &plan);
    int64_t all_slots = 0;
    for (const TierSpec& tier : s.tiers) all_slots += tier.slots;
    lane_slots = all_slots / s.lanes + 1;
    dram_slots = all_slots - on_disk;
  }
  s.index.dim = r.needs.has_means() ? s.page.row() : 0;
  s.index.capacity = r.needs.group.records ? 0
                     : r.needs.group.by_token
                         ? plan.config.clusters
                         : static_cast<int>(lane_slots / pages_for(plan.config.model.frame_tokens) + 2);
  shape_window(r, &plan);
  const int64_t read_pages = shape_selections(r, lane_slots, dram_slots, &plan);
  s.fetch_slots = fetch_slots(choice, plan, read_pages, on_disk);
  count_parts(r, &plan);
  return plan;
}

}  // namespace mosaic
