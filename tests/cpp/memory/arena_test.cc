// Region and Arena: exact bytes, every slot its own.
#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "memory/arena.h"
#include "memory/region.h"
#include "support/allocation_counter.h"
#include "support/memory_fakes.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

// Host memory an arena asks for, aligned.
struct Memory {
  explicit Memory(size_t bytes) : words((bytes + 7) / 8 + 8) {}
  std::byte* data() {
    const auto at = reinterpret_cast<uintptr_t>(words.data());
    return reinterpret_cast<std::byte*>((at + 63) / 64 * 64);
  }
  std::vector<uint64_t> words;
};

std::string message_of(auto&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST_CASE("a region takes exactly the planned bytes in one allocation and gives them back") {
  CountingDevice device;
  const size_t plan = Region::rounded(1) + Region::rounded(64) + Region::rounded(7 * sizeof(double)) +
                      Region::rounded(0) + Region::rounded(65);
  CHECK(plan == 64 + 64 + 64 + 0 + 128);
  {
    Region region(device, plan);
    CHECK(device.allocations == 1);
    CHECK(device.live == plan);
    char* const one = region.take<char>("one", 1);
    std::byte* const block = region.take<std::byte>("block", 64);
    double* const seven = region.take<double>("seven", 7);
    region.take<int>("nothing", 0);
    CHECK(region.left() == 128);
    std::byte* const more = region.take<std::byte>("block", 65);
    CHECK(region.used() == region.capacity());
    CHECK(region.left() == 0);
    for (const void* piece :
         {static_cast<void*>(one), static_cast<void*>(block), static_cast<void*>(seven), static_cast<void*>(more)}) {
      CHECK(reinterpret_cast<uintptr_t>(piece) % 64 == 0);
    }
    CHECK(block == reinterpret_cast<std::byte*>(one) + 64);
    for (int i = 0; i < 7; ++i) CHECK(seven[i] == 0.0);
    for (int i = 0; i < 65; ++i) more[i] = std::byte{0xff};  // its last byte is ours to write
    REQUIRE(region.rows().size() == 4);
    CHECK(std::string(region.rows()[0].name) == "one");
    CHECK(region.rows()[0].bytes == 64);
    CHECK(std::string(region.rows()[1].name) == "block");
    CHECK(region.rows()[1].bytes == 64 + 128);
    CHECK(region.rows()[3].bytes == 0);
    size_t total = 0;
    for (const auto& row : region.rows()) total += row.bytes;
    CHECK(total == region.used());
    CHECK(device.allocations == 1);
  }
  CHECK(device.live == 0);
}

TEST_CASE("a region refuses one byte too many, naming who, need and have, and stays as it was") {
  CountingDevice device;
  Region region(device, 256);
  region.take<std::byte>("window", 192);
  const std::string message = message_of([&] { region.take<std::byte>("centroids", 65); });
  CHECK(message.find("centroids needs 128 B") != std::string::npos);
  CHECK(message.find("256 B has 64 B left") != std::string::npos);
  CHECK(message.find("memory=") != std::string::npos);
  CHECK_THROWS_AS(region.take<double>("wrap", SIZE_MAX / 4), MemoryCapError);
  CHECK_THROWS_AS(region.take<std::byte>("wrap", SIZE_MAX), MemoryCapError);
  CHECK(region.used() == 192);
  CHECK(region.rows().size() == 1);
  region.take<std::byte>("centroids", 64);
  CHECK(region.left() == 0);
}

TEST_CASE("a region's account holds 64 names, cuts long ones and refuses the 65th unchanged") {
  CountingDevice device;
  Region region(device, 100 * 64);
  for (int i = 0; i < Region::kMaxRows; ++i) region.take<int>(("row " + std::to_string(i)).c_str(), 1);
  CHECK_THROWS_AS(region.take<int>("one more", 1), InvariantError);
  CHECK(region.used() == 64 * 64);
  region.take<int>("row 13", 1);
  CHECK(region.rows()[13].bytes == 128);
  Region other(device, 256);
  const std::string name(100, 'x');
  other.take<int>(name.c_str(), 1);
  other.take<int>(name.c_str(), 1);
  CHECK(other.rows().size() == 1);
  CHECK(std::string(other.rows()[0].name) == name.substr(0, Region::kNameBytes - 1));
}

TEST_CASE("a region without bytes allocates nothing, and a device without bytes is an error that holds nothing") {
  CountingDevice device;
  {
    Region region(device, 0);
    CHECK(device.allocations == 0);
    CHECK_THROWS_AS(region.take<char>("one", 1), MemoryCapError);
  }
  device.limit = 100;
  CHECK_THROWS_AS(Region(device, 128), DeviceError);
  CHECK(device.live == 0);
}

TEST_CASE("a counting region gives nothing, never ends, and counts what a real one would give") {
  for (const bool apart : {false, true}) {
    const auto take = [&](Region& region) {
      region.take<double>("seven", 7);
      region.take<int32_t>("ones", 5, 1);
      region.take_for_kernels("rope", 65);
      if (region.has_private()) region.take_private("pages", 1);
      return region.take<char>("seven", 3);
    };
    Region counted = Region::counting(apart);
    CHECK(take(counted) == nullptr);
    CHECK(counted.used() == 128 + 64 + 128 + (apart ? 64 : 0));
    CHECK(counted.private_used() == (apart ? 128 + 64 : 0));
    CountingDevice device;
    Region region(device, counted.used() - counted.private_used(), counted.private_used());
    CHECK(take(region) != nullptr);
    CHECK(region.left() == 0);
    REQUIRE(region.rows().size() == counted.rows().size());
    for (size_t i = 0; i < region.rows().size(); ++i) {
      CHECK(std::string(region.rows()[i].name) == counted.rows()[i].name);
      CHECK(region.rows()[i].bytes == counted.rows()[i].bytes);
    }
  }
  Region counted = Region::counting();
  counted.take<double>("too many", SIZE_MAX / 4);
  counted.take<double>("more", 1);
  CHECK(counted.used() == static_cast<size_t>(Size::kMost));  // it does not come round to a small number
}

TEST_CASE("an arena fills every slot and finds every byte again, for odd sizes") {
  for (const int slots : {1, 5, 7, 13, 63, 64, 65, 200}) {
    for (const size_t bytes : {size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{832}}) {
      Memory memory(Arena::bytes_for(slots, bytes) + 8);
      std::byte* const guard = memory.data() + Arena::bytes_for(slots, bytes);
      fill(guard, 8, 99);
      Arena arena(slots, bytes, memory.data());
      CHECK(arena.capacity_bytes() == static_cast<size_t>(slots) * ((bytes + 63) / 64 * 64));
      for (int i = 0; i < slots; ++i) {
        REQUIRE(arena.try_acquire() == i);  // from the lowest address at the start
        CHECK(reinterpret_cast<uintptr_t>(arena.address(i)) % 64 == 0);
        fill(arena.address(i), bytes, static_cast<uint64_t>(i) + 1);
      }
      CHECK(arena.try_acquire() == kNone);
      CHECK(arena.free_slots() == 0);
      CHECK(arena.used_slots() == slots);
      for (int i = 0; i < slots; ++i) CHECK(holds(arena.address(i), bytes, static_cast<uint64_t>(i) + 1));
      arena.check_invariants();
      CHECK(holds(guard, 8, 99));
    }
  }
}

TEST_CASE("the slot released last is given out first") {
  Memory memory(Arena::bytes_for(8, 64));
  Arena arena(8, 64, memory.data());
  for (int i = 0; i < 8; ++i) arena.try_acquire();
  for (const SlotId slot : {3, 6, 1}) arena.release(slot);
  CHECK(arena.try_acquire() == 1);
  CHECK(arena.try_acquire() == 6);
  CHECK(arena.try_acquire() == 3);
  CHECK(arena.peak_used() == 8);
}

TEST_CASE("a slot released twice, or never acquired, or out of range is caught and changes nothing") {
  Memory memory(Arena::bytes_for(70, 64));
  Arena arena(70, 64, memory.data());
  const SlotId slot = arena.try_acquire();
  arena.release(slot);
  for (const SlotId wrong : {slot, 69, 70, -1, 1 << 30}) CHECK_THROWS_AS(arena.release(wrong), InvariantError);
  CHECK(arena.free_slots() == 70);
  arena.check_invariants();
  CHECK(message_of([&] { arena.release(69); }).find("slot 69 of 70") != std::string::npos);
}

TEST_CASE("an arena of no slots or no bytes is refused; a default one is always full") {
  Memory memory(1024);
  CHECK_THROWS_AS(Arena(0, 64, memory.data()), InvalidInput);
  CHECK_THROWS_AS(Arena(-1, 64, memory.data(), memory.data()), InvalidInput);
  CHECK_THROWS_AS(Arena(1, 0, memory.data()), InvalidInput);
  Arena none;
  CHECK(none.try_acquire() == kNone);
  CHECK(none.capacity_bytes() == 0);
  none.check_invariants();
}

TEST_CASE("check_invariants sees a damaged free list") {
  const int slots = 10;
  Memory slab(Arena::slab_bytes(slots, 64)), lists(Arena::list_bytes(slots));
  Arena arena(slots, 64, slab.data(), lists.data());
  const SlotId used = arena.try_acquire();
  arena.check_invariants();
  auto* const listed = reinterpret_cast<SlotId*>(lists.data() + sizeof(uint64_t));
  const SlotId first = listed[0];
  for (const SlotId bad : {listed[1], used, slots, -1}) {  // twice, in use, no slot
    listed[0] = bad;
    CHECK_THROWS_AS(arena.check_invariants(), InvariantError);
    listed[0] = first;
    arena.check_invariants();  // the check itself left everything as it was
  }
  auto* const bits = reinterpret_cast<uint64_t*>(lists.data());
  *bits |= uint64_t{1} << used;  // free by its bit, in no list
  CHECK_THROWS_AS(arena.check_invariants(), InvariantError);
}

TEST_CASE("random acquires and releases keep the arena's invariants, repeat exactly and allocate nothing") {
  std::vector<SlotId> histories[2];
  for (auto& history : histories) {
    const int slots = 130;
    Memory memory(Arena::bytes_for(slots, 96));
    Arena arena(slots, 96, memory.data());
    std::mt19937 random(7);
    std::vector<SlotId> held;
    held.reserve(slots);
    history.reserve(20000);
    int peak = 0;
    bool bytes_kept = true, one_owner = true;
    std::vector<bool> owned(slots);
    const AllocationScope scope;
    for (int step = 0; step < 20000; ++step) {
      // Drift between nearly empty and full.
      const bool acquire = random() % 100 < (step / 2000 % 2 == 0 ? 60u : 40u);
      if (acquire) {
        const SlotId slot = arena.try_acquire();
        history.push_back(slot);
        if (slot == kNone) {
          one_owner = one_owner && static_cast<int>(held.size()) == slots;
          continue;
        }
        one_owner = one_owner && !owned[slot];
        owned[slot] = true;
        fill(arena.address(slot), 96, static_cast<uint64_t>(slot) * 3 + 1);
        held.push_back(slot);
        peak = static_cast<int>(held.size()) > peak ? static_cast<int>(held.size()) : peak;
      } else if (!held.empty()) {
        const size_t at = random() % held.size();
        const SlotId slot = held[at];
        bytes_kept = bytes_kept && holds(arena.address(slot), 96, static_cast<uint64_t>(slot) * 3 + 1);
        held[at] = held.back();
        held.pop_back();
        owned[slot] = false;
        arena.release(slot);
      }
      if (step % 64 == 0) arena.check_invariants();
    }
    const uint64_t made = scope.count();
    CHECK(made == 0);
    CHECK(bytes_kept);
    CHECK(one_owner);
    CHECK(arena.used_slots() == static_cast<int>(held.size()));
    CHECK(arena.peak_used() == peak);
    CHECK(peak == slots);
    arena.check_invariants();
  }
  CHECK(histories[0] == histories[1]);
}

}  // namespace
