// Every kernel, declared once. A backend (cpu, cuda) implements Ops; the store and the policies see nothing else of it.
// All pointers lie in memory of the backend's device. Nothing here allocates: scratch is planned by scratch_bytes() and
// handed over once. Calls are ordered; on an asynchronous backend they are queued on the stream the object was made with.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/record_args.h"
#include "codec/codec.h"
#include "core/dtype.h"
#include "core/ids.h"
#include "core/rope.h"

namespace mosaic {

// One page as attention reads it: a row of the table of pages. Tokens that are not attended may lie between those that are;
// they have entries in positions too, which nobody reads.
struct PageEntry {
  const std::byte* data;  // the page's data, laid out as codec.h says
  int32_t first;          // positions[first + i - begin()] is the position of token i
  uint16_t rows;          // bit i: token i of the page is attended
  CodecId codec;

  MOSAIC_HD bool has(int i) const { return (rows >> i & 1) != 0; }
  // The first token that is attended, and one past the last; the same where none is.
  MOSAIC_HD int begin() const { return rows == 0 ? 0 : lowest_bit(rows); }
  MOSAIC_HD int end() const { return rows == 0 ? 0 : highest_bit(rows) + 1; }
  // Slots of positions that it takes.
  MOSAIC_HD int span() const { return end() - begin(); }
};
static_assert(sizeof(PageEntry) == 16);

// The mask of tokens [begin, end).
inline constexpr uint16_t rows_of(int begin, int end) { return static_cast<uint16_t>((1u << end) - (1u << begin)); }

struct AttendArgs {
  // Queries, before rotation. Row strides are in elements, so a lane may be some of a layer's heads.
  const float* q = nullptr;              // [T, Hq, D]
  int tokens = 0;                        // T
  int q_heads = 0;                       // Hq, a multiple of kv_heads
  size_t q_stride = 0;                   // elements between tokens of q and of out
  const int32_t* q_positions = nullptr;  // [T, 3] (t, h, w); 1-D RoPE reads t only
  PageShape shape;                       // kv heads and D
  const RopeTable* rope = nullptr;
  float scale = 0;  // on the logit, usually 1/sqrt(D)
  // Part 1, pages: all of them are seen by every query.
  const PageEntry* pages = nullptr;  // [n_pages]
  int n_pages = 0;
  const float* key_mean = nullptr;     // [Hkv, D] what record codecs took off the keys; null: nothing
  const int32_t* positions = nullptr;  // temporal position of every page token
  const uint16_t* places =
      nullptr;  // (h, w) of every page token, as RopeSpec::place_at takes them; null where RoPE has one axis
  // Part 2, summaries: rows of the cluster index standing in for tokens that are not read. Seen by every query.
  const half_t* mean_k = nullptr;          // [C, Hkv, D], before rotation
  const half_t* mean_v = nullptr;          // [C, Hkv, D]
  const int32_t* rows = nullptr;           // [n_rows] which rows of mean_k, mean_v
  const int32_t* row_positions = nullptr;  // [n_rows, 3]
  const float* row_bias = nullptr;         // [n_rows] + log(count) on the logit
  int n_rows = 0;
  // Part 3, the block itself: query i sees block tokens 0..i.
  const float* block_k = nullptr;  // [T, Hkv, D], before rotation, at q_positions
  const float* block_v = nullptr;  // [T, Hkv, D]
  size_t kv_stride = 0;            // elements between tokens of block_k and block_v
  // Results.
  float* out = nullptr;  // [T, Hq, D]; zeros where nothing is attended
  float* lse = nullptr;  // [T, Hq] log of the sum of exp(logit); -inf where nothing is attended
};

struct AssignArgs {
  // similarity(x, c) = (cos(xk, ck) + value_weight * cos(xv, cv)) / (1 + value_weight)
  const float* k = nullptr;        // [N, d]
  const float* v = nullptr;        // [N, d] or null when value_weight is 0
  int items = 0;                   // N
  int dim = 0;                     // d = kv heads x head size
  size_t stride = 0;               // elements between items
  const half_t* mean_k = nullptr;  // [C, d]
  const half_t* mean_v = nullptr;  // [C, d]
  const int32_t* rows = nullptr;   // [n_rows] candidate rows (the clusters of the item's scene); null: rows 0..n_rows-1
  int n_rows = 0;
  float value_weight = 0;
  // Results; an item with no candidate gets kNone and -inf. Ties go to the lowest row.
  int32_t* best = nullptr;      // [N] row of the centroid tables
  float* similarity = nullptr;  // [N]
};

// Running mean and variance by Mosaic's rule (arXiv 2604.10060), items in order:
//   mean' = (n mean + x)/(n + 1),  s2' = (n s2 + |x - mean'|^2)/(n + 1),  |.|^2 between unit vectors = 2 - 2 similarity.
// A row's mean stays in fp32 for all its items of one call and is rounded to half once, at the end.
struct UpdateArgs {
  const float* k = nullptr;  // [N, d]
  const float* v = nullptr;  // [N, d]
  int items = 0;
  int dim = 0;
  size_t stride = 0;
  const int32_t* labels = nullptr;  // [N] row of each item; kNone skips it
  half_t* mean_k = nullptr;         // [C, d] in and out
  half_t* mean_v = nullptr;         // [C, d]
  int32_t* count = nullptr;         // [C] in and out
  float* variance = nullptr;        // [C] in and out
  float value_weight = 0;           // as in AssignArgs
};

enum class ScoreMode : uint8_t {
  kDot,   // dot product of the mean query over tokens and the GQA group with the mean key, summed over kv heads, no
          // scale and no bias (ReKV, Mosaic)
  kMass,  // attention mass: softmax over the rows per query token and head of q.k*scale + bias, summed
};
struct ScoreArgs {
  const float* q = nullptr;  // [T, Hq, D], before rotation
  int tokens = 0;
  int q_heads = 0;
  size_t q_stride = 0;
  PageShape shape;
  float scale = 0;
  ScoreMode mode = ScoreMode::kMass;
  const half_t* mean_k = nullptr;   // [C, Hkv, D]
  const int32_t* rows = nullptr;    // [n_rows] or null for 0..n_rows-1
  const float* row_bias = nullptr;  // [n_rows] added to the logit (kMass), usually log(count); may be null
  int n_rows = 0;
  float* score = nullptr;  // [n_rows]
};

// Attention that the queries [first_query, T) of `attend` paid to each page token, summary row and token of the block,
// summed over those queries and, but for by_head, over heads: column sums, never a T x T matrix. A result that is null is
// not wanted; pages that are not wanted cost nothing. Values are not read: a page of one head may end behind its keys.
struct MassArgs {
  const AttendArgs* attend = nullptr;  // with lse filled, over everything attended
  float* page_mass =
      nullptr;  // written at [first + i - begin()] for tokens of [begin(), end()); 0 between attended ones
  float* row_mass = nullptr;    // [n_rows]
  int first_query = -1;         // -1: the last query alone
  float* block_mass = nullptr;  // [T]
  int first_page = 0;           // pages [first_page, first_page + n_pages) alone; -1: all from first_page on
  int n_pages = -1;
  // Each result is a row a query head: page_mass [Hq][mass_stride], row_mass [Hq][n_rows], block_mass [Hq][T].
  bool by_head = false;
  size_t mass_stride = 0;

