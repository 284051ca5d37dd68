// What is read of an archive that has clusters: the best by the attention that their keys would be paid, as units. Nothing
// else is fetched to choose them.
#include <algorithm>
#include <bit>

#include "runtime/recall.h"

namespace mosaic {

// The mass of every cluster that has something to read into mass_, and those clusters, which are pages, into order_. Returns
// how many.
int Recall::weigh_clusters(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                           const SelectionScratch& scratch, Since since) {
  const TokenClusters& clusters = archive.clusters();
  const int pages = archive.shape().pages;
  std::fill_n(rows_, pages, uint16_t{0});
  int n = 0, entries = 0;
  for (int64_t number = archive.first() / kPageTokens; number < archive.written() / kPageTokens; ++number) {
    const auto page = static_cast<int>(number % pages);
    rows_[page] = readable(archive, lane, page, since);
    if (rows_[page] == 0) continue;
    constexpr int kMiddle = kPageTokens / 2;  // this token stands for all of them
    positions_[page] = selection.position_of(archive.position(lane, page, kMiddle), scratch);
    if (places_ != nullptr) std::copy_n(archive.place(lane, page, kMiddle), 2, places_ + 2 * page);
    order_[n++] = page;
  }
  for (int first = 0; first < pages; first += kPageTokens) {
    uint16_t some = 0;
    for (int i = 0; i < kPageTokens; ++i)
      if (rows_[first + i] != 0) some |= static_cast<uint16_t>(1u << i);
    if (some == 0) continue;
    entries_[entries] = {clusters.page(lane, first / kPageTokens), first, some, TokenClusters::kCodec};
    entries_[entries].first += entries_[entries].begin();
    ++entries;
  }
  weigh_keys(args, entries);
  return n;
}

// The best, whole, as far as tokens and copies go; one in any case.
bool Recall::choose_clusters(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                             const SelectionScratch& scratch, Since since, int64_t tokens) {
  const int n = weigh_clusters(*archive, lane, args, selection, scratch, since);
  std::sort(order_, order_ + n, [&](int a, int b) { return mass_[a] != mass_[b] ? mass_[a] > mass_[b] : a < b; });
  Archive::Piece* const pieces = archive->pieces(lane);
  int count = 0;
  const auto take = [&](int page, uint16_t rows) {
    if (rows == 0 || count == most_read_ || (count > 0 && std::popcount(rows) > tokens)) return;
    pieces[count++] = {page, rows};
    tokens -= std::popcount(rows);
  };
  // What waits to be written is in memory, and read whatever it promises.
  for (int64_t at = archive->written(); at < archive->tokens(); at += kPageTokens) {
    const auto page = static_cast<int>(at / kPageTokens % archive->shape().pages);
    take(page, readable(*archive, lane, page, since));
  }
  for (int i = 0; i < n; ++i) take(order_[i], rows_[order_[i]]);
  std::sort(pieces, pieces + count, [](const auto& a, const auto& b) { return a.page < b.page; });
  archive->set_count(lane, count);
  return count > 0;
}

}  // namespace mosaic
