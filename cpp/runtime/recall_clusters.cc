// What is read of an archive that has clusters: the best by the attention that their keys would be paid, as units. Nothing
// else is fetched to choose them.
#include <algorithm>
#include <bit>

#include "runtime/recall.h"

namespace mosaic {

// The keys of every cluster that has something to read, and those clusters, which are pages, into order.
void Recall::list_clusters(const Archive& archive, Room* r, Since since) {
  const TokenClusters& clusters = archive.clusters();
  const int pages = archive.shape().pages, lane = r->asking.lane;
  std::fill_n(r->rows, pages, uint16_t{0});
  r->pages = r->n_entries = 0;
  r->to = r->mass, r->heads = nullptr;
  for (int64_t number = archive.first() / kPageTokens; number < archive.written() / kPageTokens; ++number) {
    const auto page = static_cast<int>(number % pages);
    r->rows[page] = readable(archive, lane, page, since);
    if (r->rows[page] == 0) continue;
    put_place(archive, r, page, page, kPageTokens / 2);  // its middle token stands for all of them
    r->order[r->pages++] = page;
  }
  for (int first = 0; first < pages; first += kPageTokens) {
    uint16_t some = 0;
    for (int i = 0; i < kPageTokens; ++i)
      if (r->rows[first + i] != 0) some |= static_cast<uint16_t>(1u << i);
    if (some == 0) continue;
    PageEntry& entry = r->entries[r->n_entries++];
    entry = {clusters.page(lane, first / kPageTokens), first, some, TokenClusters::kCodec};
    entry.first += entry.begin();
  }
}

// The best, whole, as far as tokens and copies go; one in any case.
void Recall::take_clusters(Archive* archive, Room* r, Since since) {
  const int lane = r->asking.lane;
  std::sort(r->order, r->order + r->pages, Heaviest{r->mass});
  Archive::Piece* const pieces = archive->pieces(lane);
  int count = 0;
  const auto take = [&](int page, uint16_t rows) {
    if (rows == 0 || count == most_read_ || (count > 0 && std::popcount(rows) > r->tokens)) return;
    pieces[count++] = {page, rows};
    r->tokens -= std::popcount(rows);
  };
  // What waits to be written is in memory, and read whatever it promises.
  for (int64_t at = archive->written(); at < archive->tokens(); at += kPageTokens) {
    const auto page = static_cast<int>(at / kPageTokens % archive->shape().pages);
    take(page, readable(*archive, lane, page, since));
  }
  for (int i = 0; i < r->pages; ++i) take(r->order[i], r->rows[r->order[i]]);
  std::sort(pieces, pieces + count, [](const auto& a, const auto& b) { return a.page < b.page; });
  archive->set_count(lane, count);
}

void Recall::choose_clusters(Reader reader, Archive* archive, Since since) {
  for (Room& r : rooms()) {
    r.tokens = tokens_for(reader, *archive, r.asking.lane);
    list_clusters(*archive, &r, since);
  }
  weigh();
  for (Room& r : rooms()) take_clusters(archive, &r, since);
}

}  // namespace mosaic
