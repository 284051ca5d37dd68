#include "memory/tier.h"

#include <cstdio>

#include "core/error.h"

namespace mosaic {
namespace {

void validate(std::span<const TierSpec> specs) {
  const auto refuse = [](const std::string& what) { throw InvalidInput("tiers: " + what + ". Change tiers="); };
  if (specs.empty() || specs.size() > TierChain::kMaxTiers) {
    refuse("need 1 to " + std::to_string(TierChain::kMaxTiers) + ", got " + std::to_string(specs.size()));
  }
  if (specs[0].medium == Medium::disk) refuse("the first must be in memory, got disk");
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].slots <= 0) {
      refuse("tier " + std::to_string(i) + " (" + medium_name(specs[i].medium) + ") needs at least 1 slot, got " +
             std::to_string(specs[i].slots));
    }
    if (i == 0) continue;
    const bool two_disks = specs[i].medium == Medium::disk && specs[i - 1].medium == Medium::disk;
    if (specs[i].medium < specs[i - 1].medium || two_disks) {
      refuse(std::string("must go device, host, disk with one disk at most; got ") + medium_name(specs[i].medium) +
             " after " + medium_name(specs[i - 1].medium));
    }
  }
}

}  // namespace

const char* medium_name(Medium medium) {
  switch (medium) {
    case Medium::device:
      return "device";
    case Medium::host:
      return "host";
    case Medium::disk:
      return "disk";
  }
  return "?";
}

TierChain::TierChain(std::span<const TierSpec> specs, PageShape shape, Region& region, const std::string& spill_dir,
                     SpillIo* io) {
  validate(specs);
  for (const TierSpec& spec : specs) {
    const int tier = size_++;
    specs_[tier] = spec;
    slot_bytes_[tier] = page_bytes(spec.codec, shape);
    char name[Region::kNameBytes];
    std::snprintf(name, sizeof name, "pages %s %s", medium_name(spec.medium), codec_name(spec.codec));
    if (spec.medium == Medium::disk) {
      auto* const memory = region.take<std::byte>("spill checksums", SpillFile::bytes_for(spec.slots));
      if (!region.is_counting()) spill_.emplace(spill_dir, slot_bytes_[tier], spec.slots, memory, io);
      continue;
    }
    const bool apart = region.has_private() && spec.medium == Medium::device;
    const size_t bytes = apart ? data_bytes(spec.codec, shape) : slot_bytes_[tier];
    const size_t slab_bytes = Arena::slab_bytes(spec.slots, bytes);
    auto* const slab = apart ? region.take_private(name, slab_bytes) : region.take<std::byte>(name, slab_bytes);
    if (apart) meta_[tier] = region.take<TokenMeta>("page meta", Size(spec.slots) * kPageTokens);
    auto* const lists = region.take<std::byte>("free lists", Arena::list_bytes(spec.slots));
    if (!region.is_counting()) arenas_[tier] = Arena(spec.slots, bytes, slab, lists);
  }
}

int TierChain::acquire_hottest(SlotId* slot) {
  for (int tier = 0; tier < size_ && !is_disk(tier); ++tier) {
    *slot = acquire(tier);
    if (*slot != kNone) return tier;
  }
  return kNone;
}

int TierChain::free_dram_slots() const {
  int n = 0;
  for (int tier = 0; tier < size_; ++tier)
    if (!is_disk(tier)) n += free_slots(tier);
  return n;
}

void TierChain::serialize(Snapshot& s) {
  for (int tier = 0; tier < size_; ++tier) is_disk(tier) ? spill_->serialize(s) : arenas_[tier].serialize(s);
}

void TierChain::check_invariants() const {
  for (int tier = 0; tier < size_; ++tier) {
    if (!is_disk(tier)) arenas_[tier].check_invariants();
  }
  if (spill_) spill_->check_invariants();
}

}  // namespace mosaic
