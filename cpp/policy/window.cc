// window: the prefix, the first frame and the most recent frames (StreamingLLM's sinks + sliding window). The oldest
// frame goes first.
#include "policy/policy.h"
#include "policy/yielding.h"

namespace mosaic {

namespace {

class SlidingWindow final : public Policy {
 public:
  const char* name() const override { return "window"; }
  PolicyNeeds needs() const override { return {}; }
  void admit(const ClusterStore&, const AdmitBatch&, Placement* out) override { out[0] = {}; }
  int evict(const ClusterStore& store, const Need&, Eviction* out, int capacity) override {
    return drop_oldest_frame(store, out, capacity);
  }
  void serialize(Snapshot&, const ClusterStore&) override {}
};

}  // namespace

MOSAIC_POLICY("window", make_window) {
  SettingReader("window", settings).finish();
  return std::make_unique<SlidingWindow>();
}

}  // namespace mosaic
