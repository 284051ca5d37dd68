// KvMemory: START HERE. One capped memory for one stream: a store, a policy, a window, and the one seam an engine calls.
//
//   frame      begin_frame(...)   attend(layer, q, k, v, out) for every layer in order   commit()
//   prefix     begin_text(n)      the same, before the first frame (system prompt)
//   question   open_question(...) begin_text(n), attend..., commit() for each forward pass   close_question(keep)
//
// attend() rotates, attends over prefix + first frame + what is kept (selected clusters and summaries, or all of a
// head's log of tokens) + window + the block itself (causal), and stages k and v. commit() files the block: the oldest
// frame leaves the window, the policy says where its tokens go. A question selects once per layer with its own query
// and lives on a branch that is dropped, or kept as dialogue. A bad block (NaN, wrong layer) is refused whole: nothing
// of it is filed. Everything is taken when this is built; append and ask allocate nothing.
//   kv_memory.cc its life · kv_memory_snapshot.cc into a file and back · attention.cc the seam · Selector what is read ·
//   Admission and Records what is kept · positions.h where it stands
// A device that fails ends the session, with an error that says so at every call; another may be opened.
// One caller at a time (OneCaller): a second thread, a policy that calls the memory which is asking it, and a fork of the
// process are refused with InvalidInput. stats() alone is for any thread: while somebody is inside it is what it was when
// the last call ended.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "core/error.h"
#include "core/one_caller.h"
#include "runtime/dialogue.h"
#include "runtime/parts.h"
#include "runtime/selector.h"

namespace mosaic {

struct FrameInfo {
  int64_t time_ms = 0;               // Clock::kFirstMs to kLastMs
  const float* embedding = nullptr;  // [embedding_dim]
  int tokens = 0;
  int grid_w = 1;  // token i of the picture stands at row i / grid_w, column i % grid_w
  // The first `lead` and the last `trail` tokens are text (a time stamp, tags around the picture).
  int lead = 0;
  int trail = 0;
  // M-RoPE: the temporal position, counted from the end of the prefix (absolute time); -1: the next one.
  int32_t t_position = -1;
};

struct MemoryStats {
  TokenAccount tokens;  // per lane token, window included
  StoreCounters counters;
  SpillCounters disk;
  CopyStats copies;
  uint64_t cap_bytes = 0;
  uint64_t taken_bytes = 0;  // of the cap, for the whole life of the session
  int64_t frames = 0;
  int64_t questions = 0;
  int64_t frame_reads = 0;        // tokens that the newest frame read besides itself, over all lanes
  int64_t question_reads = 0;     // and the last question's first pass
  int64_t unread_pages = 0;       // chosen, but no room to read them: attended by their summary
  int64_t dropped_dialogue = 0;   // tokens of earlier turns that made room
  int64_t saturated_numbers = 0;  // of q, k, v beyond half precision, in blocks that were filed
  int64_t refused_overflows = 0;  // blocks that were refused for one
  struct Tier {
    Medium medium;
    CodecId codec;
    uint64_t used_bytes, peak_bytes, capacity_bytes;
  };
  int tiers = 0;
  Tier tier[TierChain::kMaxTiers];
  int clusters = 0;  // live, all lanes
  int scenes = 0;
};

class KvMemory {
 public:
  // from: a snapshot to begin with, of a session that was the same in all that session_facts.h names; without one a session
  // begins empty. Throws as save()'s reader does, and then there is no memory.
  KvMemory(const MemoryConfig& config, std::unique_ptr<Policy> policy, Backend backend, SpillIo* io = nullptr,
           SnapshotReader* from = nullptr);
  ~KvMemory();

  void begin_frame(const FrameInfo& frame);
  // Of a question's tokens the first `lead` and the last `trail` are its template's.
  void begin_text(int tokens, int lead = 0, int trail = 0);
  // q [T, q_heads, D], k, v [T, kv_heads, D] before rotation, out [T, q_heads, D]; contiguous, T as begun. They may lie in
  // host memory or in the device's own: what the device reaches is not copied. `out` is written when this returns; but where
  // a stream is given (of the device's kind, null its default) and all four lie on the device, that work is queued in
  // order with it, and nothing is waited for. tokens: what the arrays hold, -1: as begun. producers: streams of the
  // device's kind that the arrays are only complete behind. lie: where q, k, v and out lie, so that the device is not asked.
  void attend(int layer, const float* q, const float* k, const float* v, float* out,
              std::optional<void*> stream = std::nullopt, int tokens = -1, std::span<void* const> producers = {},
              const ArraysLie& lie = {});
  void commit();
  // Forget the block that was begun.
  void abort();

  // since_ms: only what was seen from then on is read.
  void open_question(int64_t since_ms = Clock::kNever);
  // Forget all of question and answer but their first `tokens`; what the question chose to read stays chosen. For an answer
  // of which the dialogue is to keep less than was said.
  void rewind_question(int tokens);
  // keep: question and answer stay readable for later questions, oldest turn out when the room is needed.
  void close_question(bool keep);
  bool asking() const { return asking_; }
  // All that later answers depend on, streamed from where it lies; between blocks and questions. A kept dialogue is part of it.
  void save(SnapshotWriter& to);
  const Evidence& evidence() const { return evidence_; }

