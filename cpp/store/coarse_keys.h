// CoarseKeys: what tokens on disk are chosen by. A key in two bits stands for a group of neighbours: the mean of their keys
// before RoPE, less the lane's mean key. Groups begin at one token; when a lane has as many as there is room for, two
// neighbours become one, up to four pages: early in a stream the index is fine, late it is coarse, and its bytes stay.
// Tokens are numbered from 0 in the order in which they came, the same in every lane; when groups
// are as large as they can be the oldest group's index is used again. Not thread-safe.
#pragma once

#include <algorithm>

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
  // The same, but that the groups which become whole are left to be coded: whole(i, page, at) is called when row i of k has
  // become the mean key of one, which belongs there.
  template <class Whole>
  void sum(int lane, int64_t first, float* k, int n, const Whole& whole) {
    for_groups(lane, first, k, n, [&](int i) { return k + static_cast<size_t>(i) * row(); }, whole);
  }
  // tokens: that came. key_means [lanes, row].
  void serialize(Snapshot& s, int64_t tokens, const float* key_means, RestoredPage* page);

 private:
  size_t row() const { return static_cast<size_t>(shape_.page.row()); }
  float* sum_of(int lane) const { return sums_ + static_cast<size_t>(lane) * row(); }
  template <class Room, class Whole>
  void for_groups(int lane, int64_t first, const float* k, int n, const Room& room, const Whole& whole);
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

// Sums the tokens of a lane; where a group is whole its mean goes to room(i), i its last token, which may take that token's
// place.
template <class Room, class Whole>
void CoarseKeys::for_groups(int lane, int64_t first, const float* k, int n, const Room& room, const Whole& whole) {
  float* const sum = sum_of(lane);
  for (int i = 0; i < n; ++i) {
    for (size_t c = 0; c < row(); ++c) sum[c] += k[static_cast<size_t>(i) * row() + c];
    if ((first + i + 1) % group_ != 0) continue;
    const auto group = static_cast<int>((first + i) / group_ % shape_.groups);
    float* const mean = room(i);
    for (size_t c = 0; c < row(); ++c) mean[c] = sum[c] / static_cast<float>(group_);
    std::fill_n(sum, row(), 0.0f);
    whole(i, page(lane, group / kPageTokens), group % kPageTokens);
  }
}

}  // namespace mosaic
