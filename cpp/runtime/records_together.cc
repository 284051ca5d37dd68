// Records where lanes are taken together: the tokens that leave the window go into the logs of all lanes by one launch, and
// what settles is compared in many lanes by one launch of each kernel. Rows stay in memory of the kernels' own. What the host
// reads of it is read later: norms of values when the next frame is committed, which waits anyway, likeness before one leaves.
#include <algorithm>
#include <array>

#include "core/trace.h"
#include "runtime/records.h"

namespace mosaic {

namespace {

constexpr uint64_t kShare = 64;  // of the cap, for rows of the lanes that are compared together
constexpr int kCompared = 16;    // lanes whose likeness is asked for at a time

}  // namespace

void Records::take_together(Region& region, const Plan& plan) {
  const char* const name = "record scratch";
  const Size frame = plan.listening.frame_tokens, all = plan.log.lanes, row = plan.log.page.row();
  const Size pages = plan.log.pages;
  const bool compares = retention_.compares(), archives = archive_ && enters_together();
  const Size each =
      frame * row * (2 * sizeof(float)) + (archives ? archive_->together_bytes(plan.listening.frame_tokens) : Size(0));
  const int64_t fit = std::max<int64_t>(plan.sized_for_bytes / kShare / each.bytes(), plan.layer_lanes);
  const auto lanes = static_cast<int>(std::min<int64_t>(fit, plan.log.lanes));
  const Size all_compared = compares ? all : 0, all_entering = enters_together() ? all : 0;
  Together* const t = region.take<Together>(name, 1);
  Together taken;
  taken.lanes = lanes;
  const auto take = [&]<class T>(T** to, Size n) { *to = region.take<T>(name, n); };
  const Size rows = compares || archives ? lanes * frame * row * sizeof(float) : Size(0);
  taken.k = reinterpret_cast<float*>(region.take_private(name, rows));
  taken.v = reinterpret_cast<float*>(region.take_private(name, rows));
  if (archives) archive_->take_together(region, lanes, plan.listening.frame_tokens);
  take(&taken.norm, all_entering * frame);
  take(&taken.pages, all_entering * frame);
  for (int32_t** list : {&taken.at, &taken.row, &taken.lane, &taken.leaves}) take(list, all_entering * frame);
  const Size moves = all_entering * TokenLog::most_moves(plan.listening.frame_tokens);
  take(&taken.moves, moves);
  take(&taken.followed, moves);
  take(&taken.stored, all_compared * pages);
  take(&taken.items, all_compared * frame);
  for (int32_t** list : {&taken.item_at, &taken.item_lane, &taken.settled}) take(list, all_compared * frame);
  for (float** list : {&taken.worth, &taken.like}) take(list, all_compared * frame);
  if (region.is_counting()) return;
  *t = taken;
  together_ = t;
}

// No kernel works for a part of the lanes alone: all that leaves goes in one launch, from the window's pages to the log's.
void Records::admit_together(const Window& window, TokenMeta* meta) {
  Together& t = *together_;
  const int f = frames_in_log(), tokens = window.frame(0).tokens, lanes = log_.shape().lanes;
  EnterArgs enter;
  window.leave(&enter, meta);
  if (archive_) {
    archive_together(enter, meta, tokens);  // waits
  } else if (t.compared > 0) {
    ops_.wait();
  }
  note_likeness();
  int items = 0, moves = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    Run run{nullptr, nullptr, meta, make_room(lane, tokens)};
    run.number = static_cast<uint32_t>(admitted_);
    account_.seen += tokens;
    account_.quantised += run.n;
    for (int i = run.n; i < tokens; ++i)
      account_given_up(archive_ && archive_->mark_given_up(lane, run.number + static_cast<uint32_t>(i)));
    TokenSlot* const slots = heard_.slots(lane, f);
    const int first_item = items, first_move = moves;
    moves += log_.place(lane, run, slots,
                        {t.moves + moves, static_cast<size_t>(TokenLog::most_moves(heard_.shape().frame_tokens))});
    for (int i = 0; i < run.n; ++i, ++items) {
      t.pages[items] = log_.data(lane, slots[i] / kPageTokens);
      t.at[items] = slots[i] % kPageTokens;
      t.row[items] = i;
      t.lane[items] = lane;
    }
    note_followed(first_item, items, first_move, moves);
  }
  enter.codec = log_.codec(), enter.shape = log_.shape().page, enter.items = items;
  enter.row = t.row, enter.lane = t.lane, enter.pages = t.pages, enter.at = t.at, enter.key_mean = log_.key_mean(0);
  enter.norm = t.norm, enter.norm_pitch = static_cast<size_t>(tokens);
  enter.moves = t.moves, enter.n_moves = moves, enter.leaves = t.leaves, enter.followed = t.followed;
  ops_.enter_lanes(enter);
  if (archive_) account_lost(archive_->end());
  t.norm_frame = f;
  t.norm_tokens = tokens;
  admitted_ += tokens;
  heard_.entered_log(f);
  --window_frames_;
}

