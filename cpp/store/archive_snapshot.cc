// An archive into a snapshot and back: what finds tokens, and every page that can be read, from its slot of the spill file
// into one of another.
#include <algorithm>
#include <bit>

#include "core/error.h"
#include "memory/uncounted_moves.h"
#include "store/archive.h"

namespace mosaic {

void Archive::serialize(Snapshot& s, const float* key_means, RestoredPage* room) {
  drain();
  UncountedMoves moves(&*file_);
  const auto lanes = static_cast<size_t>(shape_.lanes);
  s.in_range(tokens_, 0, int64_t{1} << 48, "tokens of the archive");
  s.in_range(oldest_, 0, tokens_ / kPageTokens, "the oldest page of the archive");
  s.require(tokens_ / kPageTokens - oldest_ <= shape_.pages, "the archive holds as many pages as it has room for");
  s.require(oldest_ % shape_.pages_at_once() == 0, "the archive holds whole stretches");
  s.in_range(lost_between_, 0, tokens_, "tokens that were lost");
  serialize_tokens(s, room);
  s.items(gone_, lanes * static_cast<size_t>(shape_.pages));
  for (int lane = 0; lane < shape_.lanes && s.is_reading(); ++lane) {
    spilled_[lane] = 0;
    for (int page = 0; page < shape_.pages; ++page) spilled_[lane] += std::popcount(gone(lane, page));
    int64_t came = 0;
    for (int64_t page = oldest_, left; (left = tokens_ - page * kPageTokens) > 0; ++page)
      came += std::popcount<uint16_t>(gone(lane, index_of(page)) &
                                      rows_of(0, static_cast<int>(std::min<int64_t>(left, kPageTokens))));
    s.require(came == spilled_[lane], "a token that was given up is one that came");
  }
  keys_.serialize(s, tokens_, key_means, room);
  clusters_.serialize(s, static_cast<int>(std::min<int64_t>(written() / shape_.written_at_once(), shape_.stretches())),
                      key_means, room);
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    const float* const key_mean = key_means + static_cast<size_t>(lane) * static_cast<size_t>(shape_.page.row());
    if (!s.is_reading()) clear_behind(lane, room);
    s.bytes(tail_page(lane, 0), static_cast<size_t>(shape_.pages_at_once()) * page_bytes_);
    for (int p = 0, left = static_cast<int>(tokens_ - written()); left > 0 && s.is_reading(); ++p, left -= kPageTokens)
      s.require(room->is_finite(shape_.codec, tail_page(lane, p), rows_of(0, std::min(left, kPageTokens)), key_mean),
                "a token of the archive is of numbers");
    for (int64_t page = oldest_; page < written() / kPageTokens; ++page)
      serialize_page(s, lane, index_of(page), key_mean, room);
  }
  serialize_writes(s);
  writes_.serialize(s);
  reads_.serialize(s);
  s.item(counters_);
  moves.end();
  file_->serialize(s);
  engine_->serialize(s);
}

// Rows behind the tokens that wait are what was written last, or of a frame that went on from there: zeros, so that sessions
// of one history give equal files.
void Archive::clear_behind(int lane, RestoredPage* room) {
  Ops& host = ops_.for_host();
  for (int p = 0, left = static_cast<int>(tokens_ - written()); p < shape_.pages_at_once(); ++p, left -= kPageTokens) {
    if (left >= kPageTokens) continue;
    std::byte* const page = room->memory(page_bytes_);
    std::fill_n(page, page_bytes_, std::byte{0});
    for (int i = 0; i < left; ++i) host.move_row(shape_.codec, shape_.page, tail_page(lane, p), i, page, i);
    std::copy_n(page, page_bytes_, tail_page(lane, p));
  }
}

void Archive::serialize_tokens(Snapshot& s, RestoredPage* room) {
  const auto n = static_cast<size_t>(shape_.pages) * kPageTokens;
  s.all_in_range(position_, n, 0, room->bounds().last_position, "a token of the archive is in the stream");
  s.items(time_low_, n);
  if (place_ == nullptr) {  // then they are found by their position
    for (int64_t i = first() + 1; i < tokens_ && s.is_reading(); ++i)
      s.require(position_[(i - 1) % static_cast<int64_t>(n)] < position_[i % static_cast<int64_t>(n)],
                "tokens of an archive stand one behind the other");
    return;
  }
  s.items(place_, 2 * n);
  for (size_t i = 0; i < n && s.is_reading(); ++i)
    s.require(room->bounds().hold(place_[2 * i], place_[2 * i + 1]), "a place is in the grid");
}

// A page that does not come back as it was written stays so: the session it is restored to finds out as this one would have.
void Archive::serialize_page(Snapshot& s, int lane, int index, const float* key_mean, RestoredPage* room) {
  enum : uint8_t { kLost, kUnreadable, kWhole };
  const SlotId slot = slot_of(lane, index);
  std::byte* const page = room->memory(page_bytes_);
  uint8_t state = kLost;
  if (!s.is_reading() && file_->is_used(slot)) state = file_->read(slot, page) == Status::ok ? kWhole : kUnreadable;
  s.in_range(state, kLost, kWhole, "the state of a page of the archive");
  if (state == kWhole) s.bytes(page, page_bytes_);
  if (!s.is_reading() || state == kLost) return;
  s.require(state == kUnreadable || room->is_finite(shape_.codec, page, 0xffff, key_mean),
            "a token of the archive is of numbers");
  if (!file_->try_acquire(slot) || (state == kWhole && file_->write(slot, page) != Status::ok))
    throw SpillError("snapshot: the archive of " + format_bytes(used_bytes()) + " so far has no room in '" +
                     shape_.folder + "'. Free space there, or set spill_dir=.");
}

// Under way, in the order of the calls that asked for them: through on the disk, and not seen to yet.
void Archive::serialize_writes(Snapshot& s) {
  s.in_range(next_write_, 0, kWrites - 1, "the next write");
  for (int i = 0; i < kWrites; ++i) {
    Write& write = under_way_[i];
    auto status = static_cast<uint8_t>(write.written.status());
    s.in_range(write.page, kNone, tokens_ / kPageTokens, "the page of a write");
    s.in_range(write.lane, kNone, shape_.lanes - 1, "the lane of a write");
    s.require(write.page == kNone || write.lane != kNone, "a write is of a lane");
    s.in_range(status, 0, static_cast<uint8_t>(Status::no_space), "what came of a write");
    if (s.is_reading()) write.written.set_finished(static_cast<Status>(status));
  }
}

}  // namespace mosaic
