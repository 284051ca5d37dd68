#include "policy/policy.h"

#include <algorithm>
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

int drop_oldest_frame(const ClusterStore& store, Relief* out, int capacity) {
  int32_t oldest = std::numeric_limits<int32_t>::max();
  for (int lane = 0; lane < store.shape().lanes; ++lane)
    for (const ClusterId c : store.index(lane).live()) oldest = std::min(oldest, store.index(lane)[c].born);
  int n = 0;
  for (int lane = 0; lane < store.shape().lanes; ++lane)
    for (const ClusterId c : store.index(lane).live())
      if (store.index(lane)[c].born == oldest && n < capacity) out[n++] = {Relief::Kind::kDrop, lane, c};
  return n;
}

namespace {

// Clusters with pages in the tier, least recently grown first.
int coldest(const ClusterStore& store, const Need& need, int tier, Relief* out, int wanted) {
  int n = 0;
  for (int k = 0; k < store.shape().lanes && n < wanted; ++k) {
    const int lane = (need.lane + k) % store.shape().lanes;  // the lane in need first
    const ClusterIndex& index = store.index(lane);
    for (;;) {
      ClusterId best = kNone;
      for (const ClusterId c : index.live()) {
        if (index[c].paged == 0 || index[c].touched >= need.frame) continue;
        if (best != kNone && index[c].touched >= index[best].touched) continue;
        bool taken = false;
        for (int i = 0; i < n; ++i) taken |= out[i].lane == lane && out[i].cluster == c;
        if (!taken && store.pages_in(lane, c, tier) > 0) best = c;
      }
      if (best == kNone || n == wanted) break;
      out[n++] = {Relief::Kind::kDemote, lane, best, kNone, tier};
    }
  }
  return n;
}

}  // namespace

int demote_coldest(const ClusterStore& store, const Need& need, Relief* out, int capacity) {
  const int last = store.tiers().size() - 1;
  for (int tier = need.kind == Need::Kind::kHotSlots ? 0 : last; tier >= 0; --tier) {
    const int to = store.tiers().colder(tier);
    if (to == kNone || store.tiers().free_slots(to) == 0) continue;
    if (need.kind == Need::Kind::kSlots && !(store.tiers().is_disk(to) && store.can_spill())) continue;
    const int wanted = std::min(capacity, std::max(need.amount, 4));
    int n = coldest(store, need, tier, out, wanted);
    if (n == 0 && need.kind == Need::Kind::kSlots) {  // all grew with this frame: the disk still comes before summaries
      Need any = need;
      any.frame = std::numeric_limits<int32_t>::max();
      n = coldest(store, any, tier, out, wanted);
    }
    if (n > 0) return n;
  }
  return 0;
}

std::vector<std::string> policy_names() {
  return {
#define MOSAIC_POLICY(name, factory) name,
#include "policy/policies.def"
#undef MOSAIC_POLICY
  };
}

bool SettingReader::take(const char* name, SettingValue* value) {
  known_ += (known_.empty() ? "" : ", ") + std::string(name);
  const auto found = std::find_if(left_.begin(), left_.end(), [&](const auto& entry) { return entry.first == name; });
  if (found == left_.end()) return false;
  *value = found->second;
  left_.erase(found);
  return true;
}

SettingReader& SettingReader::number(const char* name, double* value, double low, double high) {
  SettingValue given;
  if (!take(name, &given)) return *this;
  const double* number = given.number();
  if (number == nullptr || !(*number >= low && *number <= high))
    throw InvalidInput(std::string("policy ") + policy_ + ": " + name + "=" + given.text() +
                       " is not a number between " + std::to_string(low) + " and " + std::to_string(high) + ".");
  *value = *number;
  return *this;
}

SettingReader& SettingReader::choice(const char* name, int* value, std::initializer_list<const char*> words) {
  SettingValue given;
  if (!take(name, &given)) return *this;
  const std::string* word = given.word();
  std::string known;
  int at = 0;
  for (const char* one : words) {
    if (word != nullptr && *word == one) {
      *value = at;
      return *this;
    }
    known += (known.empty() ? "" : ", ") + std::string(one);
    ++at;
  }
  throw InvalidInput(std::string("policy ") + policy_ + ": " + name + "=" + given.text() + " is none of " + known +
                     ".");
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
