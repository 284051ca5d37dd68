// Archive: all that a policy by records ever admitted, on disk, in the order in which it came. A page of 16 tokens of one
// lane is a slot of the spill file, packed as in the log, so that a token is read there as it was kept; tokens are numbered
// from 0, the same in every lane. In DRAM there are a bit a token that was given up (what is in the log still is not read
// twice), when and where the tokens came, the copies of pages that are read, and where a question cannot look through all
// pages, a coarse key a group of tokens (CoarseKeys). Or tokens are written a stretch at a time, ordered by likeness
// (TokenClusters): then a cluster of them is what is found and read.
// A full file gives up its oldest page, in every lane. A page whose write failed, or that does not come back as it was
// written, is lost and counted. Mechanism, no choices. Not thread-safe; copies run on CopyEngine's thread.
#pragma once

#include <algorithm>
#include <bit>
#include <optional>
#include <span>
#include <string>

#include "memory/copy_engine.h"
#include "memory/region.h"
#include "store/coarse_keys.h"
#include "store/patience.h"
#include "store/restored_page.h"
#include "store/run.h"
#include "store/token_clusters.h"

namespace mosaic {

struct ArchiveShape {
  int lanes = 0;
  int pages = 0;  // of a lane, a multiple of 16, and of 64 where it has coarse keys; 0: there is no archive
  PageShape page;
  CodecId codec = CodecId::kFp16;
  bool places = false;       // tokens have rows and columns (M-RoPE)
  int most_read = 0;         // pages of a lane that are read at once
  int together = 1;          // lanes that are read at once, one beside the other
  bool copies_stay = false;  // room for the copies of all lanes, not of those alone
  std::string folder;
  int stretch = 0;      // tokens that are ordered together, whole pages of them; 0: they stay as they came
  float of_values = 1;  // weight of values beside keys, where clusters are cut

  int written_at_once() const { return stretch > 0 ? stretch : kPageTokens; }
  int pages_at_once() const { return written_at_once() / kPageTokens; }
  // Pages of a lane that a question looks through: a bound on its time, however long the stream was.
  static constexpr int kMostScanned = 256;
  int scanned = kMostScanned;
  int most_scanned() const { return std::min(pages, scanned); }
  // What tells which those are, where there are more and no clusters.
  int groups() const { return stretch == 0 && pages > most_scanned() ? pages / CoarseKeys::kMostPages : 0; }
  int stretches() const { return stretch > 0 ? pages / pages_at_once() : 0; }
};

class Archive {
 public:
  // Tokens of a page that are read: those of `rows`.
  struct Piece {
    int32_t page = kNone;  // its index, 0 .. pages - 1
    uint16_t rows = 0;
  };
  struct Counters {
    int64_t lost_pages = 0;     // came back wrong, or could not be read
    int64_t failed_spills = 0;  // or found no slot
    int64_t fetched_pages = 0;
    int64_t spill_pauses = 0;  // times the disk was left alone for a while because writes failed,
    int64_t read_pauses = 0;   // or reads
    int64_t paused_frames = 0;
  };

  Archive(Region& region, const ArchiveShape& shape, Ops& ops, SpillIo* io);

  const ArchiveShape& shape() const { return shape_; }
  const CoarseKeys& keys() const { return keys_; }
  const TokenClusters& clusters() const { return clusters_; }
  int64_t tokens() const { return tokens_; }                                        // that came so far
  int64_t written() const { return tokens_ - tokens_ % shape_.written_at_once(); }  // of them; the rest waits
  // Whether a page is of a stretch that is not whole yet: its tokens stand as they came, and can be read all the same.
  bool waits(int page) const {
    return shape_.stretch > 0 && tokens_ > written() &&
           page / shape_.pages_at_once() == ring_index(written()) / shape_.stretch;
  }
  int64_t first() const { return oldest_ * kPageTokens; }  // the oldest one that has a slot
  // Tokens of the lane that were given up and can be read, or, out of a page alone, will be when it is written.
  int64_t spilled(int lane) const { return spilled_[lane]; }
  int64_t spilled() const;

