// full: keeps every frame and refuses when the cap is reached. What every other policy is measured against.
#include "policy/policy.h"

namespace mosaic {

namespace {

class Full final : public Policy {
 public:
  const char* name() const override { return "full"; }
  PolicyNeeds needs() const override { return {.share = {.refuses = true}}; }
  void admit(const ClusterStore&, const AdmitBatch&, Placement* out) override { out[0] = {}; }
  int evict(const ClusterStore&, const Need&, Eviction*, int) override { return 0; }
  void serialize(Snapshot&, const ClusterStore&) override {}
};

}  // namespace

MOSAIC_POLICY("full", make_full) {
  SettingReader("full", settings).finish();
  return std::make_unique<Full>();
}

}  // namespace mosaic
