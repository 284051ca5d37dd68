// Recall: what a question reads of the archive. In every lane the groups of tokens that its queries would attend most are
// chosen by coarse keys, among tokens that are not kept in DRAM, measured against what the lane has just attended (its
// log-sum-exp); their pages are fetched, and the block attends once more over both. Chosen once a question and lane.
// What it brings on trained decoders, and what it costs there, stands in docs/results/decoders.md. Not thread-safe.
#pragma once

#include "runtime/block_selection.h"
#include "store/archive.h"

namespace mosaic {

class Recall {
 public:
  // share: of a lane's tokens on disk, that a question reads at most; never more than `most_tokens`.
  Recall(Region& region, const ArchiveShape& shape, Ops& ops, double share, int most_tokens);

  double share() const { return share_; }
  bool has_chosen(int lane) const { return chosen_[lane] != 0; }
  void forget(Archive* archive);
  // args: the block's attention over what is kept, its lse filled. Positions are as `selection` has them.
  void choose(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
              const SelectionScratch& scratch, Since since);
  // The lane's pieces into what it reads. Returns tokens that were lost because their page could not be read.
  int64_t read(Archive* archive, int lane, BlockSelection* selection);

 private:
  int list_groups(const Archive& archive, int lane, const BlockSelection& selection, const SelectionScratch& scratch,
                  Since since);
  uint16_t rows_of_group(const Archive& archive, int lane, int at, Since since) const;

  Ops& ops_;
  double share_;
  int most_tokens_;
  uint8_t* chosen_;     // [lanes]
  PageEntry* entries_;  // [pages / 16] of coarse keys
  int32_t* positions_;  // [pages] of groups
  uint16_t* places_;    // [pages, 2], or null
  float* mass_;         // [pages]
  float* tokens_;       // [pages] of a group, that can be read
  int32_t* order_;      // [pages]
};

}  // namespace mosaic
