#include "store/coarse_keys.h"

#include <algorithm>

#include "core/size.h"

namespace mosaic {

CoarseKeys::CoarseKeys(Region& region, const CoarseShape& s, Ops& ops)
    : shape_(s), ops_(ops), page_bytes_(k_panel_bytes(kCodec, s.page.head_dim)) {
  const char* const name = "archive";
  if (s.groups == 0) return;
  data_ = region.take_for_kernels(name, Size(s.lanes) * pages() * page_bytes_);
  sums_ = region.take<float>(name, Size(s.lanes) * s.page.row());
  means_ = region.take<float>(name, Size(kAtOnce) * s.page.row());
  to_ = region.take<std::byte*>(name, kAtOnce);
  at_ = region.take<int32_t>(name, kAtOnce);
}

void CoarseKeys::make_room(int64_t first, int n, const float* key_means) {
  while (shape_.groups > 0 && group_ < kMostTokens && first + n > int64_t{shape_.groups} * group_) {
    for (int lane = 0; lane < shape_.lanes; ++lane) halve(lane, first, key_means + static_cast<size_t>(lane) * row());
    group_ *= 2;
  }
}

// Two neighbours become one. No index is written before it was read: a group's own lies before those of its halves.
void CoarseKeys::halve(int lane, int64_t tokens, const float* key_mean) {
  const auto whole = static_cast<int>(tokens / group_);
  const auto read = [&](int group, float* to) {
    ops_.decode(kCodec, shape_.page, page(lane, group / kPageTokens), group % kPageTokens, group % kPageTokens + 1, to,
                nullptr, row(), key_mean);
  };
  for (int first = 0; first + 1 < whole;) {
    const int n = std::min(kAtOnce / 2, (whole - first) / 2);
    for (int i = 0; i < n; ++i) {
      read(first + 2 * i, means_ + static_cast<size_t>(i) * row());
      read(first + 2 * i + 1, means_ + static_cast<size_t>(kAtOnce / 2 + i) * row());
    }
    ops_.wait();
    for (int i = 0; i < n; ++i) {
      float* const a = means_ + static_cast<size_t>(i) * row();
      const float* const b = means_ + static_cast<size_t>(kAtOnce / 2 + i) * row();
      for (size_t c = 0; c < row(); ++c) a[c] = 0.5f * (a[c] + b[c]);
      const int group = first / 2 + i;
      to_[i] = page(lane, group / kPageTokens);
      at_[i] = group % kPageTokens;
    }
    flush(n, key_mean);
    first += 2 * n;
  }
  if (whole % 2 == 0) return;
  // The last one has no neighbour yet: it is the first half of the group that is not whole.
  read(whole - 1, means_);
  ops_.wait();
  for (size_t c = 0; c < row(); ++c) sum_of(lane)[c] += means_[c] * static_cast<float>(group_);
}

void CoarseKeys::flush(int n, const float* key_mean) {
  if (n == 0) return;
  ops_.encode_rows(kCodec, shape_.page, means_, nullptr, row(), n, to_, at_, key_mean);
  ops_.wait();
}

void CoarseKeys::add(int lane, int64_t first, const float* k, int n, const float* key_mean) {
  if (shape_.groups == 0) return;
  int made = 0;
  for_groups(
      lane, first, k, n, [&](int) { return means_ + static_cast<size_t>(made) * row(); },
      [&](int, std::byte* page, int at) {
        to_[made] = page;
        at_[made] = at;
        if (++made < kAtOnce) return;
        flush(made, key_mean);
        made = 0;
      });
  flush(made, key_mean);
}

void CoarseKeys::serialize(Snapshot& s, int64_t tokens, const float* key_means, RestoredPage* room) {
  s.in_range(group_, 1, kMostTokens, "tokens of a coarse key");
  s.require((group_ & (group_ - 1)) == 0, "a coarse key is of 1, 2, 4, .. or 64 tokens");
  s.require(shape_.groups == 0 || group_ == kMostTokens || tokens <= int64_t{shape_.groups} * group_,
            "there are no more coarse keys than there is room for");
  if (shape_.groups == 0) return;
  s.finite(sums_, static_cast<size_t>(shape_.lanes) * row(), "a sum of keys is a number");
  const auto key_page = [&](int lane, int i) { return page(lane, i); };
  room->serialize_keys(s, kCodec, shape_.lanes, pages(), key_page, page_bytes_, key_means,
                       "a coarse key is of numbers");
}

}  // namespace mosaic