  MOSAIC_HD int end_page() const {
    if (page_mass == nullptr) return first_page;
    return n_pages < 0 ? attend->n_pages : first_page + n_pages;
  }
};

// Two partial attentions of the same queries become one: (out, lse) <- (out, lse) + (other_out, other_lse).
struct MergeArgs {
  float* out = nullptr;  // [T, Hq, D], q_stride elements between tokens
  float* lse = nullptr;  // [T, Hq]
  int tokens = 0;        // T
  int q_heads = 0;       // Hq
  int head_dim = 0;      // D
  size_t q_stride = 0;
  // Laid out like out and lse; or, where `group` query heads share a row, [Hq / group, D] and [Hq], the same for all tokens.
  const float* other_out = nullptr;
  const float* other_lse = nullptr;
  int group = 0;

  MOSAIC_HD const float* other_row(int token, int head) const {
    if (group > 0) return other_out + static_cast<size_t>(head / group) * head_dim;
    return other_out + token * q_stride + static_cast<size_t>(head) * head_dim;
  }
  MOSAIC_HD float other_lse_of(int token, int head) const {
    return other_lse[(group > 0 ? 0 : token * q_heads) + head];
  }
};

// Likeness as it is kept.
MOSAIC_HD inline uint8_t like_code(float like) {
  const float within = like < 0 ? 0.0f : like > 1 ? 1.0f : like;
  return static_cast<uint8_t>(within * 255.0f + 0.5f);
}

// How nearly the same new tokens are to stored ones and to each other:
//   likeness(i, j) = max(0, min(cos(k_i - key_mean, k_j - key_mean), cos(v_i - value_mean, v_j - value_mean)))
// over whole rows of a lane; stored tokens as they are decoded, a zero vector is like nothing.
struct LikenessArgs {
  const float* k = nullptr;  // [N, Hkv, D], before rotation
  const float* v = nullptr;  // [N, Hkv, D]
  int items = 0;             // N
  size_t stride = 0;         // elements between items
  PageShape shape;
  const float* key_mean = nullptr;    // [Hkv, D]; null: zero. Also what record codecs took off the keys
  const float* value_mean = nullptr;  // [Hkv, D]; null: zero
  const PageEntry* pages = nullptr;   // [n_pages]
  int n_pages = 0;
  const float* item_score = nullptr;    // [N]
  const half_t* token_score = nullptr;  // at [first + i - begin()], as positions of AttendArgs
  // Both are raised: to the likeness with the most alike stored token or other item of a strictly higher score, and with
  // items of a strictly higher score.
  float* item_like = nullptr;     // [N]
  uint8_t* token_like = nullptr;  // at [first + i - begin()], in 255ths
};

// Temporal redundancy (TaR of InfiniPot-V): how alike a key is to the recent keys of the same place of the grid.
//   recent_sum[place] = sum of unit keys,  score[i] = -mean cosine = -(unit(k_i) . recent_sum[place_i]) / count
// An item whose place has no recent key scores 0, and so does one without a place (kNone), which is added nowhere.
struct RecentKeysArgs {
  const float* k = nullptr;        // [N, d] keys of recent frames
  const int32_t* place = nullptr;  // [N] 0..places-1
  int items = 0;
  int dim = 0;
  size_t stride = 0;         // elements between items
  float* sum = nullptr;      // [places, d] added to
  int32_t* count = nullptr;  // [places] added to
};
struct RedundancyArgs {
  const float* k = nullptr;        // [N, d]
  const int32_t* place = nullptr;  // [N]
  int items = 0;
  int dim = 0;
  size_t stride = 0;
  const float* sum = nullptr;      // [places, d] as RecentKeysArgs made it
  const int32_t* count = nullptr;  // [places]
  float* score = nullptr;          // [N] -1 (repeats) .. 1
};

// Euclidean norm of each row (VaN of InfiniPot-V, over values).
struct NormArgs {
  const float* x = nullptr;  // [N, d]
  int items = 0;
  int dim = 0;
  size_t stride = 0;
  float* norm = nullptr;  // [N]
};

// The same of tokens where they stand, in pages: a token of a page is item first + i - begin(), and all between begin()
// and end() are meant. Keys and values are what decoding gives.
struct PotArgs {
  PageShape shape;
  const PageEntry* pages = nullptr;  // [n_pages], their items one behind the other
  int n_pages = 0;
  const int32_t* place = nullptr;  // [N]
  int places = 0;
  int recent = 0;            // add_recent_pages: items from here on
  bool fresh = true;         // add_recent_pages: sum and count begin as zeros, whatever they hold
  float* sum = nullptr;      // [places, row]
  int32_t* count = nullptr;  // [places]
  float* score = nullptr;    // [N] redundancy; null: not wanted
  float* norm = nullptr;     // [N] of values
  float* room_k = nullptr;   // [16, row] for a backend that has none of its own
  float* room_v = nullptr;
};

// High-frequency energy along the token axis (MuKV): per channel the DFT over the N tokens, the lower half of the
// frequencies removed (|f| < N/4, f = 0 among them), transformed back; energy[i] = mean over channels of |x'_i|.
struct SpectralArgs {
  const float* x = nullptr;  // [N, d]
  int items = 0;
  int dim = 0;
  size_t stride = 0;
  float* energy = nullptr;  // [N]
};

// Numbers that must not become part of a memory.
struct NumberFaults {
  int32_t not_finite = 0;  // 1: some are NaN or infinite
  int32_t beyond = 0;      // how many finite ones are beyond +-kMostHalf
};

// What a layer of a block needs before it is attended. Its pieces do not depend on each other, so that a backend may do
// all of it at once.
struct StageArgs {
  // As check_numbers takes them; x null: none.
  struct Numbers {
    const float* x = nullptr;
    size_t n = 0;
    float* cut = nullptr;
  };
  std::array<Numbers, 3> numbers{};
  NumberFaults* faults = nullptr;
  // Tokens [first, first + count) of a run of pages in each lane, as encode_run takes them without a mean: those of lane i
  // begin i * lane_pitch bytes behind, its numbers i * shape.row() behind in k and v.
  CodecId codec{};
  PageShape shape;
  const float* k = nullptr;
  const float* v = nullptr;
  size_t stride = 0;
  int first = 0;
  int count = 0;
  std::byte* pages = nullptr;
  size_t pitch = 0;
  int lanes = 1;
  size_t lane_pitch = 0;
  // Bytes to be copied, by words of 4.
  struct Piece {
    void* to = nullptr;
    const void* from = nullptr;
    size_t bytes = 0;
  };
  std::span<const Piece> pieces;
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual const char* name() const = 0;

