#include "runtime/records.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "core/error.h"
#include "core/trace.h"

namespace mosaic {

Records::Records(Region& region, const Plan& plan, Ops& ops, Retention& retention, SpillIo* io)
    : ops_(ops), retention_(retention), log_(region, plan.log, ops), heard_(region, plan.listening) {
  if (plan.archive.pages > 0) {
    archive_.emplace(region, plan.archive, ops, io);
    const bool frames_read = plan.config.model.video_window == 0;  // more than the window
    const DiskWishes disk = retention.disk();
    const Recall::Wishes wishes{disk.question, frames_read ? disk.frame : 0, disk.rest, plan.config.retrieve_tokens};
    recall_.emplace(region, plan.archive, ops, wishes, plan.config.model.q_heads / plan.layer_lanes);
  }
  const char* const name = "record scratch";
  unpacked_k_ = region.take<float>(name, Size(kPageTokens) * plan.log.page.row());
  unpacked_v_ = region.take<float>(name, Size(kPageTokens) * plan.log.page.row());
  const auto pages = static_cast<size_t>(plan.log.pages), tokens = pages * kPageTokens;
  const auto frame = static_cast<size_t>(plan.listening.frame_tokens), row = static_cast<size_t>(plan.log.page.row());
  page_first_ = region.take<int32_t>(name, region.has_private() ? Size(plan.log.lanes) * pages : Size(pages));
  victims_ = region.take<Victim>(name, tokens);
  settled_ = region.take<TokenSlot>(name, frame);
  worth_ = region.take<float>(name, frame);
  counts_rest_ = archive_ && retention.disk().rest;
  const size_t compared = retention.compares() ? 1 : 0, gathered = retention.compares() || counts_rest_ ? 1 : 0;
  entries_ = region.take<PageEntry>(name, gathered * std::max(pages, frame));
  like_ = region.take<float>(name, compared * frame);
  k_ = region.take<float>(name, gathered * frame * row);
  v_ = region.take<float>(name, gathered * frame * row);
  at_ = region.take<int32_t>(name, gathered * frame);
  const size_t resting = counts_rest_ ? static_cast<size_t>(plan.log.lanes) : 0;
  rest_value_ = region.take<float>(name, resting * row);
  rest_tokens_ = region.take<int32_t>(name, resting);
  if (retention.merit() == Merit::kChange)
    frame_change_.emplace(region, plan.listening.frame_tokens, static_cast<int>(plan.log.page.row()));
  if (region.has_private()) take_together(region, plan);
}

void Records::read(int lane, Since since, BlockSelection* selection) {
  const auto add = [&](int page, uint16_t rows) {
    const int32_t *const positions = log_.positions(lane) + page * kPageTokens, *const lows = log_.time_lows(lane) +
                                                                                              page * kPageTokens;
    for (int i = 0; i < kPageTokens && since.asks(); ++i)
      if (!since.wants(positions[i], lows[i])) rows &= static_cast<uint16_t>(~(1u << i));
    page_first(lane)[page] = selection->tokens() - std::countr_zero(rows);
    const size_t first = static_cast<size_t>(page) * kPageTokens;
    if (!selection->add_tokens(page, log_.data(lane, page), log_.codec(), rows, log_.positions(lane) + first,
                               log_.places(lane) != nullptr ? log_.places(lane) + 2 * first : nullptr))
      throw InvariantError("Records: a lane holds more pages than a selection (a defect of the plan).");
  };
  for (int page = 0; page < log_.shape().pages; ++page)
    if (log_.rows(lane, page) != 0 && log_.heard(lane, page) == 0) add(page, log_.rows(lane, page));
  selection->mark_heard();
  for (int page = 0; page < log_.shape().pages; ++page)
    if (log_.heard(lane, page) != 0) add(page, log_.rows(lane, page));
}

MassArgs Records::wanted(const BlockSelection& selection, float* mass, int tokens, int trail) const {
  MassArgs wanted;
  wanted.page_mass = mass;
  wanted.first_query = retention_.listens_to_template() ? tokens - std::max(trail, 1) : 0;
  wanted.first_page = selection.first_heard() != kNone ? selection.first_heard() : 0;
  wanted.block_mass = mass + selection.tokens();
  return wanted;
}

void Records::listen(const BlockSelection& selection, int lane, int tokens_now, const Window& window, int frames,
                     const float* mass) {
  const trace::Span span("listen", lane);
  const bool log_is_read = selection.first_heard() != kNone;
  const float* const block_mass = mass + selection.tokens();
  const int32_t* const page_first = this->page_first(lane);
  const int first_read = window.frames() - frames;
  int in_window = selection.tokens();  // their tokens are the last ones, frame by frame
  for (int f = first_read; f < window.frames(); ++f) in_window -= window.frame(f).tokens;
  const float weight = retention_.attention_weight(selection.attended() + tokens_now);
  for (int f = 0; f <= heard_.frames(); ++f) {
    half_t* const now = heard_.now(lane, f);
    const int tokens = f == heard_.frames() ? tokens_now : heard_.frame(f).tokens;
    const TokenSlot* const slots = heard_.slots(lane, f);
    for (int i = 0; i < tokens; ++i) {
      float paid = 0;
      if (f == heard_.frames()) {
        paid = block_mass[i];
      } else if (f - frames_in_log() >= first_read) {
        paid = mass[in_window++];
      } else if (f < frames_in_log() && log_is_read && slots[i] != kNone) {
        paid = mass[page_first[slots[i] / kPageTokens] + slots[i] % kPageTokens];
      }
      now[i] = finite_half(paid * weight);
    }
  }
}

void Records::file(const WindowFrame& frame) {
  note_norms();
  heard_.file(frame.tokens);
  ++window_frames_;
  if (heard_.full()) {
    settle_oldest();
    heard_.forget_oldest();
  }
}

int Records::read_frame(const Window& window, Strip strip, int frame, int lane, const Rows& scratch) {
  const int tokens = strip == Strip::kFirstFrame ? window.first_frame().tokens : window.frame(frame).tokens;
  window.read(ops_, strip, lane, tokens, scratch.k, scratch.v, scratch.meta, frame);
  ops_.wait();
  return tokens;
}

// The mean of a lane before its first token comes: of the first frame, and of the window where there is no room to learn
// from more.
void Records::learn_first(const Window& window, const Rows& scratch, int lane) {
  if (window.has_first_frame())
    log_.learn_mean(lane, scratch.k, scratch.v, read_frame(window, Strip::kFirstFrame, 0, lane, scratch));
  for (int f = 0; f < window.frames() && !log_.is_learning(); ++f)
    log_.learn_mean(lane, scratch.k, scratch.v, read_frame(window, Strip::kFrame, f, lane, scratch));
}

// The means are fixed, and what came so far is packed, and archived.
void Records::end_learning() {
  const trace::Span span("pack");
  const int step = log_.step();
  for (int page = 0; page + step <= log_.shape().pages && log_.rows(0, page) != 0; page += step) {
    const int n = std::popcount(log_.rows(0, page)), first = page * kPageTokens;
    TokenMeta meta[kPageTokens];
    for (int i = 0; i < n; ++i) {
      const uint16_t* const place = log_.places(0) != nullptr ? log_.places(0) + 2 * (first + i) : nullptr;
      meta[i] = {log_.positions(0)[first + i], log_.time_lows(0)[first + i], place != nullptr ? place[0] : kText,
                 place != nullptr ? place[1] : kText};
    }
    if (archive_) account_lost(archive_->begin(meta, n, log_.key_mean(0)));
    for (int lane = 0; lane < log_.shape().lanes; ++lane) {
      log_.unpack(lane, page, unpacked_k_, unpacked_v_);
      if (archive_) archive_->add(lane, {unpacked_k_, unpacked_v_, meta, n}, log_.key_mean(lane));
      log_.pack(lane, page, unpacked_k_, unpacked_v_);
    }
    if (archive_) account_lost(archive_->end());
  }
  log_.end_learning();
}

void Records::admit(const Window& window, const Rows& scratch) {
  const int f = frames_in_log();
  if (log_.is_learning() &&
      (log_.free(0) < window.frame(0).tokens || (++learned_frames_ > kLearnFrames && log_.size(0) >= kLearnTokens)))
    end_learning();
  // Lane by lane while a mean is to be learned.
  if (together_ != nullptr && enters_together() && !log_.is_learning() && log_.knows_mean(0))
    return admit_together(window, scratch.meta);
  for (int lane = 0; lane < log_.shape().lanes; ++lane) {
    if (!log_.knows_mean(lane)) learn_first(window, scratch, lane);
    Run run{scratch.k, scratch.v, scratch.meta, read_frame(window, Strip::kFrame, 0, lane, scratch)};
    note_likeness();  // has run, as the frame is read
    const int tokens = run.n;
    run.number = static_cast<uint32_t>(admitted_);
    if (log_.is_learning()) {
      log_.learn_mean(lane, run.k, run.v, tokens);
    } else if (archive_) {
      if (lane == 0) account_lost(archive_->begin(run.meta, tokens, log_.key_mean(0)));
      archive_->add(lane, run, log_.key_mean(lane));
    }
    run.n = make_room(lane, tokens);  // a frame larger than the lane: its last tokens find no room
    account_.seen += tokens;
    account_.quantised += run.n;
    for (int i = run.n; i < tokens; ++i)
      account_given_up(archive_ && archive_->mark_given_up(lane, run.number + static_cast<uint32_t>(i)));
    if (run.n == 0) continue;
    TokenSlot* const slots = heard_.slots(lane, f);
    log_.add(lane, run, slots);
    measure_merit(lane, window, run, worth_);
    for (int i = 0; i < run.n; ++i) log_.note_merit(lane, slots[i], worth_[i]);
  }
  if (archive_ && !log_.is_learning()) account_lost(archive_->end());
  admitted_ += window.frame(0).tokens;
  heard_.entered_log(f);
  --window_frames_;
}

// merit: [run.n]
void Records::measure_merit(int lane, const Window& window, const Run& run, float* merit) {
  if (frame_change_) return frame_change_->measure(ops_, window, lane, run, merit);
  const int row = log_.shape().page.row();
  ops_.row_norm({run.v, run.n, row, static_cast<size_t>(row), merit});
  ops_.wait();
}

void Records::account_given_up(bool on_disk) { ++(on_disk ? account_.spilled : account_.dropped); }

void Records::give_up(int lane, TokenSlot slot) {
  account_given_up(archive_ && (log_.shape().numbered
                                    ? archive_->mark_given_up(lane, log_.number(lane, slot))
                                    : archive_->mark_given_up(lane, archive_->number_of(log_.positions(lane)[slot]))));
}

void Records::read_recalled(int lane, BlockSelection* selection) {
  if (archive_) account_lost(recall_->read(&*archive_, lane, selection));
}

void Records::skip() {
  heard_.entered_log(frames_in_log());
  --window_frames_;
}

// Free slots for a frame's tokens; how many of them there are.
int Records::make_room(int lane, int tokens) {
  const int need = std::min(tokens, log_.capacity()) - log_.free(lane);
  if (need > 0) {
    const int n = retention_.pick_victims(log_, heard_, lane, need, victims_);
    if (counts_rest_) learn_rest(lane, n);
    for (int i = 0; i < n; ++i) {
      give_up(lane, victims_[i].slot);
      log_.erase(lane, victims_[i].slot);
      if (victims_[i].frame != kNone) heard_.slots(lane, victims_[i].frame)[victims_[i].token] = kNone;
    }
    account_.quantised -= n;
  }
  return std::min(tokens, log_.free(lane));
}

// Tokens of the lane, at most a frame of them, decoded into k_ and v_; slot(i) is where the i-th is.
template <class Slot>
void Records::gather(int lane, int tokens, const Slot& slot) {
  for (int i = 0; i < tokens; ++i) {
    entries_[i] = {log_.data(lane, slot(i) / kPageTokens), 0, 0xffff, log_.codec()};
    at_[i] = slot(i) % kPageTokens;
  }
  const auto row = static_cast<size_t>(log_.shape().page.row());
  ops_.gather(entries_, at_, tokens, log_.shape().page, k_, v_, row, log_.key_mean(lane));
  ops_.wait();
}

// What is given up now, into the mean value of all that was: of the last kRestTokens, about, where there are more.
void Records::learn_rest(int lane, int victims) {
  const auto row = static_cast<size_t>(log_.shape().page.row());
  float* const mean = rest_value_ + static_cast<size_t>(lane) * row;
  const int most = heard_.shape().frame_tokens;
  for (int first = 0; first < victims; first += most) {
    const int n = std::min(most, victims - first);
    gather(lane, n, [&](int i) { return victims_[first + i].slot; });
    for (int i = 0; i < n; ++i) {
      rest_tokens_[lane] = std::min(rest_tokens_[lane] + 1, kRestTokens);
      const float part = 1.0f / static_cast<float>(rest_tokens_[lane]);
      for (size_t c = 0; c < row; ++c) mean[c] += part * (v_[static_cast<size_t>(i) * row + c] - mean[c]);
    }
  }
}

void Records::settle_oldest() {
  const trace::Span span("settle");
  if (!heard_.frame(0).in_log) throw InvariantError("Records: a frame of the window cannot be settled.");
  if (together_ != nullptr && retention_.compares()) return compare_together();
  for (int lane = 0; lane < log_.shape().lanes; ++lane)
    if (const int n = settle(lane, worth_, settled_); retention_.compares() && n > 0) compare(lane, n);
}

// The tokens of the oldest frame that are still kept; how many there are.
int Records::settle(int lane, float* worth, TokenSlot* settled) {
  const TokenSlot* const slots = heard_.slots(lane, 0);
  int n = 0;
  for (int i = 0; i < heard_.frame(0).tokens; ++i) {
    if (slots[i] == kNone) continue;
    worth[n] = retention_.worth(heard_.received(lane, 0, i), log_.merit(lane, slots[i]));
    settled[n] = slots[i];
    log_.settle(lane, slots[i], worth[n++]);
  }
  return n;
}

// How like the tokens that settle now are to better ones that are kept, and kept ones to them.
void Records::compare(int lane, int tokens) {
  const int row = log_.shape().page.row();
  gather(lane, tokens, [&](int i) { return settled_[i]; });
  const int n = list_settled(lane, entries_);
  for (int i = 0; i < tokens; ++i) worth_[i] = half_to_float(log_.scores(lane)[settled_[i]]);
  LikenessArgs args;
  args.k = k_;
  args.v = v_;
  args.items = tokens;
  args.stride = static_cast<size_t>(row);
  args.item_score = worth_;
  args.shape = log_.shape().page;
  args.pages = entries_;
  args.n_pages = n;
  args.token_score = log_.scores(lane);
  args.key_mean = log_.key_mean(lane);
  args.value_mean = log_.value_mean(lane);
  std::fill_n(like_, tokens, 0.0f);
  args.item_like = like_;
  args.token_like = log_.likeness(lane);
  ops_.likeness(args);
  keep_likeness(lane, settled_, like_, tokens);
}

// The lane's pages of settled tokens. Returns how many pages.
int Records::list_settled(int lane, PageEntry* entries) const {
  int n = 0;
  for (int page = 0; page < log_.shape().pages; ++page) {
    const auto rows = static_cast<uint16_t>(log_.rows(lane, page) & ~log_.heard(lane, page));
    if (rows != 0)
      entries[n++] = {log_.data(lane, page), page * kPageTokens + std::countr_zero(rows), rows, log_.codec()};
  }
  return n;
}

// Of tokens that settled now; what was stored has been raised where it lies.
void Records::keep_likeness(int lane, const TokenSlot* settled, const float* like, int tokens) {
  uint8_t* const kept = log_.likeness(lane);
  for (int i = 0; i < tokens; ++i) kept[settled[i]] = std::max(kept[settled[i]], like_code(like[i]));
}

uint64_t Records::used_bytes() const {
  return static_cast<uint64_t>(account_.quantised) * data_bytes(log_.shape().codec, log_.shape().page) / kPageTokens;
}

uint64_t Records::capacity_bytes() const {
  return static_cast<uint64_t>(log_.shape().lanes) * static_cast<uint64_t>(log_.shape().pages) *
         data_bytes(log_.shape().codec, log_.shape().page);
}

void Records::check_invariants() const {
  log_.check_invariants();
  int64_t kept = 0;
  for (int lane = 0; lane < log_.shape().lanes; ++lane) kept += log_.size(lane);
  if (archive_) {
    archive_->check_invariants();
    if (archive_->spilled() != account_.spilled)
      throw InvariantError("Records: the tokens on disk are not as many as the account says.");
  }
  if (kept != account_.quantised) throw InvariantError("Records: the kept tokens are not where the account says.");
  for (int lane = 0; lane < log_.shape().lanes; ++lane)
    for (int f = 0; f < frames_in_log(); ++f)
      for (int i = 0; i < heard_.frame(f).tokens; ++i)
        if (const TokenSlot s = heard_.slots(lane, f)[i];
            s != kNone && (!log_.holds(lane, s) || (log_.heard(lane, s / kPageTokens) >> (s % kPageTokens) & 1) == 0))
          throw InvariantError("Records: a token that is heard is not in the log.");
}

void Records::serialize(Snapshot& s, const Window& window, RestoredPage* room) {
  note_norms();     // else they would be when the next frame is filed,
  note_likeness();  // or leaves the window
  s.section("LOG ");
  log_.serialize(s, room);
  heard_.serialize(s, log_);
  s.item(account_);
  for (const int64_t n :
       {account_.seen, account_.exact, account_.quantised, account_.spilled, account_.collapsed, account_.dropped})
    s.require(n >= 0 && n < int64_t{1} << 60, "an account counts from 0");
  s.in_range(learned_frames_, 0, std::numeric_limits<int>::max() - 1, "frames that the mean is of");
  s.in_range(admitted_, 0, int64_t{1} << 48, "tokens of a lane");
  s.in_range(window_frames_, 0, heard_.frames(), "frames of the window that are heard");
  check_heard(s, window);
  if (!archive_) return;
  s.section("ARCH");
  archive_->serialize(s, log_.key_mean(0), room);
  if (!counts_rest_) return;
  const auto lanes = static_cast<size_t>(log_.shape().lanes);
  s.finite(rest_value_, lanes * static_cast<size_t>(log_.shape().page.row()),
           "the mean value of what was given up is a number");
  for (size_t lane = 0; lane < lanes; ++lane)
    s.in_range(rest_tokens_[lane], 0, kRestTokens, "tokens that were given up");
}

// The frames that are heard are those of the window and the ones that left it last; their tokens in the log, each once, are
// what the log says is heard.
void Records::check_heard(const Snapshot& s, const Window& window) const {
  if (!s.is_reading()) return;
  s.require(window_frames_ == window.frames(), "the window's frames are heard");
  for (int f = 0; f < heard_.frames(); ++f) {
    const int in_window = f - frames_in_log();
    s.require(heard_.frame(f).in_log == (in_window < 0), "a frame is in the log, or in the window");
    s.require(in_window < 0 || heard_.frame(f).tokens == window.frame(in_window).tokens, "a frame has one length");
  }
  std::vector<uint16_t> heard(static_cast<size_t>(log_.shape().pages));
  for (int lane = 0; lane < log_.shape().lanes; ++lane) {
    for (int page = 0; page < log_.shape().pages; ++page) heard[static_cast<size_t>(page)] = log_.heard(lane, page);
    for (int f = 0; f < heard_.frames(); ++f)
      for (int i = 0; i < heard_.frame(f).tokens; ++i) {
        const TokenSlot slot = heard_.slots(lane, f)[i];
        if (slot == kNone) continue;
        uint16_t& left = heard[static_cast<size_t>(slot / kPageTokens)];
        const auto bit = static_cast<uint16_t>(1u << (slot % kPageTokens));
        s.require((left & bit) != 0 && f < frames_in_log(), "a token that is heard is in the log, once");
        left &= static_cast<uint16_t>(~bit);
      }
    for (const uint16_t left : heard) s.require(left == 0, "what the log hears is of a frame that is heard");
  }
}

}  // namespace mosaic
