// TokenClusters: the tokens of an archive by likeness. A stretch is so many tokens of a lane that came one after the other, whole
// pages of them. When it is whole it is cut in two halves by 2-means over keys and values, each half in two again, down to
// a page: a cluster is a page of tokens that are alike, every slot of it taken. What all keys of a stretch share changes
// nothing. A cluster is found by a key in two bits, the mean of its members' keys before RoPE less the lane's mean key: it
// is an index and the unit that is moved and read, never what is left of its tokens.
// Mechanism, no choices. Not thread-safe.
#pragma once

#include "backend/ops.h"
#include "memory/region.h"
#include "store/restored_page.h"

namespace mosaic {

struct ClusterShape {
  int lanes = 0;
  int pages = 0;        // of a lane, a multiple of 16 and whole stretches
  int stretch = 0;      // tokens: 32 or 64; 0: there are no clusters
  float of_values = 1;  // weight of values beside keys
  PageShape page;
};

class TokenClusters {
 public:
  static constexpr CodecId kCodec = CodecId::kK2V2;

  TokenClusters(Region& region, const ClusterShape& shape, Ops& ops);

  const ClusterShape& shape() const { return shape_; }
  bool any() const { return shape_.stretch > 0; }
  int pages() const { return any() ? shape_.pages / kPageTokens : 0; }
  // Keys of clusters [16 page, 16 page + 16), which are pages of the archive: a page that ends behind its keys.
  std::byte* page(int lane, int page) const {
    return data_ + (static_cast<size_t>(lane) * static_cast<size_t>(pages()) + static_cast<size_t>(page)) * page_bytes_;
  }
  // Tokens of its stretch that a cluster has, a bit each: they stand in the order in which they came.
  uint64_t members(int lane, int page) const {
    const uint32_t* const words = members_ + at_members(lane, page);
    return shape_.stretch > 32 ? uint64_t{words[1]} << 32 | words[0] : words[0];
  }

  // Room for the tokens of a stretch, [stretch, 2 row]: each token's key, and its value beside it.
  float* rows() const { return x_; }
  // What is in rows() is that stretch of the lane, by its place; it is worked on where it lies.
  void cut(int lane, int stretch, const float* key_mean);
  // The same, but that the keys are left to be coded: they go to `keys`, a row a cluster, and to the pages and tokens that are
  // written here.
  void cut(int lane, int stretch, float* keys, std::byte** pages, int32_t* at);
  // stretches: places that are taken. key_means [lanes, row].
  void serialize(Snapshot& s, int stretches, const float* key_means, RestoredPage* room);

 private:
  size_t row() const { return static_cast<size_t>(shape_.page.row()); }
  size_t at_members(int lane, int page) const {
    return (static_cast<size_t>(lane) * static_cast<size_t>(shape_.pages) + static_cast<size_t>(page)) *
           static_cast<size_t>(shape_.stretch / 32);
  }
  float centre(float* mean);
  void mean_of(const uint8_t* tokens, int n, float* to) const;
  const float* farthest(const uint8_t* tokens, int n, const float* from) const;
  void point_apart(const uint8_t* tokens, int n);
  void halve(uint8_t* tokens, int n);

  ClusterShape shape_;
  Ops& ops_;
  size_t page_bytes_;
  std::byte* data_ = nullptr;    // [lanes, pages(), page_bytes_]
  uint32_t* members_ = nullptr;  // [lanes, pages, stretch / 32]
  uint8_t* order_ = nullptr;     // [stretch] tokens by cluster
  float* x_ = nullptr;           // [stretch, 2 row]
  float* means_ = nullptr;       // [pages of a stretch, row]
  float* mean_ = nullptr;        // [2 row]
  float* halves_ = nullptr;      // [2, 2 row] the centres of both
  float* between_ = nullptr;     // [2 row] from one to the other
  float* along_ = nullptr;       // [stretch] how far along that each token lies
  std::byte** to_ = nullptr;     // [pages of a stretch]
  int32_t* at_ = nullptr;
};

}  // namespace mosaic
