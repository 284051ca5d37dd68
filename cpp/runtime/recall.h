// Recall: what a question or a frame reads of the archive. The pages of a lane that may hold what its queries would attend most are
// listed - all there are, or where those are too many the best by coarse keys - and looked through: of their tokens that
// are not kept in DRAM those of largest attention mass are chosen, measured against what the lane has just attended (its
// log-sum-exp). The block then attends once more over both. Chosen once a question, or a frame, and lane. What it brings on trained
// decoders, and what it costs there, stands in docs/results/decoders.md. Not thread-safe.
#pragma once

#include "runtime/block_selection.h"
#include "store/archive.h"

namespace mosaic {

class Recall {
 public:
  enum class Reader : uint8_t { kQuestion, kFrame };
  // Of a lane's tokens on disk, what a reader reads at most.
  struct Shares {
    double question = 0;
    double frame = 0;
  };
  // most_tokens: that either reads, whatever its share.
  Recall(Region& region, const ArchiveShape& shape, Ops& ops, const Shares& shares, int most_tokens);

  double share(Reader reader) const { return reader == Reader::kQuestion ? shares_.question : shares_.frame; }
  bool has_chosen(int lane) const { return chosen_[lane] != 0; }
  void forget(Archive* archive);
  // args: the block's attention over what is kept, its lse filled. Positions are as `selection` has them. False: there
  // is nothing to read. lost: tokens whose page could not be read join it.
  bool choose_pages(Reader reader, Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                    const SelectionScratch& scratch, Since since, int64_t* lost);
  // The lane's pieces into what it reads. Returns tokens that were lost.
  int64_t read(Archive* archive, int lane, BlockSelection* selection);

 private:
  uint16_t readable(const Archive& archive, int lane, int page, Since since) const;
  int list_pages(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                 const SelectionScratch& scratch, Since since);
  void weigh_groups(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                    const SelectionScratch& scratch, Since since);
  AttendArgs load(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                  const SelectionScratch& scratch, int first, int pages, int64_t* lost);
  void weigh_tokens(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                    const SelectionScratch& scratch, int pages, int64_t* lost);
  int pick(int pages, int64_t tokens);
  void keep_best(int pages);

  Ops& ops_;
  Shares shares_;
  int most_tokens_, most_read_;
  uint8_t* chosen_;     // [lanes]
  PageEntry* entries_;  // of coarse keys, or of the pages that are read at once
  int32_t* positions_;  // of groups, or of the tokens of those pages
  uint16_t* places_;    // as many pairs, or null
  float* mass_;         // of groups, or of the tokens of all pages that are looked through
  int32_t* order_;      // the same
  float* worth_;        // [pages]
  int32_t* scanned_;    // [most_scanned()] pages
  uint16_t* rows_;      // of them, that can be read; then those that are chosen
};

}  // namespace mosaic