  // Scratch the object may use in any call below, for these largest sizes. Handed over before the first call.
  struct Limits {
    int tokens = 0;  // T of attend and score, N of assign
    int q_heads = 0;
    PageShape shape;  // the widest lane
    int rows = 0;     // candidate rows of assign and score
    int dim = 0;      // d of assign and update_centroids; 0 means shape.row()
  };
  virtual size_t scratch_bytes(const Limits& limits) const = 0;
  virtual void set_scratch(void* memory, const Limits& limits) = 0;

  // Kernels for a row or two that the host holds: where a launch costs more than the work, the CPU's, with scratch of their
  // own. What they read and write must be the host's.
  virtual Ops& for_host() { return *this; }

  // Blocks until every call so far has run, so that the host may read what it wrote and reuse what it was given. What
  // fills memory for later kernels - attend*, merge, mass_lanes, likeness_lanes, assign_lanes, add_recent*,
  // temporal_redundancy, row_norm, page_signals, score, encode*, enter_lanes, grow_page, pack_pages, move_row, decode*,
  // gather*, copy, stage, check_numbers - may be queued; every other op has run when it returns.
  virtual void wait() {}

  // Bytes from anywhere to anywhere the kernels reach, in the order of the calls.
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  // Adds to *faults what x [n] holds that half precision does not. cut: null, or where x goes with those numbers brought
  // to the nearest that it does (NaN as it is).
  virtual void check_numbers(const float* x, size_t n, NumberFaults* faults, float* cut) = 0;