  int block_tokens() const { return block_tokens_; }
  const OneCaller& caller() const { return caller_; }
  const Plan& plan() const { return plan_; }
  const Region& region() const { return region_; }
  const Device& device() const { return *backend_.device; }
  const ClusterStore& store() const { return store_; }
  const Records* records() const { return records_ ? &*records_ : nullptr; }  // of a policy by records
  const Policy& policy() const { return *policy_; }
  MemoryStats stats() const;
  void check_invariants() const;
  // Wait for background writes.
  void drain();

 private:
  int lanes() const { return plan_.window.lanes; }
  const ModelShape& model() const { return plan_.config.model; }
  int64_t time_of(const WindowFrame& frame) const { return store_.clock().time(frame.first_position, frame.time_low); }
  void begin(BlockKind kind, int tokens);
  void file_block();
  void forget_block();
  void settle_read();
  // kv_memory_snapshot.cc
  void restore(SnapshotReader& from);
  void serialize(Snapshot& s);
  void check_end(const Snapshot& s) const;
  void check_all() const;
  MemoryStats count_stats() const;
  void note_stats();
  [[noreturn]] void refuse_block(const std::string& why);
  [[noreturn]] void refuse_numbers(const std::string& fault, bool beyond);
  // Runs what calls the device. After a DeviceError nobody knows what its memory holds: nothing is answered from it again.
  template <class Call>
  void on_device(const Call& call);
  // attention.cc
  void attend_layer(const LayerArrays& given, std::optional<void*> stream);
  // A lane is all heads of a layer, or one of its KV heads with the query heads that share it.
  struct Lanes;
  void attend_lanes(const Lanes& lanes, StageArgs* stage);
  void attend_once(const Lanes& lanes, std::span<const int> which, StageArgs* stage, std::span<AttendArgs> args,
                   bool measured);
  void attend_recalled(const Lanes& lanes, std::span<AttendArgs> args);
  void add_rest(int first, std::span<const AttendArgs> args);
  AttendArgs lane_args(int lane, const LayerArrays& at, const BlockSelection& selection) const;
  void block_positions(BlockSelection* selection) const;
  void stage_frame(int lane, int lanes, const LayerArrays& at, StageArgs* stage);
  void stage_text(int lane, int lanes, const LayerArrays& at, StageArgs* stage);
  const TokenMeta* meta_of(const BlockSelection& s, int entry) const;
  bool measures_attention() const;
  MassArgs wanted_mass(const AttendArgs& args, int lane);
  void collect_attention(int lane);
  void collect_evidence(const BlockSelection& s, int lane);
  void collect_attention_received(const BlockSelection& s, int lane);
  // What queued copies of the selections' tables read may change from here on.
  void wait_for_tables();

  OneCaller caller_{"KvMemory"};
  Backend backend_;
  std::unique_ptr<Policy> policy_;
  Plan plan_;
  Region region_;
  Parts parts_;
  Window& window_ = parts_.window;
  ClusterStore& store_ = parts_.store;
  std::optional<Records>& records_ = parts_.records;
  Staging& staging_ = parts_.staging;
  Evidence& evidence_ = parts_.evidence;
  Selector selector_;
  Admission admission_;
  Dialogue dialogue_;

  std::string failed_;  // what the device said when it failed
  BlockKind block_ = BlockKind::kNone;
  std::atomic<int> block_tokens_{0};
  bool tables_read_ = true;  // nothing is queued that reads them
  int next_layer_ = 0;
  int lead_ = 0, trail_ = 0;  // tokens of the text block that are its template's
  FrameInfo frame_{};
  FrameLayout layout_;          // of the frame that was begun
  int32_t next_position_ = 0;   // original index of the next token
  int32_t frame_position_ = 0;  // and of the first one of the frame that was begun
  int64_t frames_ = 0;
  int64_t questions_ = 0;
  std::atomic<bool> asking_{false};
  int64_t since_ms_ = 0;
  int passes_ = 0;
  int since_refresh_ = 0;
  int64_t reads_now_ = 0;  // tokens that the block read so far, over all lanes
  int64_t frame_reads_ = 0;
  int64_t question_reads_ = 0;
  int64_t saturated_ = 0;
  int64_t refused_overflows_ = 0;
  mutable std::mutex noted_mutex_;
  MemoryStats noted_;                                      // when the last call ended that changed them
  static constexpr int32_t kLastPosition = 2'000'000'000;  // text behind it must not wrap
};

template <class Call>
void KvMemory::on_device(const Call& call) {
  if (!failed_.empty())
    throw DeviceError("KvMemory: the device failed (" + failed_ +
                      ") and its memory cannot be trusted. Close the session" + " and open another.");
  try {
    call();
  } catch (const DeviceError& e) {
    failed_ = e.what();
    throw;
  }
}

}  // namespace mosaic
