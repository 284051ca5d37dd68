// TierChain: exact bytes, and that every tier gives out its own slots.
#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "memory/tier.h"
#include "support/allocation_counter.h"
#include "support/counted.h"
#include "support/memory_fakes.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

constexpr PageShape kShape{3, 20};

size_t bytes_of(const std::vector<TierSpec>& specs) {
  return counted([&](Region& region) { TierChain(specs, kShape, region, "/nowhere"); });
}

std::string refusal(std::vector<TierSpec> specs) {
  try {
    bytes_of(specs);
  } catch (const InvalidInput& error) {
    return error.what();
  }
  return "accepted";
}

TEST_CASE("a chain takes exactly what it counted from its region, and not one byte less will do") {
  const std::vector<std::vector<TierSpec>> chains = {
      {{Medium::device, CodecId::kFp16, 1}},
      {{Medium::device, CodecId::kFp32, 65}, {Medium::device, CodecId::kInt8, 7}},
      {{Medium::device, CodecId::kInt4, 13}, {Medium::disk, CodecId::kInt4, 1000}},
      {{Medium::device, CodecId::kFp16, 5},
       {Medium::device, CodecId::kInt8, 64},
       {Medium::host, CodecId::kInt4, 63},
       {Medium::disk, CodecId::kInt8, 129}},
  };
  for (const auto& specs : chains) {
    TemporaryDirectory directory;
    CountingDevice device;
    const size_t bytes = bytes_of(specs);
    {
      Region region(device, bytes);
      TierChain chain(specs, kShape, region, directory.path);
      CHECK(region.left() == 0);
      CHECK(device.allocations == 1);
      CHECK(chain.size() == static_cast<int>(specs.size()));
      for (int tier = 0; tier < chain.size(); ++tier) {
        CHECK(chain.slot_bytes(tier) == page_bytes(specs[static_cast<size_t>(tier)].codec, kShape));
        CHECK(chain.free_slots(tier) == specs[static_cast<size_t>(tier)].slots);
        CHECK(chain.used_bytes(tier) == 0);
        CHECK(chain.colder(tier) == (tier + 1 < chain.size() ? tier + 1 : kNone));
      }
      CHECK((chain.spill() != nullptr) == (specs.back().medium == Medium::disk));
      chain.check_invariants();
    }
    {
      Region region(device, bytes - 64);
      CHECK_THROWS_AS(TierChain(specs, kShape, region, directory.path), MemoryCapError);
    }
    CHECK(device.live == 0);
  }
}

TEST_CASE("the region's account names every tier") {
  TemporaryDirectory directory;
  CountingDevice device;
  const std::vector<TierSpec> specs = {
      {Medium::device, CodecId::kFp16, 4}, {Medium::host, CodecId::kInt4, 8}, {Medium::disk, CodecId::kInt4, 16}};
  Region region(device, bytes_of(specs));
  const TierChain chain(specs, kShape, region, directory.path);
  REQUIRE(region.rows().size() == 4);
  CHECK(std::string(region.rows()[0].name) == "pages device fp16");
  CHECK(region.rows()[0].bytes == 4 * page_bytes(CodecId::kFp16, kShape));
  CHECK(std::string(region.rows()[1].name) == "free lists");
  CHECK(std::string(region.rows()[2].name) == "pages host int4");
  CHECK(std::string(region.rows()[3].name) == "spill checksums");
}

