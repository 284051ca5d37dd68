// mukv: three granularities and two signals, after MuKV (arXiv 2605.22269). The frames of a segment
// leave the window together and are cut into units of three kinds: patch (a square of a frame's grid), frame, segment.
// A unit keeps the share of its tokens that signal the most: attention received (column sums over the window) and
// high-frequency energy of the keys along the segment's tokens, each min-max normalised within the unit and weighed.
// A question reads units of all three kinds (mukv_search.h).
//
// The paper stores a token once for each granularity that keeps it, and has no cap. Here a token is stored ONCE:
//   patch    the best share of each super-patch
//   frame    the best share of the frame, less what its patches hold
//   segment  the best share of the segment, less what its frames and patches hold
// and reading is nested - a frame unit reads its patches too, a segment unit its frames and their patches - so every
// unit reads at least what the paper's would, nothing is attended twice, and bytes are not tripled. A unit stands for
// retrieval by the mean key of all that reading it reads. What is in no unit is dropped. No means are attended.
// Under pressure: denser codec > disk > the oldest segments' own tokens > the oldest frames' > the oldest patches'. When
// the index is full, all units of the oldest segment go.
#include <algorithm>
#include <cmath>

#include "policy/mukv_search.h"
#include "policy/retrieval.h"

namespace mosaic {

namespace {

using namespace mukv;

enum class Signal : int { kBoth, kAttention, kFrequency, kRandom };

struct MukvSettings {
  int segment = 4;  // frames
  int patch = 0;    // side of a super-patch in tokens; 0: half the frame's, or all of a small one's
  std::array<double, kKinds> share{0.1, 0.1, 0.8};      // of a unit's tokens that are kept, at least one
  std::array<double, kKinds> attention{0.5, 0.7, 0.8};  // weight of attention received, the rest is the energy's
  Signal signal = Signal::kBoth;
  SearchSettings search;
  // The paper's 64 units are about 8,300 tokens of 196 a frame.
  PolicyNeeds::Reading read{.of = PolicyNeeds::Reading::Of::kChosenOnHost, .frames = 42};
};

// The same on every machine, and for the same token in every layer.
float hash(const TokenMeta& meta) {
  uint64_t x = static_cast<uint64_t>(static_cast<uint32_t>(meta.position)) << 32 | static_cast<uint64_t>(meta.h) << 16 |
               static_cast<uint64_t>(meta.w);
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<float>((x ^ (x >> 31)) >> 40);
}

class Mukv final : public Policy {
 public:
  explicit Mukv(const MukvSettings& settings) : s_(settings), search_(settings.search) {}
  const char* name() const override { return "mukv"; }
  PolicyNeeds needs() const override {
    PolicyNeeds needs;
    needs.group.by_token = true;
    needs.group.frames = s_.segment;
    needs.group.attention_received = s_.signal == Signal::kBoth || s_.signal == Signal::kAttention;
    needs.means = PolicyNeeds::Means::kScored;
    needs.read = s_.read;
    needs.share.least_clusters = s_.segment * 5 + 1;  // a segment, of four super-patches a frame
    needs.share.index = kIndexShare;
    return needs;
  }

  void bind(const StoreShape& shape, Region& region) override {
    const Size n = shape.max_run;
    search_.bind(shape, region);
    attention_ = region.take<float>("policy", n);
    energy_ = region.take<float>("policy", n);
    unit_ = region.take<int32_t>("policy", n);
    frame_of_ = region.take<int32_t>("policy", n);
    rank_ = region.take<Rank>("policy", n);
  }

  void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override {
    read_signals(store, batch);
    const int n = batch.tokens.n;
    const TokenMeta* const meta = batch.tokens.meta;
    for (int i = 0; i < n; ++i) {
      out[i] = {};
      out[i].cluster = Placement::kDrop;
    }
    int units = 0, frame = 0;
    for (int begin = 0, end = 0; begin < n; begin = end, ++frame) {
      const TokenMeta* corner = nullptr;
      do {  // a frame begins with a new time, or where its first place of the grid comes again
        if (corner == nullptr && meta[end].h != kText) corner = meta + end;
        frame_of_[end++] = frame;
      } while (end < n && meta[end].time_low == meta[begin].time_low &&
               (corner == nullptr || meta[end].h != corner->h || meta[end].w != corner->w));
      cut_patches(meta, begin, end, &units, out);
      for (int i = begin; i < end; ++i) unit_[i - begin] = i;
      keep_best(kFrame, end - begin, &units, out);
    }
    for (int i = 0; i < n; ++i) unit_[i] = i;
    keep_best(kSegment, n, &units, out);
  }