  // A frame comes: room is made, what was written before is seen to. Returns tokens that were lost over it: of the oldest
  // pages, and of those whose write failed. Then add() for every lane, then end().
  int64_t begin(const TokenMeta* meta, int n, const float* key_means);
  void add(int lane, const Run& run, const float* key_mean);
  // The same for lanes side by side, k, v [lanes, n, row], which may be memory that kernels alone reach: one launch, one
  // wait for all that was queued before, and a launch for the keys that are made of them. key_means: of all lanes.
  void add_lanes(int first, int lanes, int n, const float* k, const float* v, const float* key_means);
  // Room for that, for so many lanes and tokens; and what it takes for each lane.
  void take_together(Region& region, int lanes, int frame_tokens);
  Size together_bytes(int frame_tokens) const;
  int64_t end();  // returns tokens that were lost since begin()
  // A token of the lane, one that was added, is not kept in DRAM any more. False: it has no slot here either, or was
  // given up before. number: its low 32 bits are enough.
  bool mark_given_up(int lane, int64_t token);
  bool mark_given_up(int lane, uint32_t number);
  // Of the token that came at a position, where every token has its own; kNone: it has no slot.
  int64_t number_of(int32_t position) const;

  // The first page of a group by its index: groups use indices anew only when they are as large as they can be.
  int page_of_group(int at) const { return static_cast<int>(int64_t{at} * keys_.group_tokens() / kPageTokens); }
  uint16_t gone(int lane, int page) const { return gone_[at(lane, page)]; }
  // Of token i of a page: when and where it came.
  int32_t position(int lane, int page, int i) const { return position_[came(lane, page, i)]; }
  int32_t time_low(int lane, int page, int i) const { return time_low_[came(lane, page, i)]; }
  const uint16_t* place(int lane, int page, int i) const { return place_ + 2 * came(lane, page, i); }  // M-RoPE alone

  // What a lane reads until it is told otherwise, at most most_read pages.
  Piece* pieces(int lane) { return pieces_ + static_cast<size_t>(lane) * static_cast<size_t>(shape_.most_read); }
  int count(int lane) const { return counts_[lane]; }
  int chosen_tokens(int lane) const;  // of its pieces
  void set_count(int lane, int n);
  void forget_choices();
  // Brings those pages into DRAM, or copies of what waits there; pieces that cannot be had, or not while the disk rests,
  // lose their rows, all others come to lie where they lay before. Returns tokens lost by that. All pages of the lanes,
  // `together` at most, are asked for before one is waited for. What kernels read of the copies that they take the place
  // of must have run.
  int64_t fetch(int lane, int lanes = 1);
  // Those pages of the lane will be asked for soon: the system reads them ahead, as far as they are on disk. In order.
  void expect(int lane, std::span<const int32_t> pages);
  bool must_fetch(int lane) const { return counts_[lane] > 0 && copied_[lane] == kNotCopied; }
  const std::byte* copy(int lane, int piece) const {
    const auto room = static_cast<size_t>(shape_.copies_stay ? lane : lane % shape_.together);
    return copies_ + (room * static_cast<size_t>(shape_.most_read) + static_cast<size_t>(piece)) * page_bytes_;
  }

  const Counters& counters() const { return counters_; }
  SpillCounters disk() const { return file_->counters(); }
  CopyStats copy_stats() const { return engine_->stats(); }
  uint64_t used_bytes() const { return static_cast<uint64_t>(file_->used_slots()) * page_bytes_; }
  uint64_t peak_bytes() const { return static_cast<uint64_t>(file_->peak_used()) * page_bytes_; }
  uint64_t capacity_bytes() const { return static_cast<uint64_t>(file_->slots()) * page_bytes_; }
  void drain() { engine_->drain(); }
  // Between frames and questions: nothing is coming, nothing is chosen. key_means [lanes, row].
  void serialize(Snapshot& s, const float* key_means, RestoredPage* room);
  void check_invariants() const;