  virtual void stage(const StageArgs& args);

  virtual void attend(const AttendArgs& args) = 0;
  // Several lanes of a layer: alike but for pointers and for how many pages and summaries there are.
  virtual void attend_lanes(std::span<const AttendArgs> lanes) {
    for (const AttendArgs& lane : lanes) attend(lane);
  }
  virtual void attention_mass(const MassArgs& args) = 0;
  virtual void mass_lanes(std::span<const MassArgs> lanes) {
    for (const MassArgs& lane : lanes) attention_mass(lane);
  }
  // Both of them: mass[i] is measured of lanes[i], of all heads together.
  virtual void attend_and_measure(std::span<const AttendArgs> lanes, std::span<const MassArgs> mass) {
    attend_lanes(lanes);
    mass_lanes(mass);
  }
  virtual void likeness(const LikenessArgs& args) = 0;
  virtual void likeness_lanes(std::span<const LikenessArgs> lanes) {
    for (const LikenessArgs& lane : lanes) likeness(lane);
  }
  virtual void add_recent_keys(const RecentKeysArgs& args) = 0;
  virtual void temporal_redundancy(const RedundancyArgs& args) = 0;
  virtual void row_norm(const NormArgs& args) = 0;
  // Several lanes each, in pages: add_recent_keys, then temporal_redundancy and row_norm.
  virtual void add_recent_pages(std::span<const PotArgs> lanes);
  virtual void page_signals(std::span<const PotArgs> lanes);
  virtual void spectral_energy(const SpectralArgs& args) = 0;
  virtual void assign(const AssignArgs& args) = 0;
  // Several lanes, each against means of its own.
  virtual void assign_lanes(std::span<const AssignArgs> lanes) {
    for (const AssignArgs& lane : lanes) assign(lane);
  }
  virtual void update_centroids(const UpdateArgs& args) = 0;
  virtual void score(const ScoreArgs& args) = 0;
  // The k highest of score [n], as indices in falling order; ties go to the lowest index. Returns how many (min(k, n)).
  virtual int top_k(const float* score, int n, int k, int32_t* index) = 0;