// What leaves the window, a group of lanes at a time.
void Records::archive_together(const EnterArgs& leaving, const TokenMeta* meta, int tokens) {
  Together& t = *together_;
  const int all = log_.shape().lanes;
  const auto row = static_cast<size_t>(log_.shape().page.row());
  account_lost(archive_->begin(meta, tokens, log_.key_mean(0)));
  for (int first = 0; first < all; first += t.lanes) {
    const int lanes = std::min(t.lanes, all - first);
    for (int i = 0; i < lanes; ++i) {
      const size_t to = static_cast<size_t>(i * tokens) * row;
      ops_.decode_run(leaving.from_codec, log_.shape().page,
                      leaving.from + static_cast<size_t>(first + i) * leaving.lane_pitch, leaving.pitch, leaving.first,
                      tokens, t.k + to, t.v + to, row);
    }
    archive_->add_lanes(first, lanes, tokens, t.k, t.v, log_.key_mean(0));
  }
}

// Of a lane's moves, those that begin where one of its items comes to stand. Both go through emptied pages in one order.
void Records::note_followed(int first_item, int end_item, int first_move, int end_move) {
  Together& t = *together_;
  std::fill(t.leaves + first_item, t.leaves + end_item, kNone);
  std::fill(t.followed + first_move, t.followed + end_move, uint8_t{0});
  int item = first_item;
  for (int move = first_move; move < end_move; ++move) {
    const auto begins = [&](int i) { return t.pages[i] == t.moves[move].from && t.at[i] == t.moves[move].from_at; };
    for (int tried = first_item; tried < end_item; ++tried) {
      if (item == end_item) item = first_item;
      if (!begins(item++)) continue;
      t.leaves[item - 1] = move, t.followed[move] = 1;
      break;
    }
  }
}

// Of the tokens that came last, when what was queued then has run.
void Records::note_norms() {
  if (together_ == nullptr || together_->norm_frame == kNone) return;
  Together& t = *together_;
  const auto tokens = static_cast<size_t>(t.norm_tokens);
  for (int lane = 0; lane < log_.shape().lanes; ++lane) {
    const TokenSlot* const slots = heard_.slots(lane, t.norm_frame);
    for (size_t i = 0; i < tokens; ++i)
      if (slots[i] != kNone) log_.note_merit(lane, slots[i], t.norm[static_cast<size_t>(lane) * tokens + i]);
  }
  t.norm_frame = kNone;
}

// What settles is compared with what is kept. Nobody waits: the host reads it when the next frame leaves the window.
void Records::compare_together() {
  Together& t = *together_;
  note_likeness();
  const LogShape& shape = log_.shape();
  const auto row = static_cast<size_t>(shape.page.row()), pages = static_cast<size_t>(shape.pages);
  for (int first = 0; first < shape.lanes; first += t.lanes) {
    const int lanes = std::min(t.lanes, shape.lanes - first), first_item = t.compared;
    std::array<LikenessArgs, kCompared> asked;
    size_t n_asked = 0;
    const auto ask = [&] {
      ops_.likeness_lanes(std::span(asked).first(n_asked));
      n_asked = 0;
    };
    for (int lane = first; lane < first + lanes; ++lane) list_items(lane);
    ops_.gather_lanes(t.items + first_item, t.item_at + first_item, t.item_lane + first_item, t.compared - first_item,
                      shape.page, t.k, t.v, row, log_.key_mean(0));
    for (int begin = first_item, end = begin; begin < t.compared; begin = end) {  // a lane's
      const int lane = t.item_lane[begin];
      while (end < t.compared && t.item_lane[end] == lane) ++end;
      LikenessArgs& a = asked[n_asked++];
      a = {};
      const size_t at = static_cast<size_t>(begin - first_item) * row;
      a.k = t.k + at, a.v = t.v + at, a.items = end - begin, a.stride = row, a.shape = shape.page;
      a.item_score = t.worth + begin, a.item_like = t.like + begin;
      PageEntry* const stored = t.stored + static_cast<size_t>(lane) * pages;
      a.pages = stored, a.n_pages = list_settled(lane, stored);
      a.token_score = log_.scores(lane), a.token_like = log_.likeness(lane);
      a.key_mean = log_.key_mean(lane), a.value_mean = log_.value_mean(lane);
      if (n_asked == asked.size()) ask();
    }
    ask();
  }
}

// What settles in a lane, behind what is listed.
void Records::list_items(int lane) {
  Together& t = *together_;
  const int end = t.compared + settle(lane, t.worth + t.compared, t.settled + t.compared);
  for (int& i = t.compared; i < end; ++i) {
    t.items[i] = {log_.data(lane, t.settled[i] / kPageTokens), 0, 0xffff, log_.codec()};
    t.item_at[i] = t.settled[i] % kPageTokens;
    t.item_lane[i] = lane;
    t.worth[i] = half_to_float(log_.scores(lane)[t.settled[i]]);
    t.like[i] = 0;
  }
}

// What was compared last, when it has run and before anything goes by it.
void Records::note_likeness() {
  if (together_ == nullptr) return;
  Together& t = *together_;
  for (int i = 0; i < t.compared; ++i) keep_likeness(t.item_lane[i], t.settled + i, t.like + i, 1);
  t.compared = 0;
}

}  // namespace mosaic
