#include "policy/policy.h"

#include <cmath>

#include "core/error.h"

namespace mosaic {

#define MOSAIC_POLICY(name, factory) std::unique_ptr<Policy> factory(const PolicySettings& settings);
#include "policy/policies.def"
#undef MOSAIC_POLICY

std::unique_ptr<Policy> make_policy(const std::string& wanted, const PolicySettings& settings) {
#define MOSAIC_POLICY(name, factory) \
  if (wanted == name) return factory(settings);
#include "policy/policies.def"
#undef MOSAIC_POLICY
  std::string known;
  for (const std::string& name : policy_names()) known += (known.empty() ? "" : ", ") + name;
  throw InvalidInput("policy=\"" + wanted + "\" is not known; there are " + known + ".");
}

int spill_oldest(const ClusterStore& store, const Need& need, Relief* out, int capacity) {
  if (need.kind != Need::Kind::kSlots || !store.can_spill()) return 0;
  const int tier = store.tiers().size() - 2;
  int n = 0;
  for (int lane = 0; lane < store.shape().lanes && n < capacity; ++lane) {
    const ClusterIndex& index = store.index(lane);
    ClusterId oldest = kNone;
    for (const ClusterId c : index.live())
      if (store.pages_in(lane, c, tier) > 0 && (oldest == kNone || index[c].born < index[oldest].born)) oldest = c;
    if (oldest != kNone) out[n++] = {Relief::Kind::kDemote, lane, oldest, kNone, tier};
  }
  return n;
}

std::vector<std::string> policy_names() {
  return {
#define MOSAIC_POLICY(name, factory) name,
#include "policy/policies.def"
#undef MOSAIC_POLICY
  };
}

SettingReader& SettingReader::number(const char* name, double* value, double low, double high) {
  known_ += (known_.empty() ? "" : ", ") + std::string(name);
  for (auto it = left_.begin(); it != left_.end(); ++it) {
    if (it->first != name) continue;
    if (!(it->second >= low && it->second <= high))
      throw InvalidInput(std::string("policy ") + policy_ + ": " + name + "=" + std::to_string(it->second) +
                         " is not between " + std::to_string(low) + " and " + std::to_string(high) + ".");
    *value = it->second;
    left_.erase(it);
    break;
  }
  return *this;
}

SettingReader& SettingReader::number(const char* name, float* value, double low, double high) {
  double wide = *value;
  number(name, &wide, low, high);
  *value = static_cast<float>(wide);
  return *this;
}

SettingReader& SettingReader::number(const char* name, int* value, double low, double high) {
  double wide = *value;
  number(name, &wide, low, high);
  *value = static_cast<int>(std::lround(wide));
  return *this;
}

SettingReader& SettingReader::flag(const char* name, bool* value) {
  double wide = *value ? 1 : 0;
  number(name, &wide, 0, 1);
  *value = wide != 0;
  return *this;
}

void SettingReader::finish() const {
  if (left_.empty()) return;
  throw InvalidInput(std::string("policy ") + policy_ + " has no setting \"" + left_.front().first + "\"; it has " +
                     (known_.empty() ? "none" : known_) + ".");
}

}  // namespace mosaic
