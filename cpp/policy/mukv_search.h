// Retrieval of mukv: units of three granularities over the clusters of a lane, their scores, and the choice among them.
//
// A segment's clusters - the tokens it owns, those of its frames and those of their patches - lie one behind the other
// when clusters are sorted by (segment, tag), patches of a frame before the frame's own, the segment's own last. So a
// unit of any granularity is a range of that order, reading a unit is reading its range, and its representative is the
// mean key over the range: over exactly what reading it reads, also after parts of it have yielded.
#pragma once

#include <array>

#include "policy/policy.h"

namespace mosaic::mukv {

enum Kind : uint8_t { kPatch, kFrame, kSegment };
inline constexpr int kKinds = 3;
inline constexpr int kMaxFrames = 63;  // of a segment

// Cluster::tag says the kind of a cluster and which frame of its segment (Cluster::born) it lies in.
inline uint8_t tag_of(Kind kind, int frame) {
  return static_cast<uint8_t>(4 * (kind == kSegment ? kMaxFrames : frame) + kind);
}
inline Kind kind_of(uint8_t tag) { return static_cast<Kind>(tag % 4); }

enum class Retrieval : int {
  kSemi,      // 2k candidates of each granularity, ranked again by how near they are to the best segments
  kParallel,  // k of each granularity by their own score
  kStrict,    // frames inside the chosen segments only, patches inside the chosen frames only
};

struct SearchSettings {
  std::array<int, kKinds> k{20, 32, 12};           // units read of each granularity
  std::array<double, kKinds> weight{0.3, 0.3, 0};  // of the likeness to the best segments, kSemi
  int context = 5;                                 // how many the best segments are
  Retrieval retrieval = Retrieval::kSemi;
  bool mass = false;  // score: attention mass, as a share of the granularity's best; false: cosine with the mean query
};

class Search {
 public:
  explicit Search(const SearchSettings& settings) : s_(settings) {}
  void bind(const StoreShape& shape, Region& region);
  void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch, SelectResult* result);

 private:
  struct Unit {
    int begin, end;  // of the order
    float score;
  };
  int wanted(Kind kind) const { return s_.k[static_cast<size_t>(kind)] * (s_.retrieval == Retrieval::kSemi ? 2 : 1); }
  void order_clusters(const ClusterIndex& index, const SelectQuery& query, const SelectScratch& scratch);
  void mean_query(const SelectQuery& query, size_t heads, size_t d);
  void scan(const ClusterIndex& index, const SelectScratch& scratch, bool patches, bool frames, bool segments);
  void consider(Kind kind, int begin, int end, float score);
  // Mean key of a range into out [row].
  void representative(const ClusterIndex& index, const int32_t* order, int begin, int end, float* out) const;
  void rank_by_context(const ClusterIndex& index, const int32_t* order);
  void take(const ClusterIndex& index, int max_tokens, const SelectScratch& scratch, SelectResult* result);

  SearchSettings s_;
  size_t row_ = 0;
  int n_ = 0;                         // clusters in the order, which lies in SelectScratch::rows
  std::array<Unit*, kKinds> best_{};  // candidates of each granularity, in falling order
  std::array<int, kKinds> count_{};
  uint8_t* taken_ = nullptr;          // [clusters] by number in the order
  float* query_ = nullptr;            // [row]
  std::array<float*, kKinds> sum_{};  // [row] of the patch, frame and segment in hand
  float* context_ = nullptr;          // [row]
};

}  // namespace mosaic::mukv
