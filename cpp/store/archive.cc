#include "store/archive.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>

#include "core/error.h"
#include "core/trace.h"

namespace mosaic {

namespace {

constexpr int kCopyQueue = 64;
constexpr int kMostAtOnce = 64 / kPageTokens;  // pages

}  // namespace

Archive::Archive(Region& region, const ArchiveShape& s, Ops& ops, SpillIo* io)
    : shape_(s),
      ops_(ops),
      page_bytes_(data_bytes(s.codec, s.page)),
      keys_(region, {s.lanes, s.groups(), s.page}, ops),
      clusters_(region, {s.lanes, s.pages, s.stretch, s.of_values, s.page}, ops) {
  const char* const name = "archive";
  const Size lanes = s.lanes, pages = s.pages, read = s.most_read;
  tails_ = region.take<std::byte>(name, lanes * s.pages_at_once() * page_bytes_);
  writing_ = region.take<std::byte>(name, Size(kWrites) * page_bytes_);
  copies_ = region.take<std::byte>(name, (s.copies_stay ? lanes : Size(s.together)) * read * page_bytes_);
  gone_ = region.take<uint16_t>(name, lanes * pages);
  copied_ = region.take<uint8_t>(name, lanes);
  pieces_ = region.take<Piece>(name, lanes * read);
  counts_ = region.take<int32_t>(name, lanes);
  spilled_ = region.take<int64_t>(name, lanes);
  position_ = region.take<int32_t>(name, pages * kPageTokens);
  time_low_ = region.take<int32_t>(name, pages * kPageTokens);
  place_ = s.places ? region.take<uint16_t>(name, pages * kPageTokens * 2) : nullptr;
  row_pages_ = region.take<std::byte*>(name, kPageTokens);
  row_at_ = region.take<int32_t>(name, kPageTokens);
  read_ = region.take<Completion>(name, read * s.together);
  expected_ = region.take<SlotId>(name, Size(s.together) * s.most_scanned());
  asked_ahead_ = region.take<Completion>(name, s.together);
  under_way_ = region.take<Write>(name, kWrites);
  const int slots = (lanes * pages).to_int("pages of the archive");
  auto* const checksums = region.take<std::byte>(name, SpillFile::bytes_for(slots));
  auto* const queue = region.take<std::byte>(name, CopyEngine::bytes_for(kCopyQueue));
  if (region.is_counting()) return;
  std::uninitialized_value_construct_n(under_way_, kWrites);
  file_.emplace(s.folder, page_bytes_, slots, checksums, io);
  engine_.emplace(*file_, kCopyQueue, queue);
}

int64_t Archive::spilled() const {
  int64_t all = 0;
  for (int lane = 0; lane < shape_.lanes; ++lane) all += spilled_[lane];
  return all;
}

int64_t Archive::begin(const TokenMeta* meta, int n, const float* key_means) {
  int64_t lost = 0;
  const bool no_writes = writes_.pass_frame(), no_reads = reads_.pass_frame();
  if (no_writes || no_reads) ++counters_.paused_frames;
  // Which writes are seen to depends on the calls alone, never on how fast the disk was: two runs stay the same.
  for (int i = 0; i < kWrites; ++i) lost += finish(&under_way_[(next_write_ + i) % kWrites]);
  const int64_t at_once = shape_.written_at_once(), will_be = (tokens_ + n + at_once - 1) / at_once;
  while (will_be * shape_.pages_at_once() - oldest_ > shape_.pages) lost += drop_oldest();
  keys_.make_room(tokens_, n, key_means);
  for (int i = 0; i < n; ++i) {
    const auto to = static_cast<size_t>((tokens_ + i) % (int64_t{shape_.pages} * kPageTokens));
    position_[to] = meta[i].position;
    time_low_[to] = meta[i].time_low;
    if (place_ != nullptr) place_[2 * to] = meta[i].h, place_[2 * to + 1] = meta[i].w;
  }
  coming_ = n;
  return lost;
}

void Archive::add(int lane, const Run& run, const float* key_mean) {
  const auto row = static_cast<size_t>(shape_.page.row());
  for (int i = 0; i < run.n;) {
    const int64_t token = tokens_ + i;
    const auto waiting = static_cast<int>(token % shape_.written_at_once());
    const int first = waiting % kPageTokens, n = std::min(kPageTokens - first, run.n - i);
    std::byte* const tail = tail_page(lane, waiting / kPageTokens);
    for (int j = 0; j < n; ++j) row_pages_[j] = tail, row_at_[j] = first + j;
    const size_t from = static_cast<size_t>(i) * row;
    ops_.encode_rows(shape_.codec, shape_.page, run.k + from, run.v + from, row, n, row_pages_, row_at_, key_mean);
    ops_.wait();
    i += n;
    if (waiting + n < shape_.written_at_once()) continue;
    if (shape_.stretch > 0) {
      write_stretch(lane, token / shape_.stretch, key_mean);
    } else {
      write(lane, token / kPageTokens);
    }
  }
  keys_.add(lane, tokens_, run.k, run.n, key_mean);
}

int64_t Archive::end() {
  tokens_ += coming_;
  coming_ = 0;
  return std::exchange(lost_between_, 0);
}

// Memory for a page that is written next; null: the disk rests, or has no slot, and the page is lost.
std::byte* Archive::begin_write(int lane, int64_t page) {
  Write& to = under_way_[next_write_];
  lost_between_ += finish(&to);
  const SlotId slot = slot_of(lane, index_of(page));
  if (!writes_.rests() && !reads_.rests() && file_->try_acquire(slot))
    return writing_ + static_cast<size_t>(next_write_) * page_bytes_;
  next_write_ = (next_write_ + 1) % kWrites;
  ++counters_.failed_spills;
  lost_between_ += lose(lane, index_of(page));
  return nullptr;
}

void Archive::end_write(int lane, int64_t page) {
  Write& to = under_way_[next_write_];
  to.page = page;
  to.lane = lane;
  engine_->write(slot_of(lane, index_of(page)), writing_ + static_cast<size_t>(next_write_) * page_bytes_, &to.written,
                 lane);
  next_write_ = (next_write_ + 1) % kWrites;
}

void Archive::write(int lane, int64_t page) {
  std::byte* const memory = begin_write(lane, page);
  if (memory == nullptr) return;
  std::memcpy(memory, tail_page(lane, 0), page_bytes_);
  end_write(lane, page);
}

// The lane's stretch is whole: its tokens, and what is known of them, are ordered by likeness. Tails and what is written are
// the host's, and so is the work on them. together: the keys of its clusters are coded with those of other lanes.
void Archive::write_stretch(int lane, int64_t number, const float* key_mean, bool together) {
  const trace::Span span("cluster", lane);
  const int n = shape_.pages_at_once(), stretch = static_cast<int>(number % shape_.stretches());
  const auto row = static_cast<size_t>(shape_.page.row());
  Ops& host = ops_.for_host();
  for (int p = 0; p < n; ++p) {
    float* const k = clusters_.rows() + static_cast<size_t>(p) * kPageTokens * 2 * row;
    host.decode(shape_.codec, shape_.page, tail_page(lane, p), 0, kPageTokens, k, k + row, 2 * row, key_mean);
  }
  together ? cut_together(lane, stretch) : clusters_.cut(lane, stretch, key_mean);
  uint16_t* const gone = gone_ + at(lane, stretch * n);
  std::array<uint16_t, kMostAtOnce> before;
  std::copy_n(gone, n, before.begin());
  for (int p = 0; p < n; ++p) {
    gone[p] = 0;
    uint64_t left = clusters_.members(lane, stretch * n + p);
    for (int i = 0; i < kPageTokens; ++i, left &= left - 1) {
      const int token = std::countr_zero(left), page = token / kPageTokens, at = token % kPageTokens;
      if ((before[static_cast<size_t>(page)] >> at & 1) != 0) gone[p] |= static_cast<uint16_t>(1u << i);
    }
  }
  for (int p = 0; p < n; ++p) {
    std::byte* const memory = begin_write(lane, number * n + p);
    if (memory == nullptr) continue;
    uint64_t left = clusters_.members(lane, stretch * n + p);
    for (int i = 0; i < kPageTokens; ++i, left &= left - 1) {
      const int token = std::countr_zero(left);
      host.move_row(shape_.codec, shape_.page, tail_page(lane, token / kPageTokens), token % kPageTokens, memory, i);
    }
    end_write(lane, number * n + p);
  }
}

// Waits for a write; returns the tokens that are lost where it failed.
int64_t Archive::finish(Write* write) {
  if (write->page == kNone) return 0;
  const Status status = engine_->wait(write->written);
  const int64_t page = std::exchange(write->page, int64_t{kNone});
  if (status == Status::ok) {
    writes_.went_well();
    return 0;
  }
  if (writes_.failed(status == Status::no_space)) ++counters_.spill_pauses;
  if (page < oldest_) return 0;
  ++counters_.failed_spills;
  return lose(write->lane, index_of(page));
}

// The page holds nothing that can be read any more.
int64_t Archive::lose(int lane, int index) {
  if (const SlotId slot = slot_of(lane, index); file_->is_used(slot)) file_->release(slot);
  const int tokens = std::popcount(std::exchange(gone_[at(lane, index)], uint16_t{0}));
  spilled_[lane] -= tokens;
  return tokens;
}

int64_t Archive::drop_oldest() {
  int64_t lost = 0;
  for (int i = 0; i < kWrites; ++i)
    if (under_way_[i].page == oldest_) lost += finish(&under_way_[i]);
  for (int lane = 0; lane < shape_.lanes; ++lane) lost += lose(lane, index_of(oldest_));
  ++oldest_;
  return lost;
}

int64_t Archive::number_of(int32_t position) const {
  const int64_t room = int64_t{shape_.pages} * kPageTokens, end = tokens_ + coming_;
  int64_t low = first(), high = end;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (position_[middle % room] < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < end && position_[low % room] == position ? low : kNone;
}

bool Archive::mark_given_up(int lane, uint32_t number) {
  const int64_t end = tokens_ + coming_;
  return mark_given_up(lane, end - static_cast<uint32_t>(static_cast<uint32_t>(end) - number));
}

// Which token, by its place in the books, a row of a page holds.
size_t Archive::came(int lane, int page, int i) const {
  if (shape_.stretch == 0 || waits(page)) return static_cast<size_t>(page * kPageTokens + i);
  uint64_t left = clusters_.members(lane, page);
  for (; i > 0; --i) left &= left - 1;
  return static_cast<size_t>(page / shape_.pages_at_once() * shape_.stretch + std::countr_zero(left));
}

// Where among the rows of the lane's pages a token is that came and is not dropped.
int Archive::row_of(int lane, int64_t token) const {
  const int there = ring_index(token);
  if (shape_.stretch == 0 || token >= (tokens_ + coming_) / shape_.stretch * shape_.stretch) return there;
  const uint64_t bit = uint64_t{1} << (there % shape_.stretch);
  int page = there / shape_.stretch * shape_.pages_at_once();
  while ((clusters_.members(lane, page) & bit) == 0) ++page;
  return page * kPageTokens + std::popcount(clusters_.members(lane, page) & (bit - 1));
}

bool Archive::mark_given_up(int lane, int64_t token) {
  if (token < first()) return false;
  const int row = row_of(lane, token), page = row / kPageTokens;
  const int64_t at_once = shape_.written_at_once();
  const bool written = token < (tokens_ + coming_) / at_once * at_once;
  if (written && !file_->is_used(slot_of(lane, page))) return false;  // was lost
  uint16_t& gone = gone_[at(lane, page)];
  const auto bit = static_cast<uint16_t>(1u << (row % kPageTokens));
  if ((gone & bit) != 0) return false;
  gone |= bit;
  ++spilled_[lane];
  return true;
}

void Archive::set_count(int lane, int n) {
  counts_[lane] = n;
  copied_[lane] = kNotCopied;
}

int Archive::chosen_tokens(int lane) const {
  const Piece* const chosen = pieces_ + static_cast<size_t>(lane) * static_cast<size_t>(shape_.most_read);
  int tokens = 0;
  for (int i = 0; i < counts_[lane]; ++i) tokens += std::popcount(chosen[i].rows);
  return tokens;
}

void Archive::forget_choices() {
  for (int lane = 0; lane < shape_.lanes; ++lane) set_count(lane, 0);
}

int64_t Archive::fetch(int first, int lanes) {
  int64_t lost = 0;
  for (int lane = first; lane < first + lanes; ++lane) ask_for(lane);
  for (int lane = first; lane < first + lanes; ++lane) lost += receive(lane);
  return lost;
}

void Archive::ask_for(int lane) {
  if (!must_fetch(lane)) return;
  for (int other = lane % shape_.together; other < shape_.lanes && !shape_.copies_stay; other += shape_.together)
    copied_[other] = kNotCopied;  // those of another lane are written over
  Piece* const wanted = pieces(lane);
  for (int i = 0; i < counts_[lane]; ++i)
    if (waits(wanted[i].page)) {
      std::memcpy(const_cast<std::byte*>(copy(lane, i)), tail_page(lane, wanted[i].page % shape_.pages_at_once()),
                  page_bytes_);
    } else if (reads_.rests()) {
      wanted[i].rows = 0;
    } else if (wanted[i].rows != 0) {
      engine_->read(slot_of(lane, wanted[i].page), const_cast<std::byte*>(copy(lane, i)), read_of(lane) + i, lane);
    }
  copied_[lane] = kAskedFor;
}

void Archive::expect(int lane, std::span<const int32_t> pages) {
  const int place = lane % shape_.together;
  if (reads_.rests() || !asked_ahead_[place].done()) return;
  SlotId* const slots = expected_ + static_cast<size_t>(place) * static_cast<size_t>(shape_.most_scanned());
  int n = 0;
  for (const int32_t page : pages.first(std::min(pages.size(), static_cast<size_t>(shape_.most_scanned()))))
    if (const SlotId slot = slot_of(lane, page); gone(lane, page) != 0 && !waits(page) && file_->is_used(slot))
      slots[n++] = slot;
  if (n > 0) engine_->expect(slots, n, asked_ahead_ + place, lane);
}

int64_t Archive::receive(int lane) {
  if (copied_[lane] != kAskedFor) return 0;
  const trace::Span span("copy_wait", lane);
  Piece* const wanted = pieces(lane);
  int64_t lost = 0;
  for (int i = 0; i < counts_[lane]; ++i) {
    if (wanted[i].rows == 0 || waits(wanted[i].page)) continue;
    ++counters_.fetched_pages;
    if (engine_->wait(read_of(lane)[i]) == Status::ok) {
      reads_.went_well();
      continue;
    }
    wanted[i].rows = 0;
    if (reads_.rests()) continue;  // asked for with those that began it: it stays there
    if (reads_.failed()) ++counters_.read_pauses;
    ++counters_.lost_pages;
    lost += lose(lane, wanted[i].page);
  }
  copied_[lane] = kCopied;
  return lost;
}

void Archive::check_invariants() const {
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    int64_t tokens = 0;
    for (int page = 0; page < shape_.pages; ++page) tokens += std::popcount(gone(lane, page));
    if (tokens != spilled_[lane]) throw InvariantError("Archive: a lane's count differs from the bits of its pages.");
  }
  file_->check_invariants();
}

}  // namespace mosaic
