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
  if (specs[0].place == Place::disk) refuse("the first must be in memory, got disk");
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].slots <= 0) {
      refuse("tier " + std::to_string(i) + " (" + place_name(specs[i].place) + ") needs at least 1 slot, got " +
             std::to_string(specs[i].slots));
    }
    if (i == 0) continue;
    const bool two_disks = specs[i].place == Place::disk && specs[i - 1].place == Place::disk;
    if (specs[i].place < specs[i - 1].place || two_disks) {
      refuse(std::string("must go device, host, disk with one disk at most; got ") + place_name(specs[i].place) +
             " after " + place_name(specs[i - 1].place));
    }
  }
}

}  // namespace

const char* place_name(Place place) {
  switch (place) {
    case Place::device:
      return "device";
    case Place::host:
      return "host";
    case Place::disk:
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
    std::snprintf(name, sizeof name, "pages %s %s", place_name(spec.place), codec_name(spec.codec));
    if (spec.place == Place::disk) {
      auto* const memory = region.take<std::byte>("spill checksums", SpillFile::bytes_for(spec.slots));
      if (!region.is_counting()) spill_.emplace(spill_dir, slot_bytes_[tier], spec.slots, memory, io);
      continue;
    }
    const bool apart = region.has_private() && spec.place == Place::device;
    const size_t bytes = apart ? data_bytes(spec.codec, shape) : slot_bytes_[tier];
    const size_t slab_bytes = Arena::slab_bytes(spec.slots, bytes);
    auto* const slab = apart ? region.take_private(name, slab_bytes) : region.take<std::byte>(name, slab_bytes);
    if (apart) meta_[tier] = region.take<TokenMeta>("page meta", Size(spec.slots) * kPageTokens);
    auto* const lists = region.take<std::byte>("free lists", Arena::list_bytes(spec.slots));
    if (!region.is_counting()) arenas_[tier] = Arena(spec.slots, bytes, slab, lists);
  }
}

void TierChain::check_invariants() const {
  for (int tier = 0; tier < size_; ++tier) {
    if (!is_disk(tier)) arenas_[tier].check_invariants();
  }
  if (spill_) spill_->check_invariants();
}

}  // namespace mosaic
