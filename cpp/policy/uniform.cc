// uniform: every stride-th frame. When the cap is reached the stride doubles and every second kept frame goes, so the
// frames kept are spread evenly over the whole stream, however long it gets.
#include "policy/policy.h"

namespace mosaic {

namespace {

class Uniform final : public Policy {
 public:
  const char* name() const override { return "uniform"; }
  PolicyNeeds needs() const override { return {}; }
  void admit(const ClusterStore&, const AdmitBlock& block, Placement* out) override {
    out[0] = {};
    if (block.frame % stride_ != 0) out[0].cluster = Placement::kDrop;
  }
  int relieve(const ClusterStore& store, const Need& need, Relief* out, int capacity) override {
    if (const int n = spill_oldest(store, need, out, capacity); n > 0) return n;
    for (;;) {
      int n = 0;
      int kept = 0;
      for (int lane = 0; lane < store.shape().lanes; ++lane) {
        for (const ClusterId c : store.index(lane).live()) {
          ++kept;
          if (store.index(lane)[c].born % stride_ != 0 && n < capacity) out[n++] = {Relief::Kind::kDrop, lane, c};
        }
      }
      if (n > 0 || kept == 0) return n;
      if (stride_ > need.frame) {  // one frame is left: it yields to the new one
        for (int lane = 0; lane < store.shape().lanes && n < capacity; ++lane)
          for (const ClusterId c : store.index(lane).live()) out[n++] = {Relief::Kind::kDrop, lane, c};
        return n;
      }
      stride_ *= 2;
    }
  }

 private:
  int32_t stride_ = 1;
};

}  // namespace

std::unique_ptr<Policy> make_uniform(const PolicySettings& settings) {
  SettingReader("uniform", settings).finish();
  return std::make_unique<Uniform>();
}

}  // namespace mosaic
