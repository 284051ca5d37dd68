// Policy: every choice of the memory - what a token joins, what is read for a question, what yields under pressure - as
// plain data over a read-only view of the store. A policy moves nothing; KvMemory carries its decisions out, so a policy
// can be tested with numbers alone and a new one is one file here, which ends in MOSAIC_POLICY.
// One object serves one session and may keep state per lane, in tables taken from the cap in bind(); no call allocates.
#pragma once

#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "memory/region.h"
#include "store/cluster_store.h"

namespace mosaic {

// Items of an Ops::assign that a policy may always make, however small the frames are.
inline constexpr int kAssignItems = 16;

// What a policy asks of the store it runs on, in four ideas: how tokens are grouped, what stands for a group, what a
// question reads, and how the cap is shared out.
struct PolicyNeeds {
  static constexpr int kAll = -1;
  static constexpr int kWithDisk = -2;

  struct Grouping {
    bool records = false;    // every KV head keeps single tokens in a log (retention() says which), nothing below then
    bool by_token = false;   // tokens are labelled one by one; false: a frame is one cluster, admitted whole
    bool by_meta = false;    // by token: admit() looks at the meta of tokens alone, at no key or value
    bool per_head = false;   // a lane is one KV head of a layer; false: a lane is a layer, all its heads together
    bool scenes = false;     // frames are clustered by their embedding, clusters live inside a scene
    int frames = 1;          // frames admitted together (by token, no scenes)
    bool unbounded = false;  // a cluster may grow without end: it is never split, merged or packed as one
    bool grows_on_disk =
        false;  // where there is a disk a cluster takes all that joins it, and what is too large stays whole
    bool eager_splits = false;        // a cluster on disk is fetched to be cut; false: the cut waits until it is read
    bool attention_received = false;  // admit() wants what attention each token received while it was in the window
    float value_weight = 0;           // of values beside keys in the metric of clusters
  } group{};

  // A cluster's mean key and value.
  enum class Means : uint8_t {
    kNone,      // not kept
    kScored,    // kept, to choose by
    kAttended,  // and attended, + log count, for members that are not read
  } means = Means::kNone;

  struct Reading {
    static constexpr int kAll = PolicyNeeds::kAll;
    enum class Of : uint8_t {
      kEverything,    // that is stored
      kChosen,        // what select() chooses, by ops on the query
      kChosenOnHost,  // the same, by numbers of the query it reads itself: they are brought to the host
    } of = Of::kEverything;
    // select() reads up to as many frames' tokens, where the session names no other number and the cap would hold them
    // several times over: by frame 4, by token, whose pages are not full, 8 times. 0: the plan's choice
    int frames = 0;
    // Summaries attended at once, in frames' worth of tokens, named by select(). kAll: all of them.
    int summary_frames = kAll;
    // What a frame reads while it streams, where the model has no video window of its own and select() chooses for a
    // question: what select() says, or pages in DRAM, newest clusters first, as many tokens as `newest`. kAll: all of
    // them. What lies on disk, or beyond, is read as its summary where those are attended.
    enum class Frames : uint8_t { kChosen, kKept } by_frames = Frames::kChosen;
    int newest = kAll;
    // Tokens of a question's first pass that select() is given: all, template and all; those of the bare question; its last.
    enum class Query : uint8_t { kAll, kQuestion, kLast } query = Query::kAll;
  } read{};

  struct Sharing {
    int clusters = 0;        // by token: clusters of a lane; 0: what `index` allows
    int least_clusters = 2;  // and never less than these
    double index = 0;  // share of the bytes to share out for finding things, where the session names no other; 0: 0.35
    // By token: most members of a cluster that stand in pages. kAll: max_cluster_tokens; kWithDisk: a page of them where
    // there is a disk, else none; 0: none, every byte is a summary's.
    int members = kAll;
    int most_tokens = 0;   // by records: a KV head keeps at most these; 0: as many as fit
    bool refuses = false;  // lets nothing go: a frame that does not fit is refused before anything changes
  } share{};

