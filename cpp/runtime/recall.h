// Recall: what a question or a frame reads of the archive. The pages of a lane that may hold what its queries would attend
// most are listed - all there are, or where those are too many the best by coarse keys - and looked through: of their
// tokens that are not kept in DRAM those of largest attention mass are chosen, measured against what the lane has just
// attended (its log-sum-exp). The block then attends once more over both. Chosen once a question, or a frame, and lane.
// Lanes of a layer are chosen for together: what is fetched for all of them is asked for at once, what is weighed is one
// launch and one wait. What is looked through and not read (the rest) may count too: its keys say how much attention each
// query head would have paid it, and the mean value of what the lane gave up answers for it, merged with that weight into
// every output.
// Where the archive has clusters, those are weighed by their keys alone and the best are read whole (recall_clusters.cc).
// What it brings on trained decoders, and what it costs there, stands in docs/results/decoders.md. Not thread-safe.
#pragma once

#include <array>
#include <cmath>
#include <span>

#include "runtime/block_selection.h"
#include "store/archive.h"

namespace mosaic {

// Items by weight, the heaviest first, among equals by index, so that two runs stay the same. What is no number weighs less
// than nothing: queries on a device may be NaN until their block is committed, and a sort needs an order all the same.
struct Heaviest {
  const float* weight;

  float of(int i) const { return std::isnan(weight[i]) ? -1.0f : weight[i]; }
  bool operator()(int a, int b) const { return of(a) != of(b) ? of(a) > of(b) : a < b; }
};

class Recall {
 public:
  enum class Reader : uint8_t { kQuestion, kFrame };
  struct Wishes {
    double question = 0;  // of a lane's tokens on disk, the share that a question reads at most
    double frame = 0;     // and a frame
    bool rest = false;    // whether what is not read counts
    int most_tokens = 0;  // that either reads, whatever its share
  };
  // A lane that is chosen for.
  struct Asking {
    int lane = kNone;
    const AttendArgs* args = nullptr;  // the block's attention over what is kept, its lse filled
    const BlockSelection* selection = nullptr;
    int next = kNone;    // lane of the next layer, whose pages are asked for ahead
    bool reads = false;  // what comes of it: whether there is something to read
  };
  // q_heads: of a lane.
  Recall(Region& region, const ArchiveShape& shape, Ops& ops, const Wishes& wishes, int q_heads);

  double share(Reader reader) const { return reader == Reader::kQuestion ? wishes_.question : wishes_.frame; }
  bool has_chosen(int lane) const { return chosen_[lane] != 0; }
  void forget(Archive* archive);
  // For lanes of one layer, ArchiveShape::together at most, in their order. Returns tokens whose page could not be read.
  int64_t choose_pages(Reader reader, Archive* archive, std::span<Asking> lanes, Since since);
  // The lane's pieces into what it reads. Returns tokens that were lost.
  int64_t read(Archive* archive, int lane, BlockSelection* selection);
  // The rest into what a block of this reader has attended to in the lane. value: the mean of what was given up, [Hkv, D].
  void add_rest(int lane, const AttendArgs& args, const float* value);
  // Attention mass that the rest has of a query of that block, all heads; lse: the query's [Hq], with it.
  double rest_mass(int lane, const float* lse) const;

 private:
  // What a lane is chosen in.
  struct Room {
    Asking asking;
    int64_t tokens = 0;       // that it may read
    int pages = 0;            // that are looked through; of clusters, how many there are
    int n_entries = 0;        // of what is weighed now
    float* to = nullptr;      // its mass, and
    double* heads = nullptr;  // what each head pays it, where the rest counts
    PageEntry* entries;       // [weighed_, or pages of keys] of coarse keys, or of the pages that are weighed
    int32_t* positions;       // of groups, or of the tokens of those pages
    uint16_t* places;         // as many pairs, or null
    float* mass;              // of groups or clusters, or of the tokens of all pages that are looked through
    int32_t* order;           // the same
    float* worth;             // [pages]
    int32_t* scanned;         // [most_scanned()] pages
    uint16_t* rows;           // of them, that can be read; then those that are chosen. Of clusters, by page
    float* head_mass;         // [Hq, tokens that are weighed at a time] where the rest counts; so
    double *looked, *read;    // [Hq] mass of all tokens that were looked through, and of those that are read
  };
  std::span<Room> rooms() { return {rooms_.data(), static_cast<size_t>(n_rooms_)}; }

  uint16_t readable(const Archive& archive, int lane, int page, Since since) const;
  void choose_clusters(Reader reader, Archive* archive, Since since);
  void list_clusters(const Archive& archive, Room* r, Since since);
  void take_clusters(Archive* archive, Room* r, Since since);
  int64_t choose_tokens(Reader reader, Archive* archive, Since since);
  void list_pages(const Archive& archive, Room* r, Since since);
  void list_groups(const Archive& archive, Room* r);
  void take_groups(const Archive& archive, Room* r, Since since);
  void take_pages(const Archive& archive, Room* r, Since since);
  void mark_newest(const Archive& archive, Room* r, Since since, float mark);
  void put_place(const Archive& archive, Room* r, int to, int page, int token);
  void weigh();
  void weigh_pieces(Archive* archive);
  void list_pieces(Archive* archive, Room* r, int first);
  void sum_heads(const Archive& archive, const Room& r, int first) const;
  int64_t fetch(Archive* archive);
  void expect_next(Archive* archive, const Room& r) const;
  int64_t weigh_tokens(Archive* archive);
  int64_t weigh_rest(Archive* archive);
  float* rest_of(int lane) const { return rest_ + static_cast<size_t>(lane) * static_cast<size_t>(q_heads_); }
  int64_t tokens_for(Reader reader, const Archive& archive, int lane) const;
  void take_tokens(Archive* archive, Room* r, Since since);
  int pick(Room* r);
  void keep_best(Room* r);

  Ops& ops_;
  Wishes wishes_;
  int most_read_, most_scanned_, most_rooms_, lanes_, q_heads_;
  bool places_;
  int weighed_;      // pages at a time
  uint8_t* chosen_;  // [lanes]
  std::array<Room, kLanesTogether> rooms_{};
  int n_rooms_ = 0;        // of the lanes that are chosen for
  float* rest_ = nullptr;  // [lanes, Hq] log mass of the rest; -inf: none
};

}  // namespace mosaic