  void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
              SelectResult* result) override {
    search_.select(store, query, scratch, result);
  }

  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    if (need.kind == Need::Kind::kClusters) return drop_segment(store, need, out, capacity);
    const TierChain& tiers = store.tiers();
    if (need.kind == Need::Kind::kHotSlots)
      return tiers.free_slots(1) > 0 ? demote_oldest(store, need, 0, out, std::min(capacity, need.amount)) : 0;
    const int wanted = std::min(capacity, std::max(need.amount, 4));
    if (const int n = store.can_spill() ? demote_oldest(store, need, tiers.size() - 2, out, wanted) : 0; n > 0)
      return n;
    return drop_oldest(store, need, out);
  }
  void serialize(Snapshot& s, const ClusterStore& store) override {  // nothing but what it wrote into the store
    for (int lane = 0; lane < store.shape().lanes; ++lane)
      for (const ClusterId c : store.index(lane).live())
        s.require(store.index(lane)[c].tag % 4 < kKinds, "a unit is a patch, a frame or a segment");
  }

 private:
  static constexpr double kIndexShare = 0.5;

  void read_signals(const ClusterStore& store, const AdmitBatch& batch) {
    const int n = batch.tokens.n;
    const auto zero = [&](float* signal) { std::fill_n(signal, n, 0.0f); };
    zero(attention_);
    zero(energy_);
    if (batch.attention_received != nullptr) std::copy_n(batch.attention_received, n, attention_);
    if (s_.signal == Signal::kBoth || s_.signal == Signal::kFrequency) {
      SpectralArgs args;
      args.x = batch.tokens.k;
      args.items = n;
      args.dim = store.shape().page.row();
      args.stride = static_cast<size_t>(args.dim);
      args.energy = energy_;
      store.ops().spectral_energy(args);
    }
    if (s_.signal == Signal::kRandom)
      for (int i = 0; i < n; ++i) energy_[i] = hash(batch.tokens.meta[i]);
    for (float* signal : {attention_, energy_})  // keys beyond half precision signal nothing
      for (int i = 0; i < n; ++i)
        if (!std::isfinite(signal[i])) signal[i] = 0;
  }

  // The super-patches of the frame of tokens [begin, end), from the corner on; those at the far edges may be smaller.
  // Text is in none of them: the frame and the segment may keep it.
  void cut_patches(const TokenMeta* meta, int begin, int end, int* units, Placement* out) {
    while (begin < end && meta[begin].h == kText) ++begin;
    while (begin < end && meta[end - 1].h == kText) --end;
    int height = 0, width = 0;
    const auto y = [&](int i) { return meta[i].h - meta[begin].h; };
    const auto x = [&](int i) { return meta[i].w - meta[begin].w; };
    for (int i = begin; i < end; ++i) {
      height = std::max(height, y(i) + 1);
      width = std::max(width, x(i) + 1);
    }
    int rows = s_.patch, columns = s_.patch;
    if (s_.patch == 0) {
      rows = (height + 1) / 2;
      columns = (width + 1) / 2;
      if (s_.share[kPatch] * rows * columns < 1) {  // or far more than the share would be kept of a small frame
        rows = height;
        columns = width;
      }
    }
    for (int top = 0; top < height; top += rows) {
      for (int left = 0; left < width; left += columns) {
        int n = 0;
        for (int i = begin; i < end; ++i)
          if (y(i) / rows == top / rows && x(i) / columns == left / columns) unit_[n++] = i;
        keep_best(kPatch, n, units, out);
      }
    }
  }

  // Of the n tokens in unit_ the best share, as one new cluster; what a finer unit holds already stays there.
  void keep_best(Kind kind, int n, int* units, Placement* out) {
    const double share = s_.share[kind];
    if (n == 0 || share == 0) return;
    for (int i = 0; i < n; ++i) rank_[i] = {0, unit_[i]};
    const double a = s_.signal == Signal::kBoth ? s_.attention[kind] : s_.signal == Signal::kAttention ? 1 : 0;
    add_normalised(attention_, static_cast<float>(a), n);
    add_normalised(energy_, static_cast<float>(1 - a), n);
    std::sort(rank_, rank_ + n, [](const Rank& x, const Rank& y) {
      return x.importance != y.importance ? x.importance > y.importance : x.token < y.token;
    });
    const int kept = std::clamp(static_cast<int>(std::floor(share * n + 0.5)), 1, n);
    const int together = (*units)++;
    for (int i = 0; i < kept; ++i) {
      Placement& to = out[rank_[i].token];
      if (to.cluster != Placement::kDrop) continue;
      to.cluster = Placement::kOpen;
      to.together = together;
      to.tag = tag_of(kind, frame_of_[rank_[i].token]);
    }
  }

