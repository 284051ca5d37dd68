#include "runtime/memory_config.h"

#include <algorithm>

#include "core/error.h"
#include "core/size.h"

namespace mosaic {

namespace {

constexpr int kMostLanes = 32'767;    // a page's record has 16 bits for its lane
constexpr int kMostWindow = 1 << 29;  // tokens of a lane that stay exact
constexpr int kMostContext = 1 << 24;

void need(bool holds, const std::string& what) {
  if (!holds) throw InvalidInput("MemoryConfig: " + what);
}

void check(const ModelShape& m) {
  need(m.layers > 0 && m.q_heads > 0 && m.kv_heads > 0 && m.head_dim > 0,
       "layers, heads and head_dim must be positive.");
  need(m.q_heads % m.kv_heads == 0,
       "q_heads=" + std::to_string(m.q_heads) + " is not a multiple of kv_heads=" + std::to_string(m.kv_heads) + ".");
  need(m.frame_tokens > 0, "frame_tokens must be positive.");
  need(m.embedding_dim > 0, "embedding_dim must be positive.");
  need(std::max(m.frame_tokens, m.embedding_dim) <= kMostCounted && Size(m.q_heads) * m.head_dim <= kMostCounted,
       "frame_tokens, embedding_dim and q_heads x head_dim must be at most 16,777,216.");
  need(m.context >= 0 && m.context <= kMostContext, "context must be 1 to 16,777,216, 0: not known.");
  need(Size(m.layers) * m.kv_heads <= kMostLanes, "layers x kv_heads must be at most 32,767.");
}

}  // namespace

void check(const MemoryConfig& c) {
  const ModelShape& m = c.model;
  check(m);
  need(codec_is_exact(c.exact), std::string("exact=") + codec_name(c.exact) + " is not an exact codec (fp32, fp16).");
  need(!c.window_codec || codec_is_exact(*c.window_codec) || *c.window_codec == CodecId::kK8V8,
       std::string("window_codec=") + codec_name(c.window_codec.value_or(CodecId::kFp16)) +
           " is none of fp32, fp16, k8v8.");
  need(c.refresh_every >= 0, "refresh_every must be 0 (once) or more tokens.");
  need(std::max({c.prefix_tokens, c.branch_tokens, c.retrieve_tokens, c.clusters, c.scenes, c.window_frames,
                 c.max_cluster_tokens}) <= kMostCounted,
       "counts must be at most 16,777,216.");
  need(c.exact_share >= 0 && c.exact_share < 1, "exact_share must be in [0, 1).");
  need(c.index_share >= 0 && c.index_share < 1, "index_share must be in [0, 1), 0: by the policy.");
  need(c.prefix_tokens >= 0 && c.branch_tokens >= 0 && c.retrieve_tokens >= 0 && c.clusters >= 0 && c.scenes >= 0 &&
           c.window_frames >= 0,
       "counts must not be negative.");
  need(c.max_cluster_tokens >= 2, "max_cluster_tokens must be at least 2.");
  need(c.disk_bytes == 0 || !c.spill_dir.empty(), "disk_bytes needs spill_dir=.");
  const Size window = (Size(c.window_frames) + 1) * m.frame_tokens;
  need(window <= kMostWindow, "window_frames=" + std::to_string(c.window_frames) + " frames of frame_tokens=" +
                                  std::to_string(m.frame_tokens) + " are " + std::to_string(window.value()) +
                                  " tokens; a window holds at most 536,870,912. Lower window_frames=.");
}

}  // namespace mosaic
