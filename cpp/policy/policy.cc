#include "policy/policy.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"

namespace mosaic {

// policies.cmake writes the list: MOSAIC_LISTED(name, factory), by name.
#define MOSAIC_LISTED(name, factory) std::unique_ptr<Policy> factory(const PolicySettings& settings);
#include "policy/policies.def"
#undef MOSAIC_LISTED

std::unique_ptr<Policy> make_policy(const std::string& wanted, const PolicySettings& settings) {
  std::unique_ptr<Policy> made;
#define MOSAIC_LISTED(name, factory) \
  if (wanted == name) made = factory(settings);
#include "policy/policies.def"
#undef MOSAIC_LISTED
  if (made != nullptr) {
    made->note_settings(settings);
    return made;
  }
  std::string known;
  for (const std::string& name : policy_names()) known += (known.empty() ? "" : ", ") + name;
  throw InvalidInput("policy=\"" + wanted + "\" is not known; there are " + known + ".");
}

void Policy::note_settings(const PolicySettings& settings) {
  std::vector<std::string> given;
  for (const auto& [name, value] : settings) {
    char digits[32];
    const double* const number = value.number();  // as short as gives it again
    given.push_back(name + "=" +
                    (number == nullptr
                         ? *value.word()
                         : std::string(digits, std::to_chars(digits, digits + sizeof digits, *number).ptr)));
  }
  std::sort(given.begin(), given.end());
  settings_text_.clear();
  for (const std::string& one : given) settings_text_ += (settings_text_.empty() ? "" : " ") + one;
}

std::vector<std::string> policy_names() {
  return {
#define MOSAIC_LISTED(name, factory) name,
#include "policy/policies.def"
#undef MOSAIC_LISTED
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

bool is_set_to(const PolicySettings& settings, const char* name, const char* word) {
  return std::any_of(settings.begin(), settings.end(), [&](const auto& s) {
    return s.first == name && s.second.word() != nullptr && *s.second.word() == word;
  });
}

PolicySettings without(PolicySettings settings, const char* name) {
  std::erase_if(settings, [&](const auto& s) { return s.first == name; });
  return settings;
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

SettingReader& SettingReader::choice(const char* name, int* value, std::span<const char* const> words) {
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
  if (wide != std::floor(wide))
    throw InvalidInput(std::string("policy ") + policy_ + ": " + name + "=" + std::to_string(wide) +
                       " must be a whole number.");
  *value = static_cast<int>(wide);
  return *this;
}

SettingReader& SettingReader::flag(const char* name, bool* value) {
  double wide = *value ? 1 : 0;
  number(name, &wide, 0, 1);
  if (wide != 0 && wide != 1)
    throw InvalidInput(std::string("policy ") + policy_ + ": " + name + "=" + std::to_string(wide) +
                       " must be 0 or 1.");
  *value = wide != 0;
  return *this;
}

void SettingReader::finish() const {
  if (left_.empty()) return;
  throw InvalidInput(std::string("policy ") + policy_ + " has no setting \"" + left_.front().first + "\"; it has " +
                     (known_.empty() ? "none" : known_) + ".");
}

}  // namespace mosaic
