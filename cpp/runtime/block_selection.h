// BlockSelection: what one layer attends to besides the block itself, as the kernels read it - a table of pages,
// the position of every token in it, and the summaries of what is not read. Built once per question and layer (and for
// every frame), reused for every token of the answer; of a policy by records for every block anew. Positions are
// contiguous in time order, or the original ones, gaps cut where those do not fit. It is built in host memory; where
// kernels have memory of their own, upload() sends what changed. Not thread-safe.
#pragma once

#include <algorithm>
#include <bit>

#include "runtime/plan.h"
#include "runtime/positions.h"

namespace mosaic {

// Scratch that the selections of all lanes share while one is built and attended.
struct SelectionScratch {
  uint64_t* order;  // [order_items] tokens + rows of the largest: sort keys. Of each lane that is attended at once
  size_t order_items;
  SelectScratch select;  // the policy's, while it chooses
  SelectResult result;   // room for one choice: the next one is written over it
  uint8_t* chosen;       // [clusters]
  float* page_mass;      // [mass_tokens] tokens of the largest + max_block
  float* row_mass;       // [mass_rows] rows of the largest
  // Where kernels have memory of their own, a piece of each for every lane: then they are read once a block.
  size_t mass_tokens, mass_rows;
  bool apart;
  int together;  // lanes whose sort keys stand beside each other
  uint64_t* order_of(int lane) const { return order + static_cast<size_t>(lane % together) * order_items; }
  float* page_mass_of(int lane) const { return page_mass + (apart ? static_cast<size_t>(lane) * mass_tokens : 0); }
  float* row_mass_of(int lane) const { return row_mass + (apart ? static_cast<size_t>(lane) * mass_rows : 0); }
  int32_t* q_positions;  // [max_block, 3]
  float* lse;            // [max_block, q_heads]
  SelectionScratch(Region& region, const Plan& plan);
};

// Ids of pages of an archive among those of a log, and back.
inline constexpr int32_t archived_page(int page) { return -2 - page; }
inline constexpr bool is_archived(int32_t id) { return id < kNone; }

class BlockSelection {
 public:
  // What kernels read of it.
  struct Table {
    PageEntry* pages;        // [select_entries]
    int32_t* positions;      // [select_tokens] of the pages' tokens
    uint16_t* places;        // [select_tokens, 2] their rows and columns; null where RoPE has one axis
    int32_t* rows;           // [select_rows] summaries
    int32_t* row_positions;  // [select_rows, 3]
    float* row_bias;         // [select_rows]
    int32_t* q_positions;    // [max_block, 3] of the block's own tokens
  };
  BlockSelection(Region& region, const Plan& plan, const SelectionScratch& scratch)
      : BlockSelection(region, plan, scratch, plan.select_entries, plan.select_tokens, plan.select_rows) {}
  // One of another size.
  BlockSelection(Region& region, const Plan& plan, const SelectionScratch& scratch, int entries, int tokens, int rows);

  void clear();
  // Tokens [begin, end) of a page. page: its id, or kNone for pages of the window. False: the table is full.
  bool add_page(PageId page, PageView view, CodecId codec, int begin, int end);
  // Tokens of a page of a log: those of `rows`, whose positions (and places, where there are any) are given for all 16.
  bool add_tokens(int page, const std::byte* data, CodecId codec, uint16_t rows, const int32_t* positions,
                  const uint16_t* places);
  bool add_summary(ClusterId c, const Cluster& cluster, int tokens);
  // Gives everything added its position: the original one where that is the rule and all stand below `room`, else closer.
  // order: room for its sort keys, which position_of() needs.
  void finish(bool original, int room, const RopeSpec& rope, uint64_t* order);
  // After finish(): where a token that came at a position would stand among what is attended.
  int32_t position_of(int32_t came_at) const;
  // What the positions are now; what follows stands behind them accordingly.
  Positions positions() const { return original_ ? Positions::kOriginal : Positions::kContiguous; }
  // After finish(): a page whose tokens stand behind everything else, at consecutive positions (dialogue, question).
  bool append_page(std::byte* data, CodecId codec, int begin, int end, int first_position);
  // The table where kernels reach it. What of it has changed since this was last called, and the positions of the block's
  // `tokens`, goes there by the copies that are written to `pieces` (kMostPieces at most; returns how many): until those have
  // run (Ops::wait) nothing here may change.
  static constexpr int kMostPieces = 7;
  const Table& there() const { return there_; }
  int changes(int tokens, StageArgs::Piece* pieces);

