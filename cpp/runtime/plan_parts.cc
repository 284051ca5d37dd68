#include "runtime/plan_parts.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "core/error.h"

namespace mosaic {

namespace {

// Rows of the account, the part they belong to, and what makes that part smaller.
struct PartOfPlan {
  std::string_view row;  // begins with
  const char* part;
  const char* knob;
};
constexpr const char* kWindowKnob = "window_frames= or branch_tokens=";
constexpr const char* kReadKnob = "retrieve_tokens= or disk=";
constexpr const char* kPagesKnob = "max_cluster_tokens= or disk=";
constexpr const char* kIndexKnob = "clusters=, scenes= or disk=";
constexpr const char* kPolicyKnob = "the policy's settings or clusters=";
constexpr PartOfPlan kParts[] = {
    {"window", "window and question", kWindowKnob},
    {"selections", "selections", kReadKnob},
    {"rope", "rope", "retrieve_tokens=, or take positions=\"contiguous\""},
    {"kernel scratch", "kernel scratch", "kernel_threads= or branch_tokens="},
    {"staging", "staging", kWindowKnob},
    {"frame scratch", "frame scratch", kWindowKnob},
    {"evidence", "evidence", kWindowKnob},
    {"policy", "policy", kPolicyKnob},
    {"token log", "token log", "memory="},
    {"archive", "disk index and copies", "disk= or retrieve_tokens="},
    {"attention received", "attention received", kPolicyKnob},
    {"record scratch", "record scratch", kPolicyKnob},
    {"pages ", "pages", kPagesKnob},
    {"page meta", "pages", kPagesKnob},
    {"free lists", "pages", kPagesKnob},
    {"spill checksums", "pages", kPagesKnob},
    {"index", "index", kIndexKnob},
    {"scenes", "scenes", kIndexKnob},
    {"fetch cache", "fetch cache", kReadKnob},
    {"page table", "page table and split scratch", kPagesKnob},
    {"scratch", "page table and split scratch", kPagesKnob},
    {"spill staging", "page table and split scratch", kPagesKnob},
    {"copy queue", "page table and split scratch", kPagesKnob},
};

}  // namespace

std::vector<Plan::Part> parts_of(std::span<const Region::Row> rows, size_t of_core) {
  std::vector<Plan::Part> parts;
  for (const PartOfPlan& known : kParts)
    if (parts.empty() || parts.back().name != known.part) parts.push_back({known.part, 0, known.knob});
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::string_view row = rows[i].name;
    const auto* const known =
        std::find_if(std::begin(kParts), std::end(kParts), [&](const auto& one) { return row.starts_with(one.row); });
    if (known == std::end(kParts) && i < of_core)
      throw InvariantError("plan: " + std::string(row) + " takes " + format_bytes(rows[i].bytes) +
                           " and belongs to no part; plan_parts.cc lists them.");
    const std::string_view name = known == std::end(kParts) ? row : known->part;
    const auto part = std::find_if(parts.begin(), parts.end(), [&](const auto& one) { return one.name == name; });
    if (part != parts.end())
      part->bytes += rows[i].bytes;
    else
      parts.push_back({std::string(name), rows[i].bytes, kPolicyKnob});
  }
  return parts;
}

}  // namespace mosaic
