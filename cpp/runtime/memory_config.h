// What a memory is made for: the model as it sees it, and its settings. Plain data.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "codec/codec.h"
#include "core/rope.h"

namespace mosaic {

// The model as the memory sees it.
struct ModelShape {
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 0;  // on the logit; 0: 1/sqrt(head_dim)
  RopeSpec rope;
  std::shared_ptr<const std::vector<double>> frequencies;  // what rope.scaled points at, if it does
  int embedding_dim = 0;                                   // of a frame's embedding
  int frame_tokens = 0;                                    // largest frame
  int video_window = 0;  // frames a video token sees, its own counted; 0: everything the policy selects
  int context = 0;       // positions the model was trained for (max_position_embeddings); 0: not known
};

// The position a token of the store is rotated by when it is read.
enum class Positions : uint8_t {
  kAuto,        // original where the model says how far its positions go, else contiguous
  kOriginal,    // where it came, as long as that fits the model's positions; then gaps where nothing is kept close up
  kContiguous,  // what is attended closes up, in time order
};

// What happens to a finite number of q, k or v that half precision does not hold: means, packed pages and a window in fp16
// are half precision, and infinity there would be in every later answer.
enum class Overflow : uint8_t {
  kRefuse,    // the block is refused, naming layer and head
  kSaturate,  // it becomes the nearest that half precision holds, and is counted
};

struct MemoryConfig {
  ModelShape model;
#define MOSAIC_SETTING(type, name, initial, what) type name = initial;
#include "runtime/memory_config.def"
#undef MOSAIC_SETTING
  // No setting of a user's: pages of an archive that a question looks through at most, a multiple of 16; 0: as many as
  // ArchiveShape says. Few of them bring small streams to where coarse keys are needed.
  int scanned_pages = 0;
};

// visit(name, field) for every setting, in the order of the list.
template <class Config, class Visit>
void for_each_setting(Config& config, const Visit& visit) {
#define MOSAIC_SETTING(type, name, initial, what) visit(#name, config.name);
#include "runtime/memory_config.def"
#undef MOSAIC_SETTING
}

inline constexpr int kMostCounted = 1 << 24;  // of anything that a setting counts

// Throws InvalidInput naming the first value that makes no sense.
void check(const MemoryConfig& config);

}  // namespace mosaic