  int entries() const { return n_entries_; }
  int tokens() const { return n_tokens_; }  // that have a position, a few between those attended among them
  int attended() const { return n_attended_; }
  // Entries from this one on are of tokens that are still heard, or of the window; kNone: nothing of a log was added.
  int first_heard() const { return first_heard_; }
  void mark_heard() { first_heard_ = n_entries_; }
  int summaries() const { return n_summaries_; }
  const PageEntry& entry(int i) const { return table_.pages[i]; }
  // Of the tokens of a page of the store.
  const TokenMeta* meta(int entry) const {
    return metas_ != nullptr ? metas_[entry]
                             : reinterpret_cast<const TokenMeta*>(table_.pages[entry].data) - kPageTokens;
  }
  PageId page(int entry) const { return ids_[entry]; }
  ClusterId summary(int i) const { return table_.rows[i]; }
  int32_t* q_positions() { return table_.q_positions; }
  // After finish(): what follows stands behind this.
  Behind behind() const { return behind_; }
  int entries_left() const { return max_entries_ - n_entries_ - reserved_entries_; }
  int tokens_left() const { return max_tokens_ - n_tokens_ - reserved_tokens_; }
  // What is kept free for the question's own pages.
  void reserve(int entries, int tokens) {
    reserved_entries_ = entries;
    reserved_tokens_ = tokens;
  }
  // Forget what was appended after finish().
  void rewind() {
    n_attended_ -= n_tokens_ - finished_tokens_;  // what was appended is whole
    n_entries_ = finished_entries_;
    n_tokens_ = finished_tokens_;
    sent_entries_ = std::min(sent_entries_, n_entries_);
    sent_tokens_ = std::min(sent_tokens_, n_tokens_);
  }
  // A page that could not be read: its tokens are not attended.
  void forget(int entry) {
    n_attended_ -= std::popcount(table_.pages[entry].rows);
    table_.pages[entry].rows = 0;
    sent_entries_ = std::min(sent_entries_, entry);
  }
  // Where a page lies now.
  void move(int entry, PageView view, CodecId codec);

  bool ready = false;

 private:
  int32_t& position(int i) {  // temporal, of tokens and then summaries
    return i < n_tokens_ ? table_.positions[i] : table_.row_positions[3 * (i - n_tokens_)];
  }
  int32_t position(int i) const {
    return i < n_tokens_ ? table_.positions[i] : table_.row_positions[3 * (i - n_tokens_)];
  }
  // Sort keys of what is attended, position first; returns how many.
  int sort_by_position(uint64_t* order);
  // Positions without gaps, in time order; returns the highest.
  int32_t close_up(const RopeSpec& rope, const uint64_t* order, int n);
  int32_t shorten_gaps(const uint64_t* order, int n, int room);

  int max_entries_, max_tokens_, max_summaries_;
  Table table_;  // the host's
  Table there_;  // the kernels'; the same where they share memory
  PageId* ids_;
  const TokenMeta** metas_ = nullptr;  // of each page; null: it lies in front of the data
  int sent_entries_ = 0, sent_tokens_ = 0, sent_summaries_ = 0;
  int n_entries_ = 0, n_tokens_ = 0, n_summaries_ = 0, n_attended_ = 0;
  int finished_entries_ = 0, finished_tokens_ = 0;
  const uint64_t* order_ = nullptr;  // finish()'s,
  int ordered_ = 0;                  // and how many it left there
  int reserved_entries_ = 0, reserved_tokens_ = 0;
  bool original_ = false;
  int first_heard_ = kNone;
  Behind behind_;
};

}  // namespace mosaic