  virtual void merge(const MergeArgs& args) = 0;

  // Pages and rows. key_mean [heads, head_dim] is what record codecs take off the keys and decoding adds again; null: zero.
  // Numbers that are not finite, or beyond 65504, are coded as the nearest that is (NaN as 0).

  // Write tokens [0, count) of k, v ([count, heads, head_dim], `stride` elements between tokens) as the data of one page.
  // Unused rows of the page are zeroed, so equal input gives equal bytes.
  virtual void encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count,
                      std::byte* data, const float* key_mean = nullptr) = 0;
  virtual void grow_page(const GrowArgs& args);
  // Set token `at` of a page whose codec has records, without touching the others.
  virtual void encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* data,
                          const float* key_mean = nullptr) = 0;
  // The same for rows of several pages: item i of k, v becomes token at[i] of pages[i]. v null: of pages of one head the
  // keys alone, which may be all there is of them.
  virtual void encode_rows(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int items,
                           std::byte* const* pages, const int32_t* at, const float* key_mean = nullptr) = 0;
  // Token from_at of a page to token to_at of another (or the same) of one codec that has records, bit for bit.
  virtual void move_row(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to,
                        int to_at) = 0;
  // Tokens [begin, end) of a page into k, v ([end - begin, heads, head_dim] with `stride` elements between tokens). v null:
  // as in encode_rows.
  virtual void decode(CodecId codec, PageShape shape, const std::byte* data, int begin, int end, float* k, float* v,
                      size_t stride, const float* key_mean = nullptr) = 0;
  // Tokens [first, first + count) of a run of pages `pitch` bytes apart, 16 tokens a page, of a codec that has records;
  // the others of the first and the last page are not touched. A backend that pays for every call does it in one.
  virtual void encode_run(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int first,
                          int count, std::byte* pages, size_t pitch, const float* key_mean = nullptr);
  virtual void decode_run(CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int first, int count,
                          float* k, float* v, size_t stride, const float* key_mean = nullptr);
  virtual void enter_lanes(const EnterArgs& args);
  virtual void encode_lane_rows(const LaneRowsArgs& args);
  // Several runs, each in its own pages. room: [32, row], for a backend that has none of its own.
  virtual void pack_pages(PageShape shape, std::span<const PackArgs> runs, float* room_k, float* room_v);
  // Chosen tokens of several pages into dense rows: item i is token at[i] of pages[i].
  virtual void gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v,
                      size_t stride, const float* key_mean = nullptr) = 0;
  // The same where item i is of lane `lane[i]`, whose mean is that row of key_means.
  virtual void gather_lanes(const PageEntry* pages, const int32_t* at, const int32_t* lane, int items, PageShape shape,
                            float* k, float* v, size_t stride, const float* key_means) {
    for (int i = 0; i < items; ++i) {
      const size_t to = static_cast<size_t>(i) * stride;
      gather(pages + i, at + i, 1, shape, k + to, v + to, stride,
             key_means + static_cast<size_t>(lane[i]) * static_cast<size_t>(shape.row()));
    }
  }
};

// Calls piece(page, begin, end, tokens before) for every page that tokens [first, first + count) of a run touch.
template <class Piece>
MOSAIC_HD void for_pages_of_run(int first, int count, const Piece& piece) {
  for (int at = first; at < first + count;) {
    const int page = at / kPageTokens, begin = at % kPageTokens;
    const int left = first + count - page * kPageTokens, end = left < kPageTokens ? left : kPageTokens;
    piece(page, begin, end, at - first);
    at += end - begin;
  }
}

}  // namespace mosaic

#include "backend/ops_by_one.h"
