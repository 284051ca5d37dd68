// The plan: how the cap is split, decided before anything is allocated. Every byte that a stream could make grow is in
// it - window, question text, pages of every DRAM tier, index, scenes, page table, selections, fetch cache, scratch -
// and the sum is what the session takes, once. What cannot work is refused here, naming the knob.
//   resolve (resolve.cc) what "choose" means for a cap > lay out (layout.cc) all sizes of one choice, and what the parts
//   of a session take for it > fit (plan.cc) the largest choice that the cap holds
#pragma once

#include <string>
#include <vector>

#include "backend/backend.h"
#include "policy/policy.h"
#include "runtime/memory_config.h"
#include "store/archive.h"
#include "store/listening.h"
#include "store/window.h"

namespace mosaic {

// Lanes of a layer that are attended at once, where kernels have memory of their own and every lane a table.
inline constexpr int kLanesTogether = 8;

struct Plan {
  MemoryConfig config;  // with every 0 that means "choose" resolved
  StoreShape store;
  LogShape log;  // of a policy by records; the store has no lanes then
  ListeningShape listening;
  ArchiveShape archive;  // and its disk
  WindowShape window;
  int layer_lanes = 1;     // lanes of one layer: 1, or one per KV head
  int together = 1;        // of them that are attended at once
  int batch_frames = 1;    // frames that leave the window together
  int max_block = 0;       // most tokens of one forward pass
  int select_entries = 0;  // pages, tokens and summaries attended at most, per layer
  int select_tokens = 0;
  int select_rows = 0;
  // The same by a frame that reads what is kept, in one table for all lanes; 0: frames read as questions do.
  int frame_entries = 0;
  int frame_tokens = 0;
  int frame_rows = 0;
  bool attends_means = false;  // means stand for what is not read; false: they are for scoring
  bool original = false;       // positions, as rule and model have it
  int context = 0;             // positions there are then
  int rope_positions = 0;
  struct Part {
    std::string name;
    uint64_t bytes;
    const char* knob;  // what makes it smaller
  };
  std::vector<Part> parts;
  uint64_t sized_for_bytes = 0;  // the cap that sizes which go by the cap were chosen for: this one's, or a smaller
  uint64_t total_bytes = 0;      // what will be taken: <= cap_bytes
  uint64_t private_bytes = 0;    // of it, of memory that kernels alone reach

  Ops::Limits ops_limits() const;
  Ops::Limits host_limits() const;  // of Ops::for_host(), where that is another: one token at a time
};

// Throws InvalidInput (a value that makes no sense) or MemoryCapError (the cap cannot hold the least there must be).
// The policy is bound to counting regions meanwhile.
Plan make_plan(const MemoryConfig& config, Policy& policy, const Backend& backend);

}  // namespace mosaic
