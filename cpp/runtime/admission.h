// Admission: what is kept. The oldest batch of frames leaves the window, the policy says where its tokens go, and when the
// store is short of something the policy says what yields until there is room. Every token ends in the account. Not
// thread-safe.
#pragma once

#include "backend/ops.h"
#include "runtime/labels.h"
#include "runtime/plan.h"
#include "runtime/records.h"
#include "store/cluster_store.h"

namespace mosaic {

class Admission {
 public:
  // What it takes of the region: rows of the batch that leaves (a frame, or as many as the policy takes together), its
  // labels, and what yields at a time.
  struct Scratch {
    static constexpr int kEvictions = 256;
    Scratch(Region& region, const Plan& plan);
    float* k;  // [batch tokens, row]
    float* v;
    TokenMeta* meta;  // [batch tokens]
    Labels labels;
    int32_t* joined;            // [batch tokens] labels of one cluster
    float* attention_received;  // [batch tokens], if the policy wants it
    Eviction* evictions;        // [kEvictions]
  };

  Admission(const Plan& plan, Policy& policy, Ops& ops, Window& window, ClusterStore& store,
            std::optional<Records>& records, Scratch& scratch)
      : plan_(plan),
        needs_(policy.needs()),
        policy_(policy),
        ops_(ops),
        window_(window),
        store_(store),
        records_(records),
        scratch_(scratch) {}

  // A policy that lets nothing go refuses before frame number `frame` begins, so that a refusal changes nothing. Throws
  // MemoryCapError.
  void refuse_without_room(int64_t frame);
  // The window is one batch over: the oldest leaves. What the policy throws passes through, after what the store has not
  // taken of the batch was dropped and counted.
  void admit_oldest();

 private:
  struct Batch {  // what leaves
    WindowFrame frame;
    SceneId scene = kNone;
  };
  SceneId scene_of(const float* embedding);
  void admit(const Batch& batch);
  void admit_whole(const Batch& batch);
  bool make_room_for_whole(const Batch& batch);
  void admit_tokens(int lane, const Batch& batch);
  void keep_hot_slots(int lane, const WindowFrame& frame);
  int read_batch(int lane);
  void file(int lane, int i, const Batch& batch);
  void join_opened(int lane, int i, const Run& token);
  void learn_opened(int lane, const Run& run);
  struct Filed {
    Short missing = Short::kNothing;
    int slots = 1;  // what it may need at once
  };
  Filed try_file(int lane, int i, const Run& token, const Batch& batch);
  bool splits_now(int lane, ClusterId c) const;
  // The policy says what yields; false: nothing does.
  bool make_room(const Need& need);
  void make_room_to_merge(const Need& need);
  int carry_out(std::span<const Eviction> evictions);
  void carry_out(const Eviction& eviction);

  const Plan& plan_;
  const PolicyNeeds needs_;
  Policy& policy_;
  Ops& ops_;
  Window& window_;
  ClusterStore& store_;
  std::optional<Records>& records_;
  Scratch& scratch_;
  int64_t filed_ = 0;  // lane tokens of the batch that leaves that the store has taken or dropped
};

}  // namespace mosaic
