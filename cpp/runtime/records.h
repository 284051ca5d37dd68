// Records: the memory of a policy by records - a TokenLog of what is kept, the attention that the newest frames receive,
// and the flow between them: a frame leaves the window into the log of every lane, where a lane is full the policy says what
// is given up, and a frame that was heard long enough is settled. Everything kept is read, by frames and questions alike;
// with a disk all that ever came is in an Archive too, and a question reads the best of what was given up (Recall).
// KvMemory calls; nothing here allocates after it is built. Not thread-safe.
#pragma once

#include <optional>

#include "policy/retention.h"
#include "runtime/block_selection.h"
#include "runtime/frame_change.h"
#include "runtime/recall.h"
#include "store/account.h"
#include "store/window.h"

namespace mosaic {

class Records {
 public:
  // Room for the tokens of a frame, one behind the other.
  struct Rows {
    float* k;  // [frame_tokens, row]
    float* v;
    TokenMeta* meta;  // [frame_tokens]
  };
  Records(Region& region, const Plan& plan, Ops& ops, Retention& retention, SpillIo* io);

  const TokenLog& log() const { return log_; }
  const TokenAccount& account() const { return account_; }
  const Archive* archive() const { return archive_ ? &*archive_ : nullptr; }
  uint64_t used_bytes() const;  // of the log's pages, by the tokens that are kept
  uint64_t capacity_bytes() const;

  // Pages of the log into what the lane reads, those with tokens that are still heard last. since: older ones are not.
  void read(int lane, Since since, BlockSelection* selection);
  // Of a question or a frame: whether the lane's pages of the archive are still to be chosen; choosing for many lanes, from
  // what the block has just attended; and those pages into what a lane reads.
  bool recalls(Recall::Reader reader, int lane) const {
    return archive_ && recall_->share(reader) > 0 && !recall_->has_chosen(lane) && archive_->spilled(lane) > 0;
  }
  void recall(Recall::Reader reader, std::span<Recall::Asking> lanes, Since since) {
    account_lost(recall_->choose_pages(reader, &*archive_, lanes, since));
  }
  // Of lanes side by side, whether copies of what they read are still to be made; and making them.
  bool must_fetch(int first, int lanes) const {
    for (int lane = first; archive_ && lane < first + lanes; ++lane)
      if (archive_->must_fetch(lane)) return true;
    return false;
  }
  void fetch(int first, int lanes) { account_lost(archive_->fetch(first, lanes)); }
  int recalled_tokens(int lane) const { return archive_->chosen_tokens(lane); }
  void read_recalled(int lane, BlockSelection* selection);
  bool counts_rest() const { return counts_rest_; }
  // What the archive has besides into what the lane attended to; and its mass of a query.
  void add_rest(int lane, const AttendArgs& args) {
    if (counts_rest_) recall_->add_rest(lane, args, rest_value_ + lane * log_.shape().page.row());
  }
  double rest_mass(int lane, const float* lse) const { return counts_rest_ ? recall_->rest_mass(lane, lse) : 0; }
  void drain() {
    if (archive_) archive_->drain();
  }
  void forget_recalled() {
    if (archive_) recall_->forget(&*archive_);
  }
  // When a token of a page came, the page by its id in a selection.
  int64_t time(const Clock& clock, int lane, int32_t id, int i) const {
    if (is_archived(id)) {
      const int page = archived_page(id);
      return clock.time(archive_->position(lane, page, i), archive_->time_low(lane, page, i));
    }
    const int slot = id * kPageTokens + i;
    return clock.time(log_.positions(lane)[slot], log_.time_lows(lane)[slot]);
  }
  // Whether what tokens of a frame receive counts; else the three below are not called.
  bool listens() const { return heard_.shape().attention; }
  // Listening: what is to be measured of the attention that this frame's queries pay, mass: [tokens of the selection + of
  // the block]; and, when it is there, to the frames that are heard, as far as they are read, and to the frame itself.
  // The newest `frames` of the window are the last entries of the selection; of the log there is what read() put there, or
  // nothing (models whose video tokens see the window alone).
  // A frame has `tokens`, of which the last `trail` are text.
  MassArgs wanted(const BlockSelection& selection, float* mass, int tokens, int trail) const;
  void listen(const BlockSelection& selection, int lane, int tokens, const Window& window, int frames,
              const float* mass);
  // The frame that was encoded is committed and in the window.
  void file(const WindowFrame& frame);
  // The oldest frame of the window goes into the log.
  void admit(const Window& window, const Rows& scratch);
  // The oldest frame of the window is kept for good elsewhere.
  void skip();

