// What 0 means where it means "choose", as far as cap, model and policy say it alone.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "policy/retention.h"
#include "runtime/layout.h"

namespace mosaic {

namespace {

constexpr int kUnknownContext = 1 << 15;    // where original positions are asked for and the model does not say
constexpr uint64_t kMostArchive = 1 << 24;  // pages of all lanes, in sixteens
constexpr double kIndexShare = 0.35;        // of the bytes to share out, where neither session nor policy names another

uint64_t lane_token_bytes(const ModelShape& m, CodecId codec) {
  return static_cast<uint64_t>(m.layers) * page_bytes(codec, {m.kv_heads, m.head_dim}) / kPageTokens;
}

// Exact frames are dear beside records, and more than one buys little: four, or as many as a fortieth of the cap holds.
int window_beside_records(const MemoryConfig& c) {
  const uint64_t frame = lane_token_bytes(c.model, c.exact) * static_cast<uint64_t>(c.model.frame_tokens);
  return static_cast<int>(std::clamp<uint64_t>(c.cap_bytes / 40 / frame, 1, 4));
}

int window_frames(const MemoryConfig& c, bool records) {
  const int needed = std::max(c.model.video_window - 1, 0);
  if (c.window_frames == 0 && records) return std::max(needed, window_beside_records(c));
  if (c.window_frames == 0) return c.model.video_window > 0 ? std::max(needed, 3) : 8;
  if (c.window_frames < needed)
    throw InvalidInput("window_frames=" + std::to_string(c.window_frames) + " is less than the " +
                       std::to_string(needed) + " earlier frames this model's video tokens see.");
  return c.window_frames;
}

// Half precision is dear beside packed tokens: where window and question would take more of the cap than this, a byte a
// number has to do, so that more tokens are kept. A policy that gives nothing up keeps all as it is.
constexpr uint64_t kDearWindow = 16;

CodecId window_codec(const MemoryConfig& c, bool refuses) {
  if (c.window_codec) return *c.window_codec;
  const Size tokens = Size(c.prefix_tokens) + (Size(c.window_frames) + 1) * c.model.frame_tokens + c.branch_tokens;
  const bool dear = tokens * lane_token_bytes(c.model, c.exact) > Size(c.cap_bytes / kDearWindow);
  const bool denser = lane_token_bytes(c.model, CodecId::kK8V8) < lane_token_bytes(c.model, c.exact);  // wide heads
  return !refuses && dear && denser && c.exact == CodecId::kFp16 ? CodecId::kK8V8 : c.exact;
}

int retrieve_tokens(const MemoryConfig& c, const PolicyNeeds& needs, int64_t cap_tokens, bool finds_clusters) {
  if (c.retrieve_tokens > 0) return c.retrieve_tokens;
  const int64_t frame = c.model.frame_tokens, most = kMostCounted;
  if (needs.group.records)  // of an archive
    return static_cast<int>(std::clamp<int64_t>(cap_tokens / (finds_clusters ? 2 : 6), 64, 4096));
  if (needs.read.frames == 0)
    return static_cast<int>(std::min(std::clamp<int64_t>(cap_tokens / 12, 64, 64 * frame), most));
  const auto of_cap = std::max<int64_t>(cap_tokens / (needs.group.by_token ? 8 : 4), 64);
  return static_cast<int>(std::min({needs.read.frames * frame, of_cap, most}));
}

}  // namespace

int most_members(const PolicyNeeds& needs, const MemoryConfig& c) {
  if (needs.share.members == PolicyNeeds::kWithDisk) return c.disk_bytes > 0 ? kPageTokens : 0;
  return needs.share.members == PolicyNeeds::kAll ? c.max_cluster_tokens : needs.share.members;
}

Request resolve(const MemoryConfig& config, Policy& policy, const Backend& backend, uint64_t sized_for) {
  Request r;
  r.config = config;
  r.config.cap_bytes = sized_for;
  r.cap_bytes = config.cap_bytes;
  r.needs = policy.needs();
  r.policy = &policy;
  r.ops = backend.ops.get();
  r.has_private = backend.device->has_private();
  MemoryConfig& c = r.config;
  const PolicyNeeds& needs = r.needs;
  if (!c.packed) c.packed = needs.group.records ? CodecId::kK5V3 : needs.share.refuses ? c.exact : CodecId::kInt4;
  r.original = c.positions == Positions::kOriginal || (c.positions == Positions::kAuto && c.model.context > 0);
  r.context = c.model.context > 0 ? c.model.context : kUnknownContext;
  if (c.model.scale == 0) c.model.scale = 1.0f / std::sqrt(static_cast<float>(c.model.head_dim));
  c.window_frames = window_frames(c, needs.group.records);
  const uint64_t token_bytes = std::max<uint64_t>(lane_token_bytes(c.model, *c.packed), 1);
  const auto cap_tokens = static_cast<int64_t>(c.cap_bytes / token_bytes);
  const bool finds_clusters = needs.group.records && policy.retention()->disk().clusters;
  c.retrieve_tokens = retrieve_tokens(c, needs, cap_tokens, finds_clusters);
  r.choose_scenes = c.scenes == 0;
  if (r.choose_scenes) c.scenes = static_cast<int>(std::clamp<int64_t>(cap_tokens / c.model.frame_tokens / 8, 4, 64));
  if (c.branch_tokens == 0)
    c.branch_tokens =
        static_cast<int>(std::clamp<uint64_t>(c.cap_bytes / 16 / lane_token_bytes(c.model, c.exact), 32, 512));
  if (r.original && config.branch_tokens == 0) {  // and no more than the context has room for
    const int left = r.context - 1 - std::max(c.model.frame_tokens, c.prefix_tokens);
    c.branch_tokens = std::min({c.branch_tokens, std::max(r.context / 8, 16), std::max(left, 16)});
  }
  c.window_codec = window_codec(c, needs.share.refuses);
  if (const int tail = c.branch_tokens + std::max({c.model.frame_tokens, c.branch_tokens, c.prefix_tokens});
      r.original && r.context <= tail)
    throw InvalidInput("MemoryConfig: a model of context=" + std::to_string(r.context) +
                       " positions has no room for a frame, prefix and question of " + std::to_string(tail) +
                       " tokens. Lower branch_tokens= or tokens_per_frame=.");
  if (needs.group.by_token && needs.share.clusters > 0) c.clusters = needs.share.clusters;
  r.choose_clusters = needs.group.by_token && c.clusters == 0;
  if (r.choose_clusters) c.clusters = needs.share.least_clusters;
  if (c.index_share == 0) c.index_share = needs.share.index > 0 ? needs.share.index : kIndexShare;
  // Where clusters or what is read were named, the disk gives them all it can.
  r.disk_is_bounded = c.disk_bytes > 0 && r.choose_clusters && needs.attends_means() && config.retrieve_tokens == 0;
  // The least that works: pages of a frame for each layer, and for one cluster without end those of a batch.
  r.lanes = c.model.layers * (needs.group.per_head || needs.group.records ? c.model.kv_heads : 1);
  r.keeps_members = !needs.group.by_token || most_members(needs, c) > 0;
  const int frames = needs.group.unbounded ? needs.group.frames : 1;
  const int pages = pages_for((Size(c.model.frame_tokens) * frames).to_int("tokens of the frames of a batch"));
  if (needs.group.records && c.disk_bytes > 0) {
    const size_t page = data_bytes(*c.packed, {1, c.model.head_dim});
    const uint64_t stride = SpillFile::stride_of(page) * static_cast<uint64_t>(r.lanes) * kPageTokens;
    r.archive_quota =
        static_cast<int64_t>(std::min<uint64_t>(c.disk_bytes / stride, kMostArchive / static_cast<uint64_t>(r.lanes))) *
        kPageTokens;
    // A frame, and room around what is not whole yet: a page, or a stretch.
    r.least_archive =
        (Size(pages_for(c.model.frame_tokens)) + (finds_clusters ? 8 : 2)).rounded_up(kPageTokens).value();
    r.scanned_pages = c.scanned_pages > 0 ? c.scanned_pages : ArchiveShape::kMostScanned;
    if (r.least_archive > r.scanned_pages)  // whole groups of coarse keys
      r.least_archive = Size(r.least_archive).rounded_up(CoarseKeys::kMostTokens).value();
    if (r.archive_quota < r.least_archive)
      throw MemoryCapError("disk tier: " + std::to_string(r.least_archive) + " pages of every lane need " +
                           format_bytes(stride * static_cast<uint64_t>(r.least_archive / kPageTokens)) +
                           ", disk_bytes is " + format_bytes(c.disk_bytes) + ". Raise disk=.");
  }
  r.least_slots = needs.group.records ? pages : r.keeps_members ? std::max<int64_t>(r.lanes * int64_t{pages}, 4) : 1;
  return r;
}

}  // namespace mosaic
