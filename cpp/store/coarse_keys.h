// CoarseKeys: what tokens on disk are chosen by. A key in two bits stands for a group of neighbours: the mean of their keys
// before RoPE, less the lane's mean key. Groups begin at one token; when a lane has as many as there is room for, two
// neighbours become one, up to four pages: early in a stream the index is fine, late it is coarse, and its bytes stay.
// Tokens are numbered from 0 in the order in which they came, the same in every lane; when groups
// are as large as they can be the oldest group's index is used again. Not thread-safe.
#pragma once

#include "backend/ops.h"
#include "memory/region.h"
#include "store/restored_page.h"

namespace mosaic {

struct CoarseShape {
  int lanes = 0;
  int groups = 0;  // of a lane, a multiple of 16; 0: there are none
  PageShape page;
};

class CoarseKeys {
 public:
  static constexpr CodecId kCodec = CodecId::kK2V2;
  static constexpr int kMostPages = 4, kMostTokens = kMostPages * kPageTokens;  // of a group

  CoarseKeys(Region& region, const CoarseShape& shape, Ops& ops);

  int groups() const { return shape_.groups; }
  int group_tokens() const { return group_; }
  int pages() const { return shape_.groups / kPageTokens; }
  // Keys of groups [16 page, 16 page + 16): a page that ends behind its keys.
  std::byte* page(int lane, int page) const {
    return data_ + (static_cast<size_t>(lane) * static_cast<size_t>(pages()) + static_cast<size_t>(page)) * page_bytes_;
  }
  // Before tokens [first, first + n) come: groups become larger until they have room. key_means [lanes, row].
  void make_room(int64_t first, int n, const float* key_means);
  // The lane's tokens from `first` on. Whole groups can be chosen from now on.
  void add(int lane, int64_t first, const float* k, int n, const float* key_mean);
  // tokens: that came. key_means [lanes, row].
  void serialize(Snapshot& s, int64_t tokens, const float* key_means, RestoredPage* page);

 private:
  size_t row() const { return static_cast<size_t>(shape_.page.row()); }
  float* sum_of(int lane) const { return sums_ + static_cast<size_t>(lane) * row(); }
  void halve(int lane, int64_t tokens, const float* key_mean);
  void flush(int n, const float* key_mean);

  CoarseShape shape_;
  Ops& ops_;
  size_t page_bytes_;
  std::byte* data_ = nullptr;  // [lanes, pages, page_bytes_]
  float* sums_ = nullptr;      // [lanes, row] of the group that is not whole
  float* means_ = nullptr;     // [kAtOnce, row]
  std::byte** to_ = nullptr;   // [kAtOnce]
  int32_t* at_ = nullptr;      // [kAtOnce]
  int group_ = 1;
  static constexpr int kAtOnce = 32;
};

}  // namespace mosaic
