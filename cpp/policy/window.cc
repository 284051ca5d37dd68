// window: the prefix, the first frame and the most recent frames (StreamingLLM's sinks + sliding window). The oldest
// frame goes first.
#include <algorithm>

#include "policy/policy.h"

namespace mosaic {

namespace {

class SlidingWindow final : public Policy {
 public:
  const char* name() const override { return "window"; }
  PolicyNeeds needs() const override { return {}; }
  void admit(const ClusterStore&, const AdmitBlock&, Placement* out) override { out[0] = {}; }
  int relieve(const ClusterStore& store, const Need& need, Relief* out, int capacity) override {
    if (const int n = spill_oldest(store, need, out, capacity); n > 0) return n;
    // A frame goes from every lane at once, so that all layers remember the same ones.
    int32_t oldest = std::numeric_limits<int32_t>::max();
    for (int lane = 0; lane < store.shape().lanes; ++lane)
      for (const ClusterId c : store.index(lane).live()) oldest = std::min(oldest, store.index(lane)[c].born);
    int n = 0;
    for (int lane = 0; lane < store.shape().lanes; ++lane)
      for (const ClusterId c : store.index(lane).live())
        if (store.index(lane)[c].born == oldest && n < capacity) out[n++] = {Relief::Kind::kDrop, lane, c};
    return n;
  }
};

}  // namespace

std::unique_ptr<Policy> make_window(const PolicySettings& settings) {
  SettingReader("window", settings).finish();
  return std::make_unique<SlidingWindow>();
}

}  // namespace mosaic
