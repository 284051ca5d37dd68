// Recall: what a question or a frame reads of the archive. The pages of a lane that may hold what its queries would attend most are
// listed - all there are, or where those are too many the best by coarse keys - and looked through: of their tokens that
// are not kept in DRAM those of largest attention mass are chosen, measured against what the lane has just attended (its
// log-sum-exp). The block then attends once more over both. Chosen once a question, or a frame, and lane.
// What is looked through and not read (the rest) may count too: its keys say how much attention each query head would have paid it,
// and the mean value of what the lane gave up answers for it, merged with that weight into every output.
// Where the archive has clusters, those are weighed by their keys alone and the best are read whole (recall_clusters.cc).
// What it brings on trained decoders, and what it costs there, stands in docs/results/decoders.md. Not thread-safe.
#pragma once

#include "runtime/block_selection.h"
#include "store/archive.h"

namespace mosaic {

class Recall {
 public:
  enum class Reader : uint8_t { kQuestion, kFrame };
  struct Wishes {
    double question = 0;  // of a lane's tokens on disk, the share that a question reads at most
    double frame = 0;     // and a frame
    bool rest = false;    // whether what is not read counts
    int most_tokens = 0;  // that either reads, whatever its share
  };
  // q_heads: of a lane.
  Recall(Region& region, const ArchiveShape& shape, Ops& ops, const Wishes& wishes, int q_heads);

  double share(Reader reader) const { return reader == Reader::kQuestion ? wishes_.question : wishes_.frame; }
  bool has_chosen(int lane) const { return chosen_[lane] != 0; }
  void forget(Archive* archive);
  // args: the block's attention over what is kept, its lse filled. Positions are as `selection` has them. False: there
  // is nothing to read. lost: tokens whose page could not be read join it.
  bool choose_pages(Reader reader, Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                    const SelectionScratch& scratch, Since since, int64_t* lost);
  // The lane's pieces into what it reads. Returns tokens that were lost.
  int64_t read(Archive* archive, int lane, BlockSelection* selection);
  // The rest into what a block of this reader has attended to in the lane. value: the mean of what was given up, [Hkv, D].
  void add_rest(int lane, const AttendArgs& args, const float* value);
  // Attention mass that the rest has of a query of that block, all heads; lse: the query's [Hq], with it.
  double rest_mass(int lane, const float* lse) const;

 private:
  uint16_t readable(const Archive& archive, int lane, int page, Since since) const;
  bool choose_clusters(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                       const SelectionScratch& scratch, Since since, int64_t tokens);
  int weigh_clusters(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                     const SelectionScratch& scratch, Since since);
  int list_pages(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                 const SelectionScratch& scratch, Since since);
  void weigh_keys(const AttendArgs& args, int n);
  void weigh_groups(const Archive& archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                    const SelectionScratch& scratch, Since since);
  void weigh(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
             const SelectionScratch& scratch, float* mass, double* heads);
  void sum_heads(const AttendArgs& weighed, size_t tokens, float* mass, double* heads) const;
  void weigh_tokens(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                    const SelectionScratch& scratch, int pages, int64_t* lost);
  void weigh_rest(Archive* archive, int lane, const AttendArgs& args, const BlockSelection& selection,
                  const SelectionScratch& scratch, int64_t* lost);
  float* rest_of(int lane) const { return rest_ + static_cast<size_t>(lane) * static_cast<size_t>(q_heads_); }
  int64_t tokens_for(Reader reader, const Archive& archive, int lane) const;
  int pick(int pages, int64_t tokens);
  void keep_best(int pages);

  Ops& ops_;
  Wishes wishes_;
  int most_read_, lanes_, q_heads_;
  uint8_t* chosen_;                    // [lanes]
  static constexpr int kWeighed = 32;  // pages at a time
  PageEntry* entries_;                 // of coarse keys, or of the pages that are weighed
  int32_t* positions_;                 // of groups, or of the tokens of those pages
  uint16_t* places_;                   // as many pairs, or null
  float* mass_;                        // of groups or clusters, or of the tokens of all pages that are looked through
  int32_t* order_;                     // the same
  float* worth_;                       // [pages]
  int32_t* scanned_;                   // [most_scanned()] pages
  uint16_t* rows_;                     // of them, that can be read; then those that are chosen. Of clusters, by page
  // Where the rest counts; else null.
  float* head_mass_ = nullptr;  // [Hq, tokens that are weighed at a time]
  double* looked_ = nullptr;    // [Hq] mass of all tokens that were looked through for the lane that is chosen for
  double* read_ = nullptr;      // [Hq] of those that are read
  float* rest_ = nullptr;       // [lanes, Hq] log mass of the rest; -inf: none
};

}  // namespace mosaic