 private:
  void serialize_writes(Snapshot& s);
  void clear_behind(int lane, RestoredPage* room);
  void serialize_tokens(Snapshot& s, RestoredPage* room);
  void serialize_page(Snapshot& s, int lane, int index, const float* key_mean, RestoredPage* room);

  static constexpr int kWrites = 16;  // under way at most
  enum : uint8_t { kNotCopied, kCopied, kAskedFor };
  struct Write {
    int64_t page = kNone;
    int32_t lane = kNone;
    Completion written;
  };
  size_t at(int lane, int page) const {
    return static_cast<size_t>(lane) * static_cast<size_t>(shape_.pages) + static_cast<size_t>(page);
  }
  int index_of(int64_t page) const { return static_cast<int>(page % shape_.pages); }
  // What a lane writes at once lies together.
  SlotId slot_of(int lane, int index) const {
    const int n = shape_.pages_at_once();
    return (index / n * shape_.lanes + lane) * n + index % n;
  }
  int ring_index(int64_t token) const { return static_cast<int>(token % (int64_t{shape_.pages} * kPageTokens)); }
  size_t came(int lane, int page, int i) const;
  int row_of(int lane, int64_t token) const;
  std::byte* tail_page(int lane, int page) const {
    return tails_ + static_cast<size_t>(lane * shape_.pages_at_once() + page) * page_bytes_;
  }
  std::byte* begin_write(int lane, int64_t page);
  void end_write(int lane, int64_t page);
  void write(int lane, int64_t page);
  void write_stretch(int lane, int64_t number, const float* key_mean, bool together = false);
  // archive_lanes.cc
  struct Together;
  int most_keys(int frame_tokens) const;
  int most_behind(int frame_tokens) const;
  void encode_tails(int first, int lanes, int n, const float* k, const float* v, const float* key_means);
  void write_whole(int lane, int place, int n, const float* key_mean);
  void cut_together(int lane, int stretch);
  int64_t finish(Write* write);
  int64_t drop_oldest();
  int64_t lose(int lane, int index);
  void ask_for(int lane);
  int64_t receive(int lane);
  Completion* read_of(int lane) const { return read_ + lane % shape_.together * shape_.most_read; }

  ArchiveShape shape_;
  Ops& ops_;
  size_t page_bytes_;
  CoarseKeys keys_;
  TokenClusters clusters_;
  std::optional<SpillFile> file_;
  std::optional<CopyEngine> engine_;
  std::byte* tails_;       // [lanes, pages_at_once(), page_bytes_] what is not written yet
  std::byte* writing_;     // [kWrites, page_bytes_]
  std::byte* copies_;      // [lanes or together, most_read, page_bytes_]
  uint16_t* gone_;         // [lanes, pages]
  uint8_t* copied_;        // [lanes] its copies are those of its pieces
  Piece* pieces_;          // [lanes, most_read]
  int32_t* counts_;        // [lanes]
  int64_t* spilled_;       // [lanes]
  int32_t* position_;      // [pages, 16]
  int32_t* time_low_;      // [pages, 16]
  uint16_t* place_;        // [pages, 16, 2], or null
  std::byte** row_pages_;  // [16] of one encode_rows
  int32_t* row_at_;
  Completion* read_;         // [together, most_read]
  SlotId* expected_;         // [together, most_scanned()]
  Completion* asked_ahead_;  // [together]
  Write* under_way_;         // [kWrites]
  Together* together_ = nullptr;
  int next_write_ = 0;
  int64_t tokens_ = 0;
  int64_t coming_ = 0;  // of the frame between begin() and end()
  int64_t oldest_ = 0;  // page that has a slot
  int64_t lost_between_ = 0;
  Patience writes_, reads_;  // while either rests nothing is written; while reads do, nothing is read
  Counters counters_;
};

}  // namespace mosaic
