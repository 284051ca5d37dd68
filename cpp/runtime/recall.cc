#include "runtime/recall.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"
#include "core/trace.h"

namespace mosaic {

namespace {

constexpr float kMostMass = 1e30f;  // sums of it are finite

}  // namespace

Recall::Recall(Region& region, const ArchiveShape& s, Ops& ops, const Shares& shares, int most_tokens)
    : ops_(ops), shares_(shares), most_tokens_(most_tokens), most_read_(s.most_read) {
  const char* const name = "archive";
  const Size at_once = std::max(Size(s.pages), Size(s.most_read) * kPageTokens);
  const Size in_all = std::max(Size(s.pages), Size(s.most_scanned()) * kPageTokens);
  chosen_ = region.take<uint8_t>(name, s.lanes);
  entries_ = region.take<PageEntry>(name, std::max(s.pages / kPageTokens, s.most_read));
  positions_ = region.take<int32_t>(name, at_once);
  places_ = s.places ? region.take<uint16_t>(name, at_once * 2) : nullptr;
  mass_ = region.take<float>(name, in_all);
  order_ = region.take<int32_t>(name, in_all);
  worth_ = region.take<float>(name, s.pages);
  scanned_ = region.take<int32_t>(name, s.most_scanned());
  rows_ = region.take<uint16_t>(name, s.most_scanned());
}

void Recall::forget(Archive* archive) {
  archive->forget_choices();
  std::fill_n(chosen_, archive->shape().lanes, uint8_t{0});
}

// Tokens of a page that were given up and are not too old.
uint16_t Recall::readable(const Archive& archive, int lane, int page, Since since) const {
  uint16_t rows = archive.gone(lane, page);
  for (int i = 0; i < kPageTokens && since.asks(); ++i)
    if (!since.wants(archive.positions(page)[i], archive.time_lows(page)[i])) rows &= static_cast<uint16_t>(~(1u << i));
  return rows;
}

// What every page promises by its coarse keys, into worth_. A group is as many tokens as it has that can be read.
void Recall::weigh_groups(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                          const SelectionScratch& scratch, Since since) {
  const CoarseKeys& keys = archive.keys();
  const int each = keys.group_tokens(), pages = archive.shape().pages;
  std::fill_n(mass_, keys.groups(), 0.0f);
  int n = 0;
  for (int e = 0; e < keys.pages(); ++e) {
    uint16_t rows = 0;
    for (int i = 0; i < kPageTokens; ++i) {
      const int group = e * kPageTokens + i, page = archive.page_of_group(group);
      if (worth_[page] == 0) continue;
      const int middle = (group % kPageTokens * each + each / 2) % kPageTokens;
      positions_[group] = selection.position_of(archive.positions(page)[middle], scratch);
      if (places_ != nullptr) std::copy_n(archive.places(page) + 2 * middle, 2, places_ + 2 * group);
      rows |= static_cast<uint16_t>(1u << i);
    }
    if (rows == 0) continue;
    entries_[n] = {keys.page(lane, e), e * kPageTokens, rows, CoarseKeys::kCodec};
    entries_[n].first += entries_[n].begin();
    ++n;
  }
  AttendArgs coarse = args;
  coarse.pages = entries_;
  coarse.n_pages = n;
  coarse.positions = positions_;
  coarse.places = places_;
  MassArgs wanted;
  wanted.attend = &coarse;
  wanted.page_mass = mass_;
  wanted.first_query = 0;
  ops_.attention_mass(wanted);
  std::fill_n(worth_, pages, 0.0f);
  for (int e = 0; e < n; ++e)
    for (int i = entries_[e].begin(); i < entries_[e].end(); ++i) {
      if (!entries_[e].has(i)) continue;
      const int group = entries_[e].first - entries_[e].begin() + i, page = archive.page_of_group(group);
      const uint16_t mine = rows_of(group * each % kPageTokens, group * each % kPageTokens + each);
      const int tokens = std::popcount<uint16_t>(readable(archive, lane, page, since) & mine);
      if (tokens > 0) worth_[page] += std::min(mass_[group], kMostMass) * static_cast<float>(tokens);
    }
}

// Pages that are looked through, and their rows, by index. Returns how many.
int Recall::list_pages(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                       const SelectionScratch& scratch, Since since) {
  const int pages = archive.shape().pages, most = archive.shape().most_scanned();
  std::fill_n(worth_, pages, 0.0f);
  int n = 0;
  for (int64_t number = archive.first() / kPageTokens; number < archive.tokens() / kPageTokens; ++number) {
    const auto page = static_cast<int>(number % pages);
    if (readable(archive, lane, page, since) == 0) continue;
    worth_[page] = 1;
    order_[n++] = page;
  }
  if (n > most) {
    weigh_groups(archive, lane, args, selection, scratch, since);
    // Among equals by index, so that two runs stay the same.
    std::nth_element(order_, order_ + most, order_ + n,
                     [&](int a, int b) { return worth_[a] != worth_[b] ? worth_[a] > worth_[b] : a < b; });
    n = most;
  }
  std::sort(order_, order_ + n);
  for (int i = 0; i < n; ++i) {
    scanned_[i] = order_[i];
    rows_[i] = readable(archive, lane, order_[i], since);
  }
  return n;
}

// Attention over pages [first, first + pages) of those that are looked through, fetched: as many as there is room for.
AttendArgs Recall::load(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                        const SelectionScratch& scratch, int first, int pages, int64_t* lost) {
  Archive::Piece* const pieces = archive->pieces(lane);
  for (int i = 0; i < pages; ++i) pieces[i] = {scanned_[first + i], rows_[first + i]};
  archive->set_count(lane, pages);
  *lost += archive->fetch(lane);
  AttendArgs loaded = args;
  loaded.pages = entries_;
  loaded.n_pages = 0;
  loaded.positions = positions_;
  loaded.places = places_;
  for (int i = 0; i < pages; ++i) {
    rows_[first + i] = pieces[i].rows;
    if (pieces[i].rows == 0) continue;
    const int32_t* const came_at = archive->positions(pieces[i].page);
    for (int j = 0; j < kPageTokens; ++j) positions_[i * kPageTokens + j] = selection.position_of(came_at[j], scratch);
    if (places_ != nullptr)
      std::copy_n(archive->places(pieces[i].page), 2 * kPageTokens, places_ + 2 * i * kPageTokens);
    PageEntry& entry = entries_[loaded.n_pages++];
    entry = {archive->copy(lane, i), i * kPageTokens, pieces[i].rows, archive->shape().codec};
    entry.first += entry.begin();
  }
  return loaded;
}

// The attention mass of every token of those pages.
void Recall::weigh_tokens(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                          const SelectionScratch& scratch, int pages, int64_t* lost) {
  for (int first = 0; first < pages; first += most_read_) {
    const AttendArgs loaded =
        load(archive, lane, args, selection, scratch, first, std::min(most_read_, pages - first), lost);
    MassArgs wanted;
    wanted.attend = &loaded;
    wanted.page_mass = mass_ + static_cast<size_t>(first) * kPageTokens;
    wanted.first_query = 0;
    ops_.attention_mass(wanted);
    ops_.wait();
  }
}

// Leaves in rows_ the best of their tokens, at most so many. Returns how many pages have some.
int Recall::pick(int pages, int64_t tokens) {
  int n = 0;
  for (int p = 0; p < pages; ++p)
    for (uint16_t left = rows_[p]; left != 0; left &= static_cast<uint16_t>(left - 1))
      order_[n++] = p * kPageTokens + std::countr_zero(left);
  const auto most = static_cast<int>(std::min<int64_t>(tokens, n));
  std::nth_element(order_, order_ + most, order_ + n,
                   [&](int a, int b) { return mass_[a] != mass_[b] ? mass_[a] > mass_[b] : a < b; });
  std::fill_n(rows_, pages, uint16_t{0});
  std::fill_n(worth_, pages, 0.0f);
  for (int i = 0; i < most; ++i) {
    rows_[order_[i] / kPageTokens] |= static_cast<uint16_t>(1u << (order_[i] % kPageTokens));
    worth_[order_[i] / kPageTokens] += mass_[order_[i]];
  }
  return static_cast<int>(std::count_if(rows_, rows_ + pages, [](uint16_t rows) { return rows != 0; }));
}

// Of the pages that have chosen tokens, those whose tokens weigh most, as many as are read at once.
void Recall::keep_best(int pages) {
  for (int p = 0; p < pages; ++p) order_[p] = p;
  const int most = std::min(most_read_, pages);
  std::nth_element(order_, order_ + most, order_ + pages,
                   [&](int a, int b) { return worth_[a] != worth_[b] ? worth_[a] > worth_[b] : a < b; });
  for (int i = most; i < pages; ++i) rows_[order_[i]] = 0;
}

bool Recall::choose_pages(Reader reader, Archive* archive, int lane, const AttendArgs& args,
                          const BlockSelection& selection, const SelectionScratch& scratch, Since since,
                          int64_t* lost) {
  const trace::Span span("recall", lane);
  chosen_[lane] = 1;
  archive->set_count(lane, 0);
  const int pages = list_pages(*archive, lane, args, selection, scratch, since);
  if (pages == 0) return false;
  weigh_tokens(archive, lane, args, selection, scratch, pages, lost);
  const auto wanted = static_cast<int64_t>(std::ceil(share(reader) * static_cast<double>(archive->spilled(lane))));
  const int64_t most = std::min<int64_t>(std::max<int64_t>(wanted, kPageTokens), most_tokens_);
  if (pick(pages, most) > most_read_) {
    keep_best(pages);
    for (int p = 0; p < pages; ++p)
      if (rows_[p] != 0) rows_[p] = readable(*archive, lane, scanned_[p], since);
    pick(pages, most);
  }
  Archive::Piece* const pieces = archive->pieces(lane);
  int count = 0;
  for (int p = 0; p < pages; ++p)
    if (rows_[p] != 0) pieces[count++] = {scanned_[p], rows_[p]};
  archive->set_count(lane, count);
  return count > 0;
}

int64_t Recall::read(Archive* archive, int lane, BlockSelection* selection) {
  const int64_t lost = archive->fetch(lane);
  for (int i = 0; i < archive->count(lane); ++i) {
    const Archive::Piece& piece = archive->pieces(lane)[i];
    if (!selection->add_tokens(archived_page(piece.page), archive->copy(lane, i), archive->shape().codec, piece.rows,
                               archive->positions(piece.page), archive->places(piece.page)))
      throw InvariantError("Recall: more pages than a selection holds (a defect of the plan).");
  }
  return lost;
}

}  // namespace mosaic