  bool has_means() const { return means != Means::kNone; }
  bool attends_means() const { return means == Means::kAttended; }
  bool selects() const { return read.of != Reading::Of::kEverything; }
  bool frames_read_kept() const { return selects() && read.by_frames == Reading::Frames::kKept; }
  bool reads_query() const { return read.of == Reading::Of::kChosenOnHost; }
};

struct AdmitBatch {
  int lane = 0;  // by frame: -1, the decision holds for every lane
  Run tokens;    // of all frames of the batch, in time order; by frame: empty
  int32_t frame = 0;
  int frames = 1;
  SceneId scene = kNone;
  const float* attention_received =
      nullptr;  // [tokens], summed over queries and heads of the lane; null unless it was asked for
};

// Where one token goes.
struct Placement {
  static constexpr ClusterId kOpen = -2;  // a cluster of its own
  static constexpr ClusterId kDrop = -3;
  ClusterId cluster = kOpen;
  bool keep = true;          // a member that can be read; false: into the summary only
  uint8_t tag = 0;           // kOpen: what kind the new cluster is, in the policy's own words
  int32_t together = kNone;  // kOpen: tokens of the batch with the same number share one new cluster
};

struct SelectQuery {
  int lane = 0;
  const float* q = nullptr;  // [tokens, q_heads, D], before rotation
  int tokens = 0;
  int q_heads = 0;
  size_t q_stride = 0;
  float scale = 0;
  int max_tokens = 0;                // members that may be read
  int max_summaries = 0;             // clusters that may be attended by their summary
  int64_t since_ms = Clock::kNever;  // clusters that ended before are not wanted
};

// What a policy works in while it chooses; buffers of the caller, one entry per cluster of the lane.
struct SelectScratch {
  int32_t* rows = nullptr;  // clusters that are scored
  float* bias = nullptr;    // on the logit of each
  float* score = nullptr;   // of each
};

// What it chose; buffers of the caller, one entry per cluster of the lane.
struct SelectResult {
  static constexpr int kAll = -1;
  ClusterId* chosen = nullptr;  // best first
  float* score = nullptr;       // of each chosen one
  int n = 0;
  int32_t* attend = nullptr;  // clusters not chosen whose summary is attended [max_summaries]
  int attended = kAll;        // how many of them; kAll: every cluster that is not chosen
};

struct Need {
  enum class Kind : uint8_t {
    kSlots,     // a page slot, any DRAM tier
    kHotSlots,  // room in the hottest tier; optional, demotion only
    kClusters,  // a row of a lane's index
  };
  Kind kind = Kind::kSlots;
  int lane = 0;
  int amount = 1;
  int32_t frame = 0;
};

struct Eviction {
  enum class Kind : uint8_t { kDemote, kThin, kCollapse, kDrop, kMerge };
  Kind kind = Kind::kDrop;
  int lane = 0;
  ClusterId cluster = kNone;
  ClusterId other = kNone;        // kMerge: joins `cluster`
  int tier = 0;                   // kDemote: from this tier
  const uint8_t* keep = nullptr;  // kThin: [members], in the order of the pages; 0: the token goes. The policy's memory
};

// A number, or one of a few words.
struct SettingValue {
  SettingValue(double number = 0) : value(number) {}  // NOLINT: settings read {{"alpha", 0.5}, {"score", "dot"}}
  SettingValue(const char* word) : value(std::string(word)) {}
  SettingValue(std::string word) : value(std::move(word)) {}
  const double* number() const { return std::get_if<double>(&value); }
  const std::string* word() const { return std::get_if<std::string>(&value); }
  std::string text() const { return number() != nullptr ? std::to_string(*number()) : "\"" + *word() + "\""; }

 private:
  std::variant<double, std::string> value;
};
using PolicySettings = std::vector<std::pair<std::string, SettingValue>>;

class OneCaller;
class Retention;

class Policy {
 public:
  virtual ~Policy() = default;
  // What a policy by records says; it lives as long as the policy.
  virtual Retention* retention() { return nullptr; }
  virtual const char* name() const = 0;
  virtual PolicyNeeds needs() const = 0;
  // Takes the policy's own tables for a store of this shape from the region. Called on counting regions while the session
  // is planned, then once, last, on the session's own.
  virtual void bind(const StoreShape& shape, Region& region) { (void)shape, (void)region; }

  // The session is built; `caller` says who may look into its store just now.
  virtual void serve(const OneCaller& caller) { (void)caller; }

  // The scene of a frame, or kNone for a new one.
  virtual SceneId scene(const ClusterStore& store, const float* embedding) {
    (void)store, (void)embedding;
    return kNone;
  }
  // out: [tokens] by token, [1] by frame. Labels follow their cluster when it merges before they are used.
  virtual void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) = 0;
  // The distance (squared, between unit vectors) within which a token may join a cluster of the lane at all.
  virtual float radius(int lane) const {
    (void)lane;
    return std::numeric_limits<float>::infinity();
  }
  // The variance over which a cluster of `count` tokens is cut in two.
  virtual float tolerance(int lane, int count) const {
    (void)lane, (void)count;
    return std::numeric_limits<float>::infinity();
  }
  // scratch and result are the call's own.
  virtual void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
                      SelectResult* result) {
    (void)store, (void)query, (void)scratch, (void)result;
  }
  // What yields. Returns how many of out[capacity] were filled; 0: nothing can, the request is refused.
  virtual int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) = 0;
  // What later calls depend on, into a snapshot or out of one, where it is checked; the store is whole by then. Scratch is
  // not part of it; an empty body says that there is no more. Throws InvalidInput by Snapshot::refuse().
  virtual void serialize(Snapshot& s, const ClusterStore& store) = 0;

  // How it was set, as make_policy() was told: what a snapshot of it must have been set to.
  const std::string& settings_text() const { return settings_text_; }
  void note_settings(const PolicySettings& settings);

 private:
  std::string settings_text_;
};

// Throws InvalidInput naming the policies, or the settings of the policy, that there are.
std::unique_ptr<Policy> make_policy(const std::string& name, const PolicySettings& settings);
std::vector<std::string> policy_names();

// Begins the function that makes a policy from its `settings`, in the policy's own file. The build finds policies by this
// line (policies.cmake); nothing else names one.
#define MOSAIC_POLICY(name, factory) std::unique_ptr<Policy> factory(const PolicySettings& settings)

// Whether a setting is given as this word.
bool is_set_to(const PolicySettings& settings, const char* name, const char* word);
PolicySettings without(PolicySettings settings, const char* name);

// Reads settings by name and refuses what is left over.
class SettingReader {
 public:
  SettingReader(const char* policy, const PolicySettings& settings) : policy_(policy), left_(settings) {}
  SettingReader& number(const char* name, double* value, double low, double high);
  SettingReader& number(const char* name, float* value, double low, double high);
  SettingReader& number(const char* name, int* value, double low, double high);
  SettingReader& flag(const char* name, bool* value);
  // One of `words`; *value is its index among them.
  SettingReader& choice(const char* name, int* value, std::span<const char* const> words);
  SettingReader& choice(const char* name, int* value, std::initializer_list<const char*> words) {
    return choice(name, value, std::span(words.begin(), words.size()));
  }
  void finish() const;

 private:
  // Takes the setting out of what is left; false: it was not given.
  bool take(const char* name, SettingValue* value);

  const char* policy_;
  PolicySettings left_;
  std::string known_;
};

}  // namespace mosaic
