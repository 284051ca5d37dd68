#include "runtime/recall.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"
#include "core/trace.h"

namespace mosaic {

Recall::Recall(Region& region, const ArchiveShape& s, Ops& ops, double share, int most_tokens)
    : ops_(ops), share_(share), most_tokens_(most_tokens) {
  const char* const name = "archive";
  chosen_ = region.take<uint8_t>(name, s.lanes);
  entries_ = region.take<PageEntry>(name, s.pages / kPageTokens);
  positions_ = region.take<int32_t>(name, s.pages);
  places_ = s.places ? region.take<uint16_t>(name, Size(s.pages) * 2) : nullptr;
  mass_ = region.take<float>(name, s.pages);
  tokens_ = region.take<float>(name, s.pages);
  order_ = region.take<int32_t>(name, s.pages);
}

void Recall::forget(Archive* archive) {
  archive->forget_choices();
  std::fill_n(chosen_, archive->shape().lanes, uint8_t{0});
}

// Tokens of the group at a place of the index that were given up and are not too old, as rows of their page.
uint16_t Recall::rows_of_group(const Archive& archive, int lane, int at, Since since) const {
  const int each = archive.keys().group_tokens(), page = archive.page_of_group(at);
  const int first = at % kPageTokens * each % kPageTokens;
  auto rows = static_cast<uint16_t>(archive.gone(lane, page) & rows_of(first, first + each));
  for (int i = first; i < first + each && since.asks(); ++i)
    if (!since.wants(archive.positions(page)[i], archive.time_lows(page)[i])) rows &= static_cast<uint16_t>(~(1u << i));
  return rows;
}

// What can be chosen: whole groups of whole pages. Returns the pages of coarse keys they are in.
int Recall::list_groups(const Archive& archive, int lane, const BlockSelection& selection,
                        const SelectionScratch& scratch, Since since) {
  const CoarseKeys& keys = archive.keys();
  const int each = keys.group_tokens();
  for (int e = 0; e < keys.pages(); ++e) entries_[e] = {keys.page(lane, e), e * kPageTokens, 0, CoarseKeys::kCodec};
  const int64_t end = archive.tokens() / kPageTokens * kPageTokens / each;
  for (int64_t group = archive.first() / each; group < end; ++group) {
    const auto at = static_cast<int>(group % keys.groups());
    const int page = archive.page_of_group(at), middle = (at % kPageTokens * each + each / 2) % kPageTokens;
    tokens_[at] = static_cast<float>(std::popcount(rows_of_group(archive, lane, at, since)));
    positions_[at] = selection.place_of(archive.positions(page)[middle], scratch);
    if (places_ != nullptr) std::copy_n(archive.places(page) + 2 * middle, 2, places_ + 2 * at);
    if (tokens_[at] > 0) entries_[at / kPageTokens].rows |= static_cast<uint16_t>(1u << (at % kPageTokens));
  }
  int n = 0;
  for (int e = 0; e < keys.pages(); ++e)
    if (entries_[e].rows != 0) {
      entries_[n] = entries_[e];
      entries_[n].first += entries_[n].begin();
      ++n;
    }
  return n;
}

void Recall::choose(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                    const SelectionScratch& scratch, Since since) {
  const trace::Span span("recall", lane);
  chosen_[lane] = 1;
  archive->set_count(lane, 0);
  const int n = list_groups(*archive, lane, selection, scratch, since);
  if (n == 0) return;
  AttendArgs keys = args;
  keys.pages = entries_;
  keys.n_pages = n;
  keys.positions = positions_;
  keys.places = places_;
  MassArgs wanted;
  wanted.attend = &keys;
  wanted.page_mass = mass_;
  wanted.first_query = 0;
  ops_.attention_mass(wanted);
  int groups = 0;
  for (int e = 0; e < n; ++e)
    for (int i = entries_[e].begin(); i < entries_[e].end(); ++i) {
      if (!entries_[e].has(i)) continue;
      const int at = entries_[e].first - entries_[e].begin() + i;
      mass_[at] *= tokens_[at];
      order_[groups++] = at;
    }
  // Best first; among equals by place, so that two runs stay the same.
  std::sort(order_, order_ + groups, [&](int a, int b) { return mass_[a] != mass_[b] ? mass_[a] > mass_[b] : a < b; });
  const auto share = static_cast<int64_t>(std::ceil(share_ * static_cast<double>(archive->spilled(lane))));
  int64_t left = std::min<int64_t>(std::max<int64_t>(share, kPageTokens), most_tokens_);
  Archive::Piece* const pieces = archive->pieces(lane);
  int count = 0;
  for (int i = 0; i < groups && left > 0; ++i) {
    const int page = archive->page_of_group(order_[i]);
    uint16_t rows = rows_of_group(*archive, lane, order_[i], since);
    while (std::popcount(rows) > left) rows &= static_cast<uint16_t>(rows - 1);
    auto* const piece = std::find_if(pieces, pieces + count, [&](const Archive::Piece& p) { return p.page == page; });
    if (piece == pieces + count) {
      if (count == archive->shape().most_read) continue;
      pieces[count++] = {page, 0};
    }
    piece->rows |= rows;
    left -= std::popcount(rows);
  }
  std::sort(pieces, pieces + count, [](const auto& a, const auto& b) { return a.page < b.page; });
  archive->set_count(lane, count);
}

int64_t Recall::read(Archive* archive, int lane, BlockSelection* selection) {
  const int64_t lost = archive->fetch(lane);
  for (int i = 0; i < archive->count(lane); ++i) {
    const Archive::Piece& piece = archive->pieces(lane)[i];
    if (!selection->add_rows(archived_page(piece.page), archive->copy(lane, i), archive->shape().codec, piece.rows,
                             archive->positions(piece.page), archive->places(piece.page)))
      throw InvariantError("Recall: more pages than a selection holds (a defect of the plan).");
  }
  return lost;
}

}  // namespace mosaic