TEST_CASE("a chain that cannot work is refused and the message names the knob") {
  const TierSpec dram{Medium::device, CodecId::kFp16, 4}, host{Medium::host, CodecId::kInt8, 4},
      disk{Medium::disk, CodecId::kInt4, 4};
  CHECK(refusal({dram, host, disk}) == "accepted");
  for (const auto& specs : std::vector<std::vector<TierSpec>>{{},
                                                              {disk},
                                                              {dram, disk, disk},
                                                              {dram, disk, host},
                                                              {host, dram},
                                                              {dram, dram, host, host, disk},
                                                              {dram, {Medium::host, CodecId::kInt8, 0}},
                                                              {dram, {Medium::disk, CodecId::kInt8, -1}}}) {
    const std::string message = refusal(specs);
    CAPTURE(message);
    CHECK(message.starts_with("tiers:"));
    CHECK(message.find("tiers=") != std::string::npos);
  }
  CountingDevice device;
  Region region(device, 1 << 20);
  const std::vector<TierSpec> specs = {dram, disk};
  CHECK_THROWS_AS(TierChain(specs, kShape, region, "/nowhere/at/all"), SpillError);
}

TEST_CASE("pages walk down the chain and back, every tier keeps its own, and nothing allocates") {
  TemporaryDirectory directory;
  CountingDevice device;
  const std::vector<TierSpec> specs = {
      {Medium::device, CodecId::kInt8, 6}, {Medium::host, CodecId::kInt8, 11}, {Medium::disk, CodecId::kInt8, 40}};
  Region region(device, bytes_of(specs));
  TierChain chain(specs, kShape, region, directory.path);
  const size_t bytes = chain.slot_bytes(0);
  struct Held {
    int tier;
    SlotId slot;
    uint64_t seed;
  };
  std::vector<Held> pages;
  pages.reserve(57);
  std::vector<std::byte> page(bytes);
  std::mt19937 random(11);
  const auto load = [&](const Held& held) {
    if (chain.is_disk(held.tier)) return chain.spill()->read(held.slot, page.data()) == Status::ok;
    std::memcpy(page.data(), chain.page(held.tier, held.slot).meta, bytes);
    return true;
  };
  const auto store = [&](int tier, SlotId slot) {
    if (chain.is_disk(tier)) return chain.spill()->write(slot, page.data()) == Status::ok;
    std::memcpy(chain.page(tier, slot).meta, page.data(), bytes);
    return true;
  };
  int wrong = 0, moves = 0, full = 0;
  uint64_t serial = 0;
  const AllocationScope scope;
  for (int step = 0; step < 10000; ++step) {
    const unsigned what = random() % 10;
    if (what < 3 || pages.empty()) {
      const SlotId slot = chain.acquire(0);
      if (slot == kNone) {
        ++full;
      } else {
        fill(page.data(), bytes, ++serial);
        wrong += store(0, slot) ? 0 : 1;
        pages.push_back({0, slot, serial});
      }
    } else {
      const size_t at = random() % pages.size();
      Held& held = pages[at];
      wrong += load(held) && holds(page.data(), bytes, held.seed) ? 0 : 1;
      if (what == 9) {
        chain.release(held.tier, held.slot);
        held = pages.back();
        pages.pop_back();
      } else {
        const int tier = what < 7 ? chain.colder(held.tier) : held.tier - 1;
        const SlotId slot = tier < 0 ? kNone : chain.acquire(tier);
        if (slot != kNone) {
          wrong += store(tier, slot) ? 0 : 1;
          chain.release(held.tier, held.slot);
          held.tier = tier;
          held.slot = slot;
          ++moves;
        }
      }
    }
    int counts[3] = {};
    for (const Held& held : pages) ++counts[held.tier];
    for (int tier = 0; tier < 3; ++tier) {
      wrong += chain.used_slots(tier) == counts[tier] ? 0 : 1;
      wrong += chain.used_bytes(tier) == static_cast<size_t>(counts[tier]) * bytes ? 0 : 1;
    }
    if (step % 100 == 0) chain.check_invariants();
  }
  const uint64_t made = scope.count();
  CHECK(made == 0);
  CHECK(wrong == 0);
  CHECK(moves > 1000);
  CHECK(full > 0);
  for (int tier = 0; tier < 3; ++tier) CHECK(chain.peak_used(tier) <= specs[static_cast<size_t>(tier)].slots);
  CHECK(chain.peak_used(0) == 6);
}

}  // namespace
