// rekv: whole frames, retrieved by the question (ReKV, arXiv 2503.00540) - in each layer a frame is a cluster, its mean key
// before rotation stands for it, and a question reads the frames whose mean has the largest dot product with the mean
// query, in time order, once. score=mass ranks by attention mass instead.
// The paper has no cap. Here the frames that are oldest go to disk; when every tier is full, or there is no disk, the
// oldest frame is dropped, in every layer at once.
#include "policy/retrieval.h"
#include "policy/yielding.h"

namespace mosaic {

namespace {

struct RekvSettings {
  ScoreMode score = ScoreMode::kDot;  // kMass: attention mass per head and question token
  // frames: read for a question in a layer, as far as the budget of tokens goes
  PolicyNeeds::Reading read{.of = PolicyNeeds::Reading::Of::kChosen, .frames = 64};
};

class Rekv final : public Policy {
 public:
  explicit Rekv(const RekvSettings& settings) : s_(settings) {}
  const char* name() const override { return "rekv"; }
  PolicyNeeds needs() const override { return {.means = PolicyNeeds::Means::kScored, .read = s_.read}; }
  void admit(const ClusterStore&, const AdmitBatch&, Placement* out) override { out[0] = {}; }
  void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
              SelectResult* result) override {
    const int n = score_clusters(store, query, s_.score, scratch);
    take_best(store, query, n, s_.read.frames, scratch, result);
  }
  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    if (const int n = spill_oldest(store, need, out, capacity); n > 0) return n;
    return drop_oldest_frame(store, out, capacity);
  }
  void serialize(Snapshot&, const ClusterStore&) override {}

 private:
  RekvSettings s_;
};

}  // namespace

MOSAIC_POLICY("rekv", make_rekv) {
  RekvSettings s;
  SettingReader reader("rekv", settings);
  read_score(reader, &s.score).number("frames", &s.read.frames, 1, 1 << 16);
  read_frames_read(reader, &s.read);
  read_query(reader, &s.read).finish();
  return std::make_unique<Rekv>(s);
}

}  // namespace mosaic
