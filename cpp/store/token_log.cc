#include "store/token_log.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace mosaic {

namespace {

constexpr uint16_t kFull = 0xffff;

uint16_t bit(TokenSlot slot) { return static_cast<uint16_t>(1u << (slot % kPageTokens)); }

}  // namespace

TokenLog::TokenLog(Region& region, const LogShape& s, Ops& ops)
    : shape_(s),
      ops_(ops),
      page_bytes_(data_bytes(s.codec, s.page)),
      exact_step_(static_cast<int>((data_bytes(s.exact, s.page) + page_bytes_ - 1) / page_bytes_)) {
  const auto lanes = static_cast<size_t>(s.lanes);
  const size_t pages = lanes * static_cast<size_t>(s.pages), tokens = pages * kPageTokens;
  const char* const name = "token log";
  data_ = region.take_for_kernels(name, pages * page_bytes_);
  rows_ = region.take<uint16_t>(name, pages);
  heard_ = region.take<uint16_t>(name, pages);
  position_ = region.take<int32_t>(name, tokens);
  time_low_ = region.take<int32_t>(name, tokens);
  place_ = s.places ? region.take<uint16_t>(name, 2 * tokens) : nullptr;
  number_ = s.numbered ? region.take<uint32_t>(name, tokens) : nullptr;
  score_ = region.take<half_t>(name, tokens);
  likeness_ = region.take<uint8_t>(name, tokens);
  size_ = region.take<int32_t>(name, lanes);
  open_page_ = region.take<int32_t>(name, lanes);
  mean_k_ = region.take<float>(name, lanes * row());
  mean_v_ = region.take<float>(name, lanes * row());
  mean_tokens_ = region.take<int32_t>(name, lanes);
  row_pages_ = region.take<std::byte*>(name, kAtOnce);
  row_at_ = region.take<int32_t>(name, kAtOnce);
}

void TokenLog::learn_mean(int lane, const float* k, const float* v, int tokens) {
  float* const mean_k = mean_k_ + static_cast<size_t>(lane) * row();
  float* const mean_v = mean_v_ + static_cast<size_t>(lane) * row();
  for (int i = 0; i < tokens; ++i) {
    const float share = 1.0f / static_cast<float>(++mean_tokens_[lane]);
    for (size_t c = 0; c < row(); ++c) {
      mean_k[c] += (k[static_cast<size_t>(i) * row() + c] - mean_k[c]) * share;
      mean_v[c] += (v[static_cast<size_t>(i) * row() + c] - mean_v[c]) * share;
    }
  }
}

void TokenLog::place_token(int lane, const Run& run, int i, TokenSlot* slots) {
  const TokenSlot slot = slots[i] = next_slot(lane);
  const TokenMeta& meta = run.meta[i];
  const size_t at = at_token(lane, slot), page = at_page(lane, slot / kPageTokens);
  rows_[page] |= bit(slot);
  heard_[page] |= bit(slot);
  position_[at] = meta.position;
  time_low_[at] = meta.time_low;
  if (place_ != nullptr) place_[2 * at] = meta.h, place_[2 * at + 1] = meta.w;
  if (number_ != nullptr) number_[at] = run.number + static_cast<uint32_t>(i);
  score_[at] = 0;
  likeness_[at] = 0;
  ++size_[lane];
}

int TokenLog::place(int lane, const Run& run, TokenSlot* slots, std::span<RowMove> moves) {
  if (run.n > free(lane)) throw InvariantError("TokenLog: more tokens than slots; the policy must give some up first.");
  moves_ = moves;
  move_count_ = 0;
  for (int i = 0; i < run.n; ++i) place_token(lane, run, i, slots);
  moves_ = {};
  return move_count_;
}

void TokenLog::add(int lane, const Run& run, TokenSlot* slots) {
  if (run.n > free(lane)) throw InvariantError("TokenLog: more tokens than slots; the policy must give some up first.");
  for (int first = 0; first < run.n; first += kAtOnce) {
    const int n = std::min(kAtOnce, run.n - first);
    if (first > 0) ops_.wait();  // kernels under way read the lists
    for (int i = 0; i < n; ++i) {
      place_token(lane, run, first + i, slots);
      row_pages_[i] = data(lane, slots[first + i] / kPageTokens);
      row_at_[i] = slots[first + i] % kPageTokens;
    }
    const size_t from = static_cast<size_t>(first) * row();
    ops_.encode_rows(codec(), shape_.page, run.k + from, run.v + from, row(), n, row_pages_, row_at_, key_mean(lane));
  }
}

