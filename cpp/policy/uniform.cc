// uniform: every stride-th frame. When the cap is reached the stride doubles and every second kept frame goes, so the
// frames kept are spread evenly over the whole stream, however long it gets.
#include "policy/policy.h"

namespace mosaic {

namespace {

class Uniform final : public Policy {
 public:
  const char* name() const override { return "uniform"; }
  PolicyNeeds needs() const override { return {}; }
  void admit(const ClusterStore&, const AdmitBatch& batch, Placement* out) override {
    out[0] = {};
    if (batch.frame % stride_ != 0) out[0].cluster = Placement::kDrop;
  }
  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    const int lanes = store.shape().lanes;
    const ClusterIndex& first = store.index(0);
    for (;;) {
      int n = 0;
      ClusterId any = kNone;
      for (ClusterId c = 0; c < first.capacity(); ++c) {  // by rising id, as a policy in Python sees them
        if (!first.is_live(c)) continue;
        if (any == kNone) any = c;
        if (first[c].born % stride_ == 0 || n + lanes > capacity) continue;
        for (int lane = 0; lane < lanes; ++lane) n += frame_in(store, lane, first[c].born, out + n);
      }
      if (n > 0 || first.live().empty()) return n;
      if (stride_ > need.frame) {  // one frame is left: it yields to the new one
        for (int lane = 0; lane < lanes; ++lane) n += frame_in(store, lane, first[any].born, out + n);
        return n;
      }
      stride_ *= 2;
    }
  }
  void serialize(Snapshot& s, const ClusterStore&) override {
    s.in_range(stride_, 1, 1 << 30, "frames from one that is kept to the next");
  }

 private:
  // A frame goes from every lane at once, so that all layers remember the same ones.
  static int frame_in(const ClusterStore& store, int lane, int32_t born, Eviction* out) {
    for (const ClusterId c : store.index(lane).live()) {
      if (store.index(lane)[c].born != born) continue;
      *out = {Eviction::Kind::kDrop, lane, c};
      return 1;
    }
    return 0;
  }

  int32_t stride_ = 1;
};

}  // namespace

MOSAIC_POLICY("uniform", make_uniform) {
  SettingReader("uniform", settings).finish();
  return std::make_unique<Uniform>();
}

}  // namespace mosaic
