#include "runtime/recall.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "core/trace.h"

namespace mosaic {

namespace {

constexpr float kMostMass = 1e30f;  // sums of it are finite
constexpr float kNothing = -std::numeric_limits<float>::infinity();
// What is left of sums by subtraction is noise below this share of them.
constexpr double kNoise = 1e-5;

}  // namespace

Recall::Recall(Region& region, const ArchiveShape& s, Ops& ops, const Wishes& wishes, int q_heads)
    : ops_(ops), wishes_(wishes), most_read_(s.most_read), lanes_(s.lanes), q_heads_(q_heads) {
  const char* const name = "archive";
  const int clusters = s.stretch > 0 ? s.pages : 0;
  const Size at_once = clusters > 0 ? Size(clusters) : std::max(Size(s.groups()), Size(kWeighed) * kPageTokens);
  const Size in_all = clusters > 0 ? at_once : std::max(Size(s.pages), Size(s.most_scanned()) * kPageTokens);
  chosen_ = region.take<uint8_t>(name, s.lanes);
  entries_ = region.take<PageEntry>(
      name, clusters > 0 ? clusters / kPageTokens : std::max(s.groups() / kPageTokens, kWeighed));
  positions_ = region.take<int32_t>(name, at_once);
  places_ = s.places ? region.take<uint16_t>(name, at_once * 2) : nullptr;
  mass_ = region.take<float>(name, in_all);
  order_ = region.take<int32_t>(name, in_all);
  worth_ = region.take<float>(name, clusters > 0 ? 0 : s.pages);
  scanned_ = region.take<int32_t>(name, clusters > 0 ? 0 : s.most_scanned());
  rows_ = region.take<uint16_t>(name, clusters > 0 ? s.pages : s.most_scanned());
  if (!wishes.rest) return;
  head_mass_ = region.take<float>(name, Size(kWeighed) * kPageTokens * q_heads);
  looked_ = region.take<double>(name, q_heads);
  read_ = region.take<double>(name, q_heads);
  rest_ = region.take<float>(name, Size(s.lanes) * q_heads);
  if (!region.is_counting()) std::fill_n(rest_, s.lanes * q_heads, kNothing);
}

void Recall::forget(Archive* archive) {
  archive->forget_choices();
  std::fill_n(chosen_, lanes_, uint8_t{0});
  if (rest_ != nullptr) std::fill_n(rest_, lanes_ * q_heads_, kNothing);
}

// Tokens of a page that were given up and are not too old.
uint16_t Recall::readable(const Archive& archive, int lane, int page, Since since) const {
  uint16_t rows = archive.gone(lane, page);
  for (int i = 0; i < kPageTokens && since.asks(); ++i)
    if (!since.wants(archive.position(lane, page, i), archive.time_low(lane, page, i)))
      rows &= static_cast<uint16_t>(~(1u << i));
  return rows;
}

// The mass of the keys of entries_[0, n) into mass_, which is read next.
void Recall::weigh_keys(const AttendArgs& args, int n) {
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
  ops_.wait();
}

// What every page that is marked in worth_ promises by its coarse keys, into worth_. A group is as many tokens as it has that
// can be read.
void Recall::weigh_groups(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                          const SelectionScratch& scratch, Since since) {
  const CoarseKeys& keys = archive.keys();
  const int each = keys.group_tokens(), pages = archive.shape().pages, group_pages = std::max(1, each / kPageTokens);
  std::fill_n(mass_, keys.groups(), 0.0f);
  int n = 0;
  for (int e = 0; e < keys.pages(); ++e) {
    uint16_t rows = 0;
    for (int i = 0; i < kPageTokens; ++i) {
      const int group = e * kPageTokens + i;
      const float* const marked = worth_ + archive.page_of_group(group);
      if (std::all_of(marked, marked + group_pages, [](float mark) { return mark == 0; })) continue;
      // Its middle; of several pages the last, which is what is left of a group when new tokens take its place.
      const int page = archive.page_of_group(group) + group_pages - 1;
      const int middle = group_pages > 1 ? 0 : (group % kPageTokens * each + each / 2) % kPageTokens;
      positions_[group] = selection.position_of(archive.position(lane, page, middle), scratch);
      if (places_ != nullptr) std::copy_n(archive.place(lane, page, middle), 2, places_ + 2 * group);
      rows |= static_cast<uint16_t>(1u << i);
    }
    if (rows == 0) continue;
    entries_[n] = {keys.page(lane, e), e * kPageTokens, rows, CoarseKeys::kCodec};
    entries_[n].first += entries_[n].begin();
    ++n;
  }
  weigh_keys(args, n);
  std::fill_n(worth_, pages, 0.0f);
  for (int e = 0; e < n; ++e)
    for (uint16_t left = entries_[e].rows; left != 0; left &= static_cast<uint16_t>(left - 1)) {
      const int group = entries_[e].first - entries_[e].begin() + std::countr_zero(left);
      const int first = group_pages > 1 ? 0 : group * each % kPageTokens;
      const uint16_t mine = rows_of(first, std::min(first + each, kPageTokens));
      for (int i = 0; i < group_pages; ++i) {
        const int page = archive.page_of_group(group) + i;
        const int tokens = std::popcount<uint16_t>(readable(archive, lane, page, since) & mine);
        if (tokens > 0) worth_[page] += std::min(mass_[group], kMostMass) * static_cast<float>(tokens);
      }
    }
}

// Pages that are looked through, and their rows, by index. Returns how many.
int Recall::list_pages(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                       const SelectionScratch& scratch, Since since) {
  const int pages = archive.shape().pages, most = archive.shape().most_scanned();
  const int64_t whole_pages = archive.tokens() / kPageTokens;
  std::fill_n(worth_, pages, 0.0f);
  int n = 0;
  for (int64_t number = archive.first() / kPageTokens; number < whole_pages; ++number) {
    const auto page = static_cast<int>(number % pages);
    if (readable(archive, lane, page, since) == 0) continue;
    worth_[page] = 1;
    order_[n++] = page;
  }
  if (n > most) {
    // The newest, whose group is not whole and has no key yet, are looked through whatever they promise.
    const int each = archive.keys().group_tokens();
    const auto for_newest = [&](float mark) {
      for (int64_t number = archive.tokens() / each * each / kPageTokens; number < whole_pages; ++number)
        if (readable(archive, lane, static_cast<int>(number % pages), since) != 0) worth_[number % pages] = mark;
    };
    for_newest(0);
    weigh_groups(archive, lane, args, selection, scratch, since);
    for_newest(std::numeric_limits<float>::infinity());
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

// The attention mass of every token of the lane's pieces, [count, 16], and what each head pays them together where the rest
// counts. args: over what is kept.
void Recall::weigh(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                   const SelectionScratch& scratch, float* mass, double* heads) {
  AttendArgs some = args;
  some.pages = entries_;
  some.positions = positions_;
  some.places = places_;
  MassArgs wanted;
  wanted.attend = &some;
  wanted.first_query = 0;
  for (int first = 0; first < archive->count(lane); first += kWeighed) {
    const int n = std::min(kWeighed, archive->count(lane) - first);
    some.n_pages = 0;
    for (int i = 0; i < n; ++i) {
      const Archive::Piece& piece = archive->pieces(lane)[first + i];
      if (piece.rows == 0) continue;
      for (int j = 0; j < kPageTokens; ++j) {
        const int to = i * kPageTokens + j;
        positions_[to] = selection.position_of(archive->position(lane, piece.page, j), scratch);
        if (places_ != nullptr) std::copy_n(archive->place(lane, piece.page, j), 2, places_ + 2 * to);
      }
      PageEntry& entry = entries_[some.n_pages++];
      entry = {archive->copy(lane, first + i), i * kPageTokens, piece.rows, archive->shape().codec};
      entry.first += entry.begin();
    }
    const size_t tokens = static_cast<size_t>(n) * kPageTokens;
    float* const to = mass + static_cast<size_t>(first) * kPageTokens;
    wanted.page_mass = to;
    if (rest_ != nullptr) wanted.page_mass = head_mass_, wanted.by_head = true, wanted.mass_stride = tokens;
    ops_.attention_mass(wanted);
    ops_.wait();
    if (rest_ != nullptr) sum_heads(some, tokens, to, heads);
  }
}

void Recall::sum_heads(const AttendArgs& weighed, size_t tokens, float* mass, double* heads) const {
  std::fill_n(mass, tokens, 0.0f);
  for (int e = 0; e < weighed.n_pages; ++e) {
    const PageEntry& page = weighed.pages[e];
    for (uint16_t left = page.rows; left != 0; left &= static_cast<uint16_t>(left - 1)) {
      const auto token = static_cast<size_t>(page.first - page.begin() + std::countr_zero(left));
      for (int head = 0; head < q_heads_; ++head) {
        const float paid = std::min(head_mass_[static_cast<size_t>(head) * tokens + token], kMostMass);
        heads[head] += paid;
        mass[token] += paid;
      }
    }
  }
}

// Of all pages that are looked through, as many at a time as there is room for.
void Recall::weigh_tokens(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                          const SelectionScratch& scratch, int pages, int64_t* lost) {
  if (rest_ != nullptr) std::fill_n(looked_, q_heads_, 0.0);
  for (int first = 0; first < pages; first += most_read_) {
    const int n = std::min(most_read_, pages - first);
    Archive::Piece* const pieces = archive->pieces(lane);
    for (int i = 0; i < n; ++i) pieces[i] = {scanned_[first + i], rows_[first + i]};
    archive->set_count(lane, n);
    *lost += archive->fetch(lane);
    for (int i = 0; i < n; ++i) rows_[first + i] = pieces[i].rows;
    weigh(archive, lane, args, selection, scratch, mass_ + static_cast<size_t>(first) * kPageTokens, looked_);
  }
}

// What was looked through, and what of that is read now, say what is not. It is put as one logit a head, which gives the
// block's queries the same mass together.
void Recall::weigh_rest(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                        const SelectionScratch& scratch, int64_t* lost) {
  *lost += archive->fetch(lane);
  std::fill_n(read_, q_heads_, 0.0);
  weigh(archive, lane, args, selection, scratch, mass_, read_);
  for (int head = 0; head < q_heads_; ++head) {
    double top = kNothing, shares = 0;
    for (int i = head; i < args.tokens * q_heads_; i += q_heads_) top = std::max<double>(top, -args.lse[i]);
    for (int i = head; i < args.tokens * q_heads_; i += q_heads_) shares += std::exp(-args.lse[i] - top);
    const double left = looked_[head] - read_[head];
    const bool some = left > kNoise * looked_[head] && std::isfinite(top);
    rest_of(lane)[head] = some ? static_cast<float>(std::log(left / shares) - top) : kNothing;
  }
}

void Recall::add_rest(int lane, const AttendArgs& args, const float* value) {
  if (rest_ == nullptr || !has_chosen(lane)) return;
  if (std::all_of(rest_of(lane), rest_of(lane) + q_heads_, [](float mass) { return mass == kNothing; })) return;
  const int heads = args.shape.heads, dim = args.shape.head_dim;
  ops_.merge({args.out, args.lse, args.tokens, q_heads_, dim, args.q_stride, value, rest_of(lane), q_heads_ / heads});
}

double Recall::rest_mass(int lane, const float* lse) const {
  double mass = 0;
  for (int head = 0; head < q_heads_ && rest_ != nullptr; ++head)
    mass += std::exp(double{rest_of(lane)[head]} - lse[head]);
  return mass;
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

// As many as a block of this reader reads of the lane at most.
int64_t Recall::tokens_for(Reader reader, const Archive& archive, int lane) const {
  const auto wanted = static_cast<int64_t>(std::ceil(share(reader) * static_cast<double>(archive.spilled(lane))));
  return std::min<int64_t>(std::max<int64_t>(wanted, kPageTokens), wishes_.most_tokens);
}

bool Recall::choose_pages(Reader reader, Archive* archive, int lane, const AttendArgs& args,
                          const BlockSelection& selection, const SelectionScratch& scratch, Since since,
                          int64_t* lost) {
  const trace::Span span("recall", lane);
  chosen_[lane] = 1;
  archive->set_count(lane, 0);
  if (archive->clusters().any())
    return choose_clusters(archive, lane, args, selection, scratch, since, tokens_for(reader, *archive, lane));
  const int pages = list_pages(*archive, lane, args, selection, scratch, since);
  if (pages == 0) return false;
  weigh_tokens(archive, lane, args, selection, scratch, pages, lost);
  const int64_t most = tokens_for(reader, *archive, lane);  // of what can be read still
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
  if (rest_ != nullptr) weigh_rest(archive, lane, args, selection, scratch, lost);
  return count > 0;
}

int64_t Recall::read(Archive* archive, int lane, BlockSelection* selection) {
  const int64_t lost = archive->fetch(lane);
  for (int i = 0; i < archive->count(lane); ++i) {
    const Archive::Piece& piece = archive->pieces(lane)[i];
    std::array<int32_t, kPageTokens> came_at;
    std::array<uint16_t, 2 * kPageTokens> places;
    for (int j = 0; j < kPageTokens; ++j) {
      came_at[static_cast<size_t>(j)] = archive->position(lane, piece.page, j);
      if (places_ != nullptr) std::copy_n(archive->place(lane, piece.page, j), 2, &places[static_cast<size_t>(2 * j)]);
    }
    if (!selection->add_tokens(archived_page(piece.page), archive->copy(lane, i), archive->shape().codec, piece.rows,
                               came_at.data(), places.data()))
      throw InvariantError("Recall: more pages than a selection holds (a defect of the plan).");
  }
  return lost;
}

}  // namespace mosaic