void TokenLog::unpack(int lane, int page, float* k, float* v) {
  ops_.decode(shape_.exact, shape_.page, data(lane, page), 0, kPageTokens, k, v, row());
  ops_.wait();
}

void TokenLog::pack(int lane, int page, const float* k, const float* v) {
  int n = 0;
  const uint16_t all = rows(lane, page);
  for (int i = 0; i < kPageTokens; ++i) {  // each row where it was; what is none is not written
    if ((all >> i & 1) == 0) continue;
    row_pages_[n] = data(lane, page);
    row_at_[n++] = i;
  }
  if (n < kPageTokens && (all & (all + 1)) != 0)
    throw InvariantError("TokenLog: a page that is packed has holes; nothing is given up while the log learns.");
  ops_.encode_rows(shape_.codec, shape_.page, k, v, row(), n, row_pages_, row_at_, key_mean(lane));
  ops_.wait();
}

TokenSlot TokenLog::next_slot(int lane) {
  // A settled page with holes is left to settled tokens; while the log learns none are, and pages fill in order of time.
  int page = open_page_[lane];
  const bool open = rows(lane, page) == 0 || ((learning_ || heard(lane, page) != 0) && rows(lane, page) != kFull);
  if (!open) page = open_page_[lane] = page_for_new(lane);
  return page * kPageTokens + std::countr_one(rows(lane, page));
}

int TokenLog::page_for_new(int lane) {
  int heard = kNone, settled = kNone;
  for (int page = 0; page + step() <= shape_.pages; page += step()) {
    if (rows(lane, page) == 0) return page;
    if (rows(lane, page) == kFull) continue;
    int& best = this->heard(lane, page) != 0 ? heard : settled;
    if (best == kNone || tokens_of(lane, page) < tokens_of(lane, best)) best = page;
  }
  if (const int emptied = empty_settled_page(lane); emptied != kNone) return emptied;
  return heard != kNone ? heard : settled;
}

// The settled page with the fewest tokens, emptied into the holes of the other settled ones; kNone: they have too few.
int TokenLog::empty_settled_page(int lane) {
  int best = kNone, holes = 0;
  for (int page = 0; page + step() <= shape_.pages; page += step()) {
    if (heard(lane, page) != 0) continue;
    holes += kPageTokens - tokens_of(lane, page);
    if (best == kNone || tokens_of(lane, page) < tokens_of(lane, best)) best = page;
  }
  if (best == kNone || holes < kPageTokens) return kNone;  // the tokens of one page, and the holes it has itself
  int to = 0;
  for (uint16_t left = rows(lane, best); left != 0; left = rows(lane, best)) {
    while (to == best || heard(lane, to) != 0 || rows(lane, to) == kFull) to += step();
    move(lane, best * kPageTokens + std::countr_zero(left), to * kPageTokens + std::countr_one(rows(lane, to)));
  }
  return best;
}

void TokenLog::move(int lane, TokenSlot from, TokenSlot to) {
  const int from_page = from / kPageTokens, to_page = to / kPageTokens;
  const RowMove move{data(lane, from_page), data(lane, to_page), from % kPageTokens, to % kPageTokens};
  if (moves_.empty()) {
    ops_.move_row(codec(), shape_.page, move.from, move.from_at, move.to, move.to_at);
  } else {  // what has moved already goes on in one move: its page is emptied, and nothing comes back to it
    const auto asked = moves_.first(static_cast<size_t>(move_count_));
    const auto before =
        std::ranges::find_if(asked, [&](const RowMove& m) { return m.to == move.from && m.to_at == move.from_at; });
    if (before != asked.end()) {
      before->to = move.to, before->to_at = move.to_at;
    } else {
      if (static_cast<size_t>(move_count_) == moves_.size())
        throw InvariantError("TokenLog: more moves than tokens come.");
      moves_[static_cast<size_t>(move_count_++)] = move;
    }
  }
  const size_t a = at_token(lane, from), b = at_token(lane, to);
  position_[b] = position_[a];
  time_low_[b] = time_low_[a];
  if (place_ != nullptr) std::memcpy(place_ + 2 * b, place_ + 2 * a, 2 * sizeof(uint16_t));
  if (number_ != nullptr) number_[b] = number_[a];
  score_[b] = score_[a];
  likeness_[b] = likeness_[a];
  rows_[at_page(lane, from_page)] &= static_cast<uint16_t>(~bit(from));
  rows_[at_page(lane, to_page)] |= bit(to);
}

