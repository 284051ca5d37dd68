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
constexpr int kWeighed = 32;  // pages at a time, where kernels share the host's memory

}  // namespace

Recall::Recall(Region& region, const ArchiveShape& s, Ops& ops, const Wishes& wishes, int q_heads)
    : ops_(ops),
      wishes_(wishes),
      most_read_(s.most_read),
      most_scanned_(s.most_scanned()),
      most_rooms_(s.together),
      lanes_(s.lanes),
      q_heads_(q_heads),
      places_(s.places),
      weighed_(region.has_private() ? s.most_read : kWeighed) {
  const char* const name = "archive";
  const int clusters = s.stretch > 0 ? s.pages : 0;
  const Size at_once = clusters > 0 ? Size(clusters) : std::max(Size(s.groups()), Size(weighed_) * kPageTokens);
  const Size in_all = clusters > 0 ? at_once : std::max(Size(s.pages), Size(s.most_scanned()) * kPageTokens);
  chosen_ = region.take<uint8_t>(name, s.lanes);
  const bool counting = region.is_counting();
  for (int i = 0; i < s.together; ++i) {
    Room r{};
    r.entries = region.take<PageEntry>(
        name, clusters > 0 ? clusters / kPageTokens : std::max(s.groups() / kPageTokens, weighed_));
    r.positions = region.take<int32_t>(name, at_once);
    r.places = s.places ? region.take<uint16_t>(name, at_once * 2) : nullptr;
    r.mass = region.take<float>(name, in_all);
    r.order = region.take<int32_t>(name, in_all);
    r.worth = region.take<float>(name, clusters > 0 ? 0 : s.pages);
    r.scanned = region.take<int32_t>(name, clusters > 0 ? 0 : s.most_scanned());
    r.rows = region.take<uint16_t>(name, clusters > 0 ? s.pages : s.most_scanned());
    if (wishes.rest) {
      r.head_mass = region.take<float>(name, Size(weighed_) * kPageTokens * q_heads);
      r.looked = region.take<double>(name, q_heads);
      r.read = region.take<double>(name, q_heads);
    }
    if (!counting) rooms_[static_cast<size_t>(i)] = r;
  }
  if (!wishes.rest) return;
  rest_ = region.take<float>(name, Size(s.lanes) * q_heads);
  if (!counting) std::fill_n(rest_, s.lanes * q_heads, kNothing);
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

// Where a token of a page would stand among what the lane reads.
void Recall::put_place(const Archive& archive, Room* r, int to, int page, int token) {
  const int lane = r->asking.lane;
  r->positions[to] = r->asking.selection->position_of(archive.position(lane, page, token));
  if (places_) std::copy_n(archive.place(lane, page, token), 2, r->places + 2 * to);
}

// The mass of what every lane has listed, which is read next: of its tokens together where each has a place to put it.
void Recall::weigh() {
  std::array<AttendArgs, kLanesTogether> some;
  std::array<MassArgs, kLanesTogether> wanted;
  size_t n = 0;
  for (Room& r : rooms()) {
    if (r.n_entries == 0) continue;
    some[n] = *r.asking.args;
    some[n].pages = r.entries, some[n].n_pages = r.n_entries;
    some[n].positions = r.positions, some[n].places = r.places;
    wanted[n].attend = &some[n];
    wanted[n].page_mass = r.heads != nullptr ? r.head_mass : r.to;
    wanted[n].by_head = r.heads != nullptr;
    wanted[n].mass_stride = static_cast<size_t>(weighed_) * kPageTokens;
    wanted[n++].first_query = 0;
  }
  ops_.mass_lanes(std::span(wanted).first(n));
  ops_.wait();
}

// Groups of the pages that are marked in worth.
void Recall::list_groups(const Archive& archive, Room* r) {
  const CoarseKeys& keys = archive.keys();
  const int each = keys.group_tokens(), group_pages = std::max(1, each / kPageTokens), lane = r->asking.lane;
  std::fill_n(r->mass, keys.groups(), 0.0f);
  for (int e = 0; e < keys.pages(); ++e) {
    uint16_t rows = 0;
    for (int i = 0; i < kPageTokens; ++i) {
      const int group = e * kPageTokens + i;
      const float* const marked = r->worth + archive.page_of_group(group);
      if (std::all_of(marked, marked + group_pages, [](float mark) { return mark == 0; })) continue;
      // Its middle; of several pages the last, which is what is left of a group when new tokens take its place.
      const int page = archive.page_of_group(group) + group_pages - 1;
      put_place(archive, r, group, page, group_pages > 1 ? 0 : (group % kPageTokens * each + each / 2) % kPageTokens);
      rows |= static_cast<uint16_t>(1u << i);
    }
    if (rows == 0) continue;
    PageEntry& entry = r->entries[r->n_entries++];
    entry = {keys.page(lane, e), e * kPageTokens, rows, CoarseKeys::kCodec};
    entry.first += entry.begin();
  }
}

// What every page that was marked promises by its coarse keys, into worth. A group is as many tokens as it has that can be
// read.
void Recall::take_groups(const Archive& archive, Room* r, Since since) {
  const int each = archive.keys().group_tokens(), group_pages = std::max(1, each / kPageTokens);
  std::fill_n(r->worth, archive.shape().pages, 0.0f);
  for (int e = 0; e < r->n_entries; ++e)
    for (uint16_t left = r->entries[e].rows; left != 0; left &= static_cast<uint16_t>(left - 1)) {
      const int group = r->entries[e].first - r->entries[e].begin() + std::countr_zero(left);
      const int first = group_pages > 1 ? 0 : group * each % kPageTokens;
      const uint16_t mine = rows_of(first, std::min(first + each, kPageTokens));
      for (int i = 0; i < group_pages; ++i) {
        const int page = archive.page_of_group(group) + i;
        const int tokens = std::popcount<uint16_t>(readable(archive, r->asking.lane, page, since) & mine);
        if (tokens > 0) r->worth[page] += std::min(r->mass[group], kMostMass) * static_cast<float>(tokens);
      }
    }
}

// The newest pages, whose group is not whole and has no key yet: they are looked through whatever they promise.
void Recall::mark_newest(const Archive& archive, Room* r, Since since, float mark) {
  const int each = archive.keys().group_tokens(), pages = archive.shape().pages;
  const int64_t whole_pages = archive.tokens() / kPageTokens;
  for (int64_t number = archive.tokens() / each * each / kPageTokens; number < whole_pages; ++number)
    if (readable(archive, r->asking.lane, static_cast<int>(number % pages), since) != 0)
      r->worth[number % pages] = mark;
}

// Pages that can be read, and where those are too many the keys of their groups.
void Recall::list_pages(const Archive& archive, Room* r, Since since) {
  const int pages = archive.shape().pages;
  const int64_t whole_pages = archive.tokens() / kPageTokens;
  std::fill_n(r->worth, pages, 0.0f);
  r->pages = r->n_entries = 0;
  r->to = r->mass, r->heads = nullptr;
  for (int64_t number = archive.first() / kPageTokens; number < whole_pages; ++number) {
    const auto page = static_cast<int>(number % pages);
    if (readable(archive, r->asking.lane, page, since) == 0) continue;
    r->worth[page] = 1;
    r->order[r->pages++] = page;
  }
  if (r->pages <= most_scanned_) return;
  mark_newest(archive, r, since, 0);
  list_groups(archive, r);
}

// Pages that are looked through, and their rows, by index.
void Recall::take_pages(const Archive& archive, Room* r, Since since) {
  if (r->pages > most_scanned_) {
    take_groups(archive, r, since);
    mark_newest(archive, r, since, std::numeric_limits<float>::infinity());
    std::nth_element(r->order, r->order + most_scanned_, r->order + r->pages, Heaviest{r->worth});
    r->pages = most_scanned_;
  }
  std::sort(r->order, r->order + r->pages);
  for (int i = 0; i < r->pages; ++i) {
    r->scanned[i] = r->order[i];
    r->rows[i] = readable(archive, r->asking.lane, r->order[i], since);
  }
}

// Of the lane's pieces those from `first` on, as many as are weighed at a time.
void Recall::list_pieces(Archive* archive, Room* r, int first) {
  const int lane = r->asking.lane, n = std::min(weighed_, archive->count(lane) - first);
  r->n_entries = 0;
  for (int i = 0; i < n; ++i) {
    const Archive::Piece& piece = archive->pieces(lane)[first + i];
    if (piece.rows == 0) continue;
    for (int j = 0; j < kPageTokens; ++j) put_place(*archive, r, i * kPageTokens + j, piece.page, j);
    PageEntry& entry = r->entries[r->n_entries++];
    entry = {archive->copy(lane, first + i), i * kPageTokens, piece.rows, archive->shape().codec};
    entry.first += entry.begin();
  }
}

// The attention mass of every token of the lanes' pieces, [count, 16], and what each head pays them together where the rest
// counts.
void Recall::weigh_pieces(Archive* archive) {
  const auto left = [&](int first) {
    return std::any_of(rooms().begin(), rooms().end(),
                       [&](const Room& r) { return archive->count(r.asking.lane) > first; });
  };
  for (int first = 0; left(first); first += weighed_) {
    for (Room& r : rooms()) list_pieces(archive, &r, first);
    weigh();
    for (Room& r : rooms()) {
      if (rest_ != nullptr) sum_heads(*archive, r, first);
      if (archive->count(r.asking.lane) > first + weighed_) r.to += static_cast<size_t>(weighed_) * kPageTokens;
    }
  }
}

void Recall::sum_heads(const Archive& archive, const Room& r, int first) const {
  const int pages = std::clamp(archive.count(r.asking.lane) - first, 0, weighed_);
  const size_t stride = static_cast<size_t>(weighed_) * kPageTokens;
  std::fill_n(r.to, pages * kPageTokens, 0.0f);
  for (int e = 0; e < r.n_entries; ++e) {
    const PageEntry& page = r.entries[e];
    for (uint16_t left = page.rows; left != 0; left &= static_cast<uint16_t>(left - 1)) {
      const auto token = static_cast<size_t>(page.first - page.begin() + std::countr_zero(left));
      for (int head = 0; head < q_heads_; ++head) {
        const float paid = std::min(r.head_mass[static_cast<size_t>(head) * stride + token], kMostMass);
        r.heads[head] += paid;
        r.to[token] += paid;
      }
    }
  }
}

// Of all pages that are looked through, as many at a time as there is room for. Returns tokens that were lost.
int64_t Recall::weigh_tokens(Archive* archive) {
  int64_t lost = 0;
  int most = 0;
  for (Room& r : rooms()) {
    most = std::max(most, r.pages);
    r.heads = r.looked;
    if (rest_ != nullptr) std::fill_n(r.looked, q_heads_, 0.0);
  }
  for (int first = 0; first < most; first += most_read_) {
    for (Room& r : rooms()) {
      const int n = std::clamp(r.pages - first, 0, most_read_);
      Archive::Piece* const pieces = archive->pieces(r.asking.lane);
      for (int i = 0; i < n; ++i) pieces[i] = {r.scanned[first + i], r.rows[first + i]};
      archive->set_count(r.asking.lane, n);
      r.to = r.mass + static_cast<size_t>(first) * kPageTokens;
    }
    lost += fetch(archive);
    for (Room& r : rooms())
      for (int i = 0; i < archive->count(r.asking.lane); ++i)
        r.rows[first + i] = archive->pieces(r.asking.lane)[i].rows;
    weigh_pieces(archive);
  }
  return lost;
}

int64_t Recall::fetch(Archive* archive) {
  const int first = rooms().front().asking.lane;
  return archive->fetch(first, rooms().back().asking.lane - first + 1);
}

// What was looked through, and what of that is read now, say what is not. It is put as one logit a head, which gives the
// block's queries the same mass together.
int64_t Recall::weigh_rest(Archive* archive) {
  const int64_t lost = fetch(archive);
  for (Room& r : rooms()) {
    r.to = r.mass, r.heads = r.read;
    std::fill_n(r.read, q_heads_, 0.0);
  }
  weigh_pieces(archive);
  for (const Room& r : rooms()) {
    if (r.pages == 0) continue;
    const float* const lse = r.asking.args->lse;
    for (int head = 0; head < q_heads_; ++head) {
      double top = kNothing, shares = 0;
      for (int i = head; i < r.asking.args->tokens * q_heads_; i += q_heads_) top = std::max<double>(top, -lse[i]);
      for (int i = head; i < r.asking.args->tokens * q_heads_; i += q_heads_) shares += std::exp(-lse[i] - top);
      const double left = r.looked[head] - r.read[head];
      const bool some = left > kNoise * r.looked[head] && std::isfinite(top);
      rest_of(r.asking.lane)[head] = some ? static_cast<float>(std::log(left / shares) - top) : kNothing;
    }
  }
  return lost;
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

// Leaves in rows the best of their tokens, at most as many as the lane may read. Returns how many pages have some.
int Recall::pick(Room* r) {
  int n = 0;
  for (int p = 0; p < r->pages; ++p)
    for (uint16_t left = r->rows[p]; left != 0; left &= static_cast<uint16_t>(left - 1))
      r->order[n++] = p * kPageTokens + std::countr_zero(left);
  const auto most = static_cast<int>(std::min<int64_t>(r->tokens, n));
  std::nth_element(r->order, r->order + most, r->order + n, Heaviest{r->mass});
  std::fill_n(r->rows, r->pages, uint16_t{0});
  std::fill_n(r->worth, r->pages, 0.0f);
  for (int i = 0; i < most; ++i) {
    const int token = r->order[i];
    r->rows[token / kPageTokens] |= static_cast<uint16_t>(1u << (token % kPageTokens));
    r->worth[token / kPageTokens] += r->mass[token];
  }
  return static_cast<int>(std::count_if(r->rows, r->rows + r->pages, [](uint16_t rows) { return rows != 0; }));
}

// Of the pages that have chosen tokens, those whose tokens weigh most, as many as are read at once.
void Recall::keep_best(Room* r) {
  for (int p = 0; p < r->pages; ++p) r->order[p] = p;
  const int most = std::min(most_read_, r->pages);
  std::nth_element(r->order, r->order + most, r->order + r->pages, Heaviest{r->worth});
  for (int i = most; i < r->pages; ++i) r->rows[r->order[i]] = 0;
}

// As many as a block of this reader reads of the lane at most.
int64_t Recall::tokens_for(Reader reader, const Archive& archive, int lane) const {
  const auto wanted = static_cast<int64_t>(std::ceil(share(reader) * static_cast<double>(archive.spilled(lane))));
  return std::min<int64_t>(std::max<int64_t>(wanted, kPageTokens), wishes_.most_tokens);
}

void Recall::take_tokens(Archive* archive, Room* r, Since since) {
  if (pick(r) > most_read_) {
    keep_best(r);
    for (int p = 0; p < r->pages; ++p)
      if (r->rows[p] != 0) r->rows[p] = readable(*archive, r->asking.lane, r->scanned[p], since);
    pick(r);
  }
  Archive::Piece* const pieces = archive->pieces(r->asking.lane);
  int count = 0;
  for (int p = 0; p < r->pages; ++p)
    if (r->rows[p] != 0) pieces[count++] = {r->scanned[p], r->rows[p]};
  archive->set_count(r->asking.lane, count);
}

// Token by token. Returns tokens that were lost.
int64_t Recall::choose_tokens(Reader reader, Archive* archive, Since since) {
  for (Room& r : rooms()) list_pages(*archive, &r, since);
  if (std::any_of(rooms().begin(), rooms().end(), [](const Room& r) { return r.n_entries > 0; })) weigh();
  for (Room& r : rooms()) take_pages(*archive, &r, since);
  if (!archive->shape().copies_stay) ops_.wait();  // until other lanes have read their copies
  int64_t lost = weigh_tokens(archive);
  for (Room& r : rooms()) {
    r.tokens = tokens_for(reader, *archive, r.asking.lane);  // of what can be read still
    take_tokens(archive, &r, since);
  }
  if (rest_ != nullptr) lost += weigh_rest(archive);
  return lost;
}

int64_t Recall::choose_pages(Reader reader, Archive* archive, std::span<Asking> lanes, Since since) {
  const trace::Span span("recall", lanes.front().lane);
  if (lanes.size() > static_cast<size_t>(most_rooms_))
    throw InvariantError("Recall: more lanes are chosen for together than were planned.");
  n_rooms_ = static_cast<int>(lanes.size());
  for (size_t i = 0; i < lanes.size(); ++i) {
    rooms()[i].asking = lanes[i];
    chosen_[lanes[i].lane] = 1;
    archive->set_count(lanes[i].lane, 0);
  }
  int64_t lost = 0;
  if (archive->clusters().any()) {
    choose_clusters(reader, archive, since);
  } else {
    lost = choose_tokens(reader, archive, since);
  }
  for (Asking& one : lanes) one.reads = archive->count(one.lane) > 0;
  lost += fetch(archive);
  for (const Room& r : rooms())
    if (r.asking.next != kNone) expect_next(archive, r);
  return lost;
}

// The next layer will look where this one did.
void Recall::expect_next(Archive* archive, const Room& r) const {
  const bool clusters = archive->clusters().any();
  const int n = clusters ? archive->count(r.asking.lane) : r.pages;
  for (int i = 0; i < n && clusters; ++i) r.order[i] = archive->pieces(r.asking.lane)[i].page;
  archive->expect(r.asking.next, {clusters ? r.order : r.scanned, static_cast<size_t>(n)});
}

int64_t Recall::read(Archive* archive, int lane, BlockSelection* selection) {
  const int64_t lost = archive->fetch(lane);
  for (int i = 0; i < archive->count(lane); ++i) {
    const Archive::Piece& piece = archive->pieces(lane)[i];
    std::array<int32_t, kPageTokens> came_at;
    std::array<uint16_t, 2 * kPageTokens> places;
    for (int j = 0; j < kPageTokens; ++j) {
      came_at[static_cast<size_t>(j)] = archive->position(lane, piece.page, j);
      if (places_) std::copy_n(archive->place(lane, piece.page, j), 2, &places[static_cast<size_t>(2 * j)]);
    }
    if (!selection->add_tokens(archived_page(piece.page), archive->copy(lane, i), archive->shape().codec, piece.rows,
                               came_at.data(), places.data()))
      throw InvariantError("Recall: more pages than a selection holds (a defect of the plan).");
  }
  return lost;
}

}  // namespace mosaic
