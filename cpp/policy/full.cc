// full: keeps every frame and refuses when the cap is reached. What every other policy is measured against.
#include "policy/policy.h"
#include "policy/yielding.h"

namespace mosaic {

namespace {

class Full final : public Policy {
 public:
  const char* name() const override { return "full"; }
  PolicyNeeds needs() const override { return {.refuses = true}; }
  void admit(const ClusterStore&, const AdmitBlock&, Placement* out) override { out[0] = {}; }
  int relieve(const ClusterStore& store, const Need& need, Relief* out, int capacity) override {
    return spill_oldest(store, need, out, capacity);
  }
};

}  // namespace

std::unique_ptr<Policy> make_full(const PolicySettings& settings) {
  SettingReader("full", settings).finish();
  return std::make_unique<Full>();
}

}  // namespace mosaic