  // Importance += weight (signal - least) / (most - least), over the tokens of unit_.
  void add_normalised(const float* signal, float weight, int n) {
    float least = signal[unit_[0]], most = least;
    for (int i = 1; i < n; ++i) {
      least = std::min(least, signal[unit_[i]]);
      most = std::max(most, signal[unit_[i]]);
    }
    if (!(most > least) || weight == 0) return;
    for (int i = 0; i < n; ++i) rank_[i].importance += weight * ((signal[unit_[i]] - least) / (most - least));
  }

  // Pages in the tier, of the segments that are oldest, the lane in need first.
  static int demote_oldest(const ClusterStore& store, const Need& need, int tier, Eviction* out, int wanted) {
    const int lanes = store.shape().lanes;
    int n = 0;
    for (int k = 0; k < lanes && n < wanted; ++k) {
      const int lane = (need.lane + k) % lanes, first = n;
      const ClusterIndex& index = store.index(lane);
      while (n < wanted) {
        ClusterId best = kNone;
        for (const ClusterId c : index.live()) {
          if (index[c].paged == 0 || (best != kNone && index[c].born >= index[best].born)) continue;
          const auto taken = [&](const Eviction& eviction) { return eviction.cluster == c; };
          if (std::none_of(out + first, out + n, taken) && store.pages_in(lane, c, tier) > 0) best = c;
        }
        if (best == kNone) break;
        out[n++] = {Eviction::Kind::kDemote, lane, best, kNone, tier};
      }
    }
    return n;
  }

  // The coarsest kind first, and of a kind the oldest: what is left of a segment gets sparser, never denser.
  static int drop_oldest(const ClusterStore& store, const Need& need, Eviction* out) {
    const int lanes = store.shape().lanes;
    ClusterId best = kNone;
    int where = 0;
    for (int k = 0; k < lanes; ++k) {
      const int lane = (need.lane + k) % lanes;
      const ClusterIndex& index = store.index(lane);
      for (const ClusterId c : index.live()) {
        if (index[c].paged == 0 || index[c].born >= need.frame) continue;
        const auto before = [&](const Cluster& x, const Cluster& y) {
          if (kind_of(x.tag) != kind_of(y.tag)) return kind_of(x.tag) > kind_of(y.tag);
          return x.born != y.born ? x.born < y.born : x.tag < y.tag;
        };
        if (best != kNone && !before(index[c], store.index(where)[best])) continue;
        best = c;
        where = lane;
      }
    }
    if (best == kNone) return 0;
    out[0] = {Eviction::Kind::kDrop, where, best};
    return 1;
  }

  static int drop_segment(const ClusterStore& store, const Need& need, Eviction* out, int capacity) {
    const ClusterIndex& index = store.index(need.lane);
    int32_t oldest = need.frame;
    for (const ClusterId c : index.live()) oldest = std::min(oldest, index[c].born);
    int n = 0;
    for (const ClusterId c : index.live())
      if (index[c].born == oldest && oldest < need.frame && n < capacity)
        out[n++] = {Eviction::Kind::kDrop, need.lane, c};
    return n;
  }

  struct Rank {
    float importance;
    int32_t token;
  };

  MukvSettings s_;
  Search search_;
  float* attention_ = nullptr;  // [tokens of a segment]
  float* energy_ = nullptr;
  int32_t* unit_ = nullptr;      // tokens of the unit in hand
  int32_t* frame_of_ = nullptr;  // frame of each token in the segment
  Rank* rank_ = nullptr;         // the same tokens with their importance
};

}  // namespace

MOSAIC_POLICY("mukv", make_mukv) {
  MukvSettings s;
  int signal = 0, retrieval = 0, score = 0;
  SettingReader reader("mukv", settings);
  reader.number("segment", &s.segment, 1, kMaxFrames)
      .number("patch", &s.patch, 0, 1 << 16)
      .choice("signal", &signal, {"both", "attention", "frequency", "random"})
      .choice("retrieval", &retrieval, {"semi", "parallel", "strict"})
      .choice("score", &score, {"cosine", "mass"})
      .number("context", &s.search.context, 1, 1 << 16);
  const auto each = [&](Kind kind, const std::string& name) {
    reader.number((name + "_share").c_str(), &s.share[kind], 0, 1)
        .number((name + "_attention").c_str(), &s.attention[kind], 0, 1)
        .number((name + "_k").c_str(), &s.search.k[kind], 0, 1 << 16)
        .number((name + "_weight").c_str(), &s.search.weight[kind], 0, 1);
  };
  each(kPatch, "patch");
  each(kFrame, "frame");
  each(kSegment, "segment");
  read_frames_read(reader, &s.read);
  read_query(reader, &s.read).finish();
  s.signal = static_cast<Signal>(signal);
  s.search.retrieval = static_cast<Retrieval>(retrieval);
  s.search.mass = score == 1;
  return std::make_unique<Mukv>(s);
}

}  // namespace mosaic
