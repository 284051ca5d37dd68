// The plan: how the cap is split, decided before anything is allocated. Every byte that a stream could make grow is in
// it - window, question text, pages of every DRAM tier, index, scenes, page table, selections, fetch cache, scratch -
// and the sum is what the session takes, once. What cannot work is refused here, naming the knob.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "policy/policy.h"
#include "store/listening.h"
#include "store/token_log.h"
#include "store/window.h"

namespace mosaic {

// The model as the memory sees it.
struct ModelShape {
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 0;  // on the logit; 0: 1/sqrt(head_dim)
  RopeSpec rope;
  int embedding_dim = 0;  // of a frame's embedding
  int frame_tokens = 0;   // largest frame
  int video_window = 0;   // frames a video token sees, its own counted; 0: everything the policy selects
  int context = 0;        // positions the model was trained for (max_position_embeddings); 0: not known
};

// Where what is attended stands.
enum class PositionRule : uint8_t {
  kAuto,        // original where the model says how far its positions go, else contiguous
  kOriginal,    // where it came, as long as that fits the model's positions; then gaps where nothing is kept close up
  kContiguous,  // without gaps, in time order
};

struct MemoryConfig {
  ModelShape model;
  uint64_t cap_bytes = 0;
  CodecId exact = CodecId::kFp16;   // window, question, open pages
  // Pages that yielded; the same as exact: no second tier. Not said: k5v3 by records, exact for who lets nothing go, else int4.
  std::optional<CodecId> packed;
  double exact_share = 0.15;        // of the page bytes, for open exact pages (policies by token)
  double index_share = 0;           // of what is left after the fixed parts, for clusters' summaries; 0: by the policy
  uint64_t device_bytes = 0;  // of the cap, for pages in a card's own memory, other packed ones on its host; 0: all
  uint64_t disk_bytes = 0;    // 0: no disk tier, what does not fit is summarised or dropped
  std::string spill_dir;
  int window_frames = 0;    // 0: what the model needs, at least 4
  int prefix_tokens = 0;    // room for a system prompt
  int branch_tokens = 0;    // room for dialogue + question + answer; 0: a sixteenth of the cap, 32 to 512
  int retrieve_tokens = 0;  // members read per layer and question; 0: by the policy and the cap, at most 64 frames
  int clusters = 0;         // per layer; 0: by index_share
  int scenes = 0;           // 0: by the cap
  int max_cluster_tokens = 64;
  PositionRule positions = PositionRule::kAuto;
  bool summaries = true;            // unselected clusters are attended by their mean
  int refresh_every = 0;            // tokens after which a question selects anew; 0: once
  bool prefetch = true;             // next layer's disk pages are asked for with this layer's query
};

struct Plan {
  MemoryConfig config;  // with every 0 that means "choose" resolved
  StoreShape store;  // no lanes, where the policy keeps records
  LogShape log;      // of a policy by records
  ListeningShape listening;
  WindowShape window;
  int layer_lanes = 1;     // lanes of one layer: 1, or one per KV head
  int block_frames = 1;    // frames that leave the window together
  int max_block = 0;       // most tokens of one forward pass
  int select_entries = 0;  // pages, tokens and summaries attended at most, per layer
  int select_tokens = 0;
  int select_rows = 0;
  bool summaries = false;  // means stand for what is not read; false: they are for scoring
  bool original = false;  // positions, as the rule and the model have it
  int context = 0;        // positions there are; 0: as many as are attended
  int rope_positions = 0;
  struct Part {
    std::string name;
    uint64_t bytes;
  };
  std::vector<Part> parts;
  // By token: DRAM that the records of a disk may take, and its read copies as much again.
  uint64_t disk_share_bytes = std::numeric_limits<uint64_t>::max();
  uint64_t total_bytes = 0;    // what will be taken: <= cap_bytes
  bool private_data = false;   // kernels have memory of their own, and the data of pages lies there
  uint64_t private_bytes = 0;  // of total_bytes, what lies there
};

// Throws InvalidInput (a value that makes no sense) or MemoryCapError (the cap cannot hold the least there must be).
Plan make_plan(const MemoryConfig& config, const Policy& policy, const Backend& backend);

}  // namespace mosaic