void TokenLog::settle(int lane, TokenSlot slot, float score) {
  heard_[at_page(lane, slot / kPageTokens)] &= static_cast<uint16_t>(~bit(slot));
  score_[at_token(lane, slot)] = finite_half(score);
}

void TokenLog::erase(int lane, TokenSlot slot) {
  const size_t page = at_page(lane, slot / kPageTokens);
  if ((rows_[page] & bit(slot)) == 0) throw InvariantError("TokenLog: a token was given up twice.");
  rows_[page] &= static_cast<uint16_t>(~bit(slot));
  heard_[page] &= static_cast<uint16_t>(~bit(slot));
  --size_[lane];
}

void TokenLog::check_invariants() const {
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    int tokens = 0;
    for (int page = 0; page < shape_.pages; ++page) {
      tokens += tokens_of(lane, page);
      if ((heard(lane, page) & ~rows(lane, page)) != 0)
        throw InvariantError("TokenLog: a slot is heard that holds no token.");
    }
    if (tokens != size_[lane]) throw InvariantError("TokenLog: a lane's count differs from the tokens in its pages.");
    if (tokens > 0 && !knows_mean(lane)) throw InvariantError("TokenLog: a lane has tokens but no mean.");
  }
}

void TokenLog::serialize(Snapshot& s, RestoredPage* room) {
  const auto lanes = static_cast<size_t>(shape_.lanes);
  s.flag(learning_, "whether the log learns");
  s.items(rows_, lanes * static_cast<size_t>(shape_.pages));
  s.items(heard_, lanes * static_cast<size_t>(shape_.pages));
  s.all_in_range(open_page_, lanes, 0, shape_.pages - 1, "the open page is one of the lane");
  s.all_in_range(mean_tokens_, lanes, 0, 1 << 30, "a mean is of some tokens");
  s.finite(mean_k_, lanes * row(), "a mean is of numbers");
  s.finite(mean_v_, lanes * row(), "a mean is of numbers");
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    if (s.is_reading()) size_[lane] = 0;
    // A log smaller than an exact page takes no token while it learns; its open page is its first.
    s.require(open_page_[lane] % step() == 0 && open_page_[lane] + std::min(step(), shape_.pages) <= shape_.pages,
              "the open page is whole");
    for (int page = 0; page < shape_.pages; ++page) {
      if (rows(lane, page) == 0) continue;
      s.require(page % step() == 0 && page + step() <= shape_.pages, "a page of the log is whole");
      serialize_page(s, lane, page, room);
      if (s.is_reading()) size_[lane] += tokens_of(lane, page);
    }
  }
}

void TokenLog::serialize_page(Snapshot& s, int lane, int page, RestoredPage* room) {
  const size_t at = at_token(lane, page * kPageTokens);
  const uint16_t all = rows(lane, page);
  s.items(position_ + at, kPageTokens);
  s.items(time_low_ + at, kPageTokens);
  if (place_ != nullptr) s.items(place_ + 2 * at, 2 * kPageTokens);
  if (number_ != nullptr) s.items(number_ + at, kPageTokens);
  s.finite(score_ + at, kPageTokens, "a score is a number");
  s.items(likeness_ + at, kPageTokens);
  for (size_t i = 0; i < kPageTokens; ++i) {
    if ((all >> i & 1) == 0) continue;
    s.require(room->bounds().hold(position_[at + i]), "a token of the log is in the stream");
    s.require(place_ == nullptr || room->bounds().hold(place_[2 * (at + i)], place_[2 * (at + i) + 1]),
              "a place is in the grid");
  }
  room->serialize(
      s, data(lane, page), data_bytes(codec(), shape_.page),
      [&](const std::byte* data) { return room->is_finite(codec(), data, all, key_mean(lane)); },
      "a token of the log is of numbers");
}

}  // namespace mosaic