  // Between blocks; the window is read already.
  void serialize(Snapshot& s, const Window& window, RestoredPage* room);
  void check_invariants() const;

 private:
  void check_heard(const Snapshot& s, const Window& window) const;
  void learn_first(const Window& window, const Rows& scratch, int lane);
  void end_learning();
  int read_frame(const Window& window, Strip strip, int frame, int lane, const Rows& scratch);
  int make_room(int lane, int tokens);
  template <class Slot>
  void gather(int lane, int tokens, const Slot& slot);
  void learn_rest(int lane, int victims);
  void give_up(int lane, TokenSlot slot);
  void measure_merit(int lane, const Window& window, const Run& run, float* merit);
  void account_given_up(bool on_disk);
  void account_lost(int64_t tokens) {
    account_.spilled -= tokens;
    account_.dropped += tokens;
  }
  void settle_oldest();
  int settle(int lane, float* worth, TokenSlot* settled);
  void compare(int lane, int tokens);
  int list_settled(int lane, PageEntry* entries) const;
  void keep_likeness(int lane, const TokenSlot* settled, const float* like, int tokens);
  int32_t* page_first(int lane) {
    return page_first_ + (together_ ? static_cast<size_t>(lane) * static_cast<size_t>(log_.shape().pages) : 0);
  }
  // records_together.cc: many lanes in one launch of each kernel, where every launch and every wait has its price.
  struct Together;
  void take_together(Region& region, const Plan& plan);
  bool enters_together() const { return !frame_change_; }  // else frames of the window are compared, lane by lane
  void admit_together(const Window& window, TokenMeta* meta);
  void archive_together(const EnterArgs& leaving, const TokenMeta* meta, int tokens);
  void note_followed(int first_item, int end_item, int first_move, int end_move);
  void note_norms();
  void compare_together();
  void list_items(int lane);
  void note_likeness();
  int frames_in_log() const { return heard_.frames() - window_frames_; }

  Ops& ops_;
  Retention& retention_;
  TokenLog log_;
  Listening heard_;
  std::optional<Archive> archive_;
  std::optional<Recall> recall_;
  std::optional<FrameChange> frame_change_;  // where a score compares with what came after
  TokenAccount account_;
  float* unpacked_k_;  // [16, row] a page, when learning ends
  float* unpacked_v_;
  int learned_frames_ = 0;
  int64_t admitted_ = 0;                                      // tokens of a lane
  static constexpr int kLearnFrames = 8, kLearnTokens = 256;  // that the mean is of at least, where there is room
  int window_frames_ = 0;  // of the frames that are heard, how many are in the window
  int32_t*
      page_first_;      // [pages] where a page's tokens are in the selection that was read last; together: of each lane
  Victim* victims_;     // [capacity]
  PageEntry* entries_;  // [pages] of a comparison
  int32_t* at_;         // [frame_tokens] of it
  TokenSlot* settled_;  // [frame_tokens]
  float* worth_;        // [frame_tokens]
  float* like_;         // [frame_tokens]
  float* k_;            // [frame_tokens, row]
  float* v_;
  bool counts_rest_ = false;  // what is on disk and not read
  float* rest_value_;         // [lanes, row] its mean value
  int32_t* rest_tokens_;      // [lanes] of how many
  static constexpr int kRestTokens = 1 << 16;
  // What lanes that are taken together need besides; null where one is taken after the other.
  Together* together_ = nullptr;
};

struct Records::Together {
  int lanes = 0;                            // that are compared at a time
  float *k, *v;                             // [lanes, frame_tokens, row], of kernels alone
  float* norm;                              // [all lanes, frame_tokens] of values that came last
  int norm_frame = kNone, norm_tokens = 0;  // whose they are; kNone: they are noted
  std::byte** pages;                        // [all lanes, frame_tokens] where new tokens go
  int32_t *at, *row, *lane, *leaves;
  RowMove* moves;  // [all lanes, most_moves()]
  uint8_t* followed;
  PageEntry* stored;  // [all lanes, pages] of a comparison
  PageEntry* items;   // [all lanes, frame_tokens]
  int32_t *item_at, *item_lane;
  TokenSlot* settled;   // [all lanes, frame_tokens]
  float *worth, *like;  // [all lanes, frame_tokens]
  int compared = 0;     // of them, what is still to be noted
};

}  // namespace mosaic
