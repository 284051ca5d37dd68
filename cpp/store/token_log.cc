#include "store/token_log.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"

namespace mosaic {

namespace {

constexpr uint16_t kFull = 0xffff;
constexpr char kName[] = "token log";

Size capacity_of(const LogShape& s) { return Size(s.lanes) * s.pages * kPageTokens; }

uint16_t bit(TokenSlot slot) { return static_cast<uint16_t>(1u << (slot % kPageTokens)); }

}  // namespace

TokenLog::TokenLog(Region& region, const LogShape& s, Ops& ops)
    : shape_(s),
      ops_(ops),
      page_bytes_(data_bytes(s.codec, s.page)),
      exact_step_(static_cast<int>((data_bytes(s.exact, s.page) + page_bytes_ - 1) / page_bytes_)),
      frames_(region, kName, s.frames),
      frame_(region, kName, capacity_of(s), static_cast<uint32_t>(s.frames)),
      step_(region, kName, capacity_of(s), static_cast<uint32_t>(std::max(s.frame_tokens, 1) - 1)) {
  const auto lanes = static_cast<size_t>(s.lanes);
  const size_t pages = lanes * static_cast<size_t>(s.pages), tokens = pages * kPageTokens;
  const char* const name = kName;
  data_ = region.take_for_kernels(name, pages * page_bytes_);
  rows_ = region.take<uint16_t>(name, pages);
  heard_ = region.take<uint16_t>(name, pages);
  place_ = s.places ? region.take<uint16_t>(name, 2 * tokens) : nullptr;
  number_ = s.numbered ? region.take<uint32_t>(name, tokens) : nullptr;
  worth_ = region.take<uint16_t>(name, tokens);
  size_ = region.take<int32_t>(name, lanes);
  open_page_ = region.take<int32_t>(name, lanes);
  mean_k_ = region.take<float>(name, lanes * row());
  mean_v_ = region.take<float>(name, lanes * row());
  mean_tokens_ = region.take<int32_t>(name, lanes);
  row_pages_ = region.take<std::byte*>(name, kAtOnce);
  row_at_ = region.take<int32_t>(name, kAtOnce);
}

void TokenLog::open_frame(int32_t position, int32_t time_low) {
  opened_frame_ = frames_.free_row();
  if (opened_frame_ == kNone) throw InvariantError("TokenLog: no row for a frame; one must give up its tokens first.");
  frames_.write(opened_frame_, position, time_low);
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
  const int64_t step = int64_t{meta.position} - frames_[static_cast<size_t>(opened_frame_)].position;
  if (step < 0 || step >= shape_.frame_tokens) throw InvariantError("TokenLog: a token stands outside its frame.");
  frame_.set(at, static_cast<uint32_t>(opened_frame_));
  step_.set(at, static_cast<uint32_t>(step));
  frames_.add_token(static_cast<size_t>(opened_frame_));
  if (place_ != nullptr) place_[2 * at] = meta.h, place_[2 * at + 1] = meta.w;
  if (number_ != nullptr) number_[at] = run.number + static_cast<uint32_t>(i);
  worth_[at] = 0;
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
  frame_.set(b, frame_[a]);
  step_.set(b, step_[a]);
  if (place_ != nullptr) std::memcpy(place_ + 2 * b, place_ + 2 * a, 2 * sizeof(uint16_t));
  if (number_ != nullptr) number_[b] = number_[a];
  worth_[b] = worth_[a];
  rows_[at_page(lane, from_page)] &= static_cast<uint16_t>(~bit(from));
  rows_[at_page(lane, to_page)] |= bit(to);
}

void TokenLog::settle(int lane, TokenSlot slot, float worth) {
  heard_[at_page(lane, slot / kPageTokens)] &= static_cast<uint16_t>(~bit(slot));
  worth_[at_token(lane, slot)] = WorthCode::of(worth);
}

void TokenLog::erase(int lane, TokenSlot slot) {
  const size_t page = at_page(lane, slot / kPageTokens);
  if ((rows_[page] & bit(slot)) == 0) throw InvariantError("TokenLog: a token was given up twice.");
  rows_[page] &= static_cast<uint16_t>(~bit(slot));
  heard_[page] &= static_cast<uint16_t>(~bit(slot));
  frames_.remove_token(frame_[at_token(lane, slot)]);
  --size_[lane];
}

// Whether every frame of the table counts the tokens that are kept of it.
bool TokenLog::frames_are_counted() const {
  std::vector<int32_t> kept(static_cast<size_t>(frames_.rows()));
  for (int lane = 0; lane < shape_.lanes; ++lane)
    for (int page = 0; page < shape_.pages; ++page)
      for (uint16_t left = rows(lane, page); left != 0; left &= static_cast<uint16_t>(left - 1))
        ++kept[static_cast<size_t>(frame(lane, page * kPageTokens + std::countr_zero(left)))];
  for (size_t row = 0; row < kept.size(); ++row)
    if (kept[row] != frames_[row].kept) return false;
  return true;
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
  if (!frames_are_counted()) throw InvariantError("TokenLog: a frame counts other tokens than those kept of it.");
}

void TokenLog::serialize(Snapshot& s, RestoredPage* room) {
  const auto lanes = static_cast<size_t>(shape_.lanes);
  s.flag(learning_, "whether the log learns");
  frames_.serialize(s, room->bounds());
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
  s.require(!s.is_reading() || frames_are_counted(), "a frame of the log counts its tokens");
}

void TokenLog::serialize_page(Snapshot& s, int lane, int page, RestoredPage* room) {
  const size_t at = at_token(lane, page * kPageTokens);
  const uint16_t all = rows(lane, page);
  frame_.serialize(s, at, kPageTokens);
  step_.serialize(s, at, kPageTokens);
  if (place_ != nullptr) s.items(place_ + 2 * at, 2 * kPageTokens);
  if (number_ != nullptr) s.items(number_ + at, kPageTokens);
  s.items(worth_ + at, kPageTokens);
  for (size_t i = 0; i < kPageTokens; ++i) {
    if ((all >> i & 1) == 0) continue;
    s.require(frame_[at + i] < static_cast<uint32_t>(frames_.rows()) &&
                  step_[at + i] < static_cast<uint32_t>(shape_.frame_tokens),
              "a token of the log stands in a frame of it");
    s.require(frames_[frame_[at + i]].position <= room->bounds().last_position - static_cast<int32_t>(step_[at + i]),
              "a token of the log is in the stream");
    const uint16_t code = worth_[at + i];
    s.require((heard(lane, page) >> i & 1) != 0 ? (code & 0x7c00) != 0x7c00 : WorthCode::is_finite(code),
              "what a token is worth is a number");
    s.require(place_ == nullptr || room->bounds().hold(place_[2 * (at + i)], place_[2 * (at + i) + 1]),
              "a place is in the grid");
  }
  room->serialize(
      s, data(lane, page), data_bytes(codec(), shape_.page),
      [&](const std::byte* data) { return room->is_finite(codec(), data, all, key_mean(lane)); },
      "a token of the log is of numbers");
}

}  // namespace mosaic
