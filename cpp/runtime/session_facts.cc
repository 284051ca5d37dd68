#include "runtime/session_facts.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "core/error.h"
#include "memory/crc32c.h"

namespace mosaic {

namespace {

constexpr size_t kLongest = 512;  // of a name or a value, that is read

std::string text(int value) { return std::to_string(value); }
std::string text(uint64_t value) { return std::to_string(value); }
std::string text(bool value) { return value ? "yes" : "no"; }
std::string text(const std::string& value) { return value; }
std::string text(CodecId value) { return codec_name(value); }
std::string text(const std::optional<CodecId>& value) { return value ? codec_name(*value) : "none"; }
std::string text(double value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};  // as short as gives this number again
}
std::string text(Positions value) {
  return value == Positions::kOriginal ? "original" : value == Positions::kContiguous ? "contiguous" : "auto";
}
std::string text(Overflow value) { return value == Overflow::kRefuse ? "refuse" : "saturate"; }

std::string sections_text(const RopeSpec& rope) {
  return text(rope.sections[0]) + "/" + text(rope.sections[1]) + "/" + text(rope.sections[2]) +
         (rope.sections_interleaved ? " interleaved" : "") + (rope.grid_follows_time ? " from the picture" : "");
}

std::string rope_text(const ModelShape& m) {
  const RopeSpec& rope = m.rope;
  std::string all = text(static_cast<int>(rope.layout)) + " " + text(rope.rotary_dim) + " " + text(double{rope.theta}) +
                    " " + sections_text(rope);
  if (m.frequencies != nullptr) {
    char sum[16];
    std::snprintf(sum, sizeof sum, " %08x", crc32c(m.frequencies->data(), m.frequencies->size() * sizeof(double)));
    all += sum;
  }
  return all;
}

std::string tiers_text(const Plan& plan) {
  std::string all;
  for (const TierSpec& tier : plan.store.tiers)
    all += (all.empty() ? "" : ", ") + std::string(medium_name(tier.medium)) + " " + codec_name(tier.codec) + " " +
           text(tier.slots);
  return all;
}

}  // namespace

std::vector<SessionFact> session_facts(const Plan& plan, const Policy& policy) {
  std::vector<SessionFact> facts;
  const auto add = [&](const char* name, const auto& value, const char* knob) {
    facts.push_back({name, text(value), knob});
  };
  constexpr const char* kModel = "the model";
  const ModelShape& m = plan.config.model;
  add("layers", m.layers, kModel);
  add("query heads", m.q_heads, kModel);
  add("KV heads", m.kv_heads, kModel);
  add("head_dim", m.head_dim, kModel);
  add("scale", double{m.scale}, kModel);
  add("rope", rope_text(m), kModel);
  add("embedding_dim", m.embedding_dim, kModel);
  add("tokens_per_frame", m.frame_tokens, "tokens_per_frame=, or the model");
  add("video_window", m.video_window, kModel);
  add("context", m.context, kModel);
  add("policy", std::string(policy.name()), "policy=");
  add("policy_settings", policy.settings_text(), "policy_settings=");
  add("memory", plan.config.cap_bytes, "memory=");  // before what follows from it
  for_each_setting(plan.config, [&](const char* name, const auto& value) {
    if (std::string(name) != "spill_dir" && std::string(name) != "cap_bytes")
      add(name, value, "the setting of that name");
  });
  constexpr const char* kSizes = "backend=, kernel_threads= or the version of mosaic_edge";
  add("tiers", tiers_text(plan), kSizes);
  add("lanes", plan.window.lanes, kSizes);
  add("pages of a log", plan.log.pages, kSizes);
  add("pages of an archive", plan.archive.pages, kSizes);
  add("read copies", plan.store.fetch_slots, kSizes);
  add("frames of the window", plan.window.frames, kSizes);
  add("bytes in all", plan.total_bytes, kSizes);
  add("bytes of kernels alone", plan.private_bytes, kSizes);
  return facts;
}

void serialize_facts(Snapshot& s, const std::vector<SessionFact>& facts) {
  s.section("FACT");
  const auto text_of = [&](std::string value) {
    auto n = static_cast<uint32_t>(std::min(value.size(), kLongest));
    s.in_range(n, 0, kLongest, "the length of a fact");
    value.resize(n);
    s.bytes(value.data(), n);
    return value;
  };
  auto count = static_cast<uint32_t>(facts.size());
  s.in_range(count, count, count, "the number of facts");
  for (const SessionFact& fact : facts) {
    const std::string name = text_of(fact.name), value = text_of(fact.value);
    s.require(name == fact.name, "facts come in one order");
    if (value != fact.value.substr(0, kLongest))
      throw InvalidInput("snapshot: " + fact.name + " is '" + printable(value) + "' in the file and '" + fact.value +
                         "' in this session. Change " + fact.knob + ", or begin a new session.");
  }
}

}  // namespace mosaic
