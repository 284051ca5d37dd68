// TierChain: the media a page can lie on, hot to cold, each with its own codec and its own fixed number of slots. DRAM
// tiers are arenas cut from the Region; a disk tier, if there is one, is last and is a SpillFile the chain owns. It
// moves nothing: it only knows where slots are and how many are left.
// Where kernels have memory of their own, the data of pages of Medium::device lies there and their meta in shared
// memory; everywhere else a page is one piece of shared memory.
// Not thread-safe: KvMemory holds the lock. Copies through spill() have SpillFile's own rules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "codec/codec.h"
#include "memory/arena.h"
#include "memory/region.h"
#include "memory/spill_file.h"

namespace mosaic {

enum class Medium : uint8_t { device, host, disk };
const char* medium_name(Medium medium);

struct TierSpec {
  Medium medium;
  CodecId codec;
  int slots;
};

class TierChain {
 public:
  static constexpr int kMaxTiers = 4;

  // specs: 1 to 4 tiers, device before host before disk, the first in DRAM, at most one on disk. spill_dir: where a
  // disk tier's file goes; on a counting region no file is made. Throws InvalidInput, MemoryCapError, or SpillError.
  TierChain(std::span<const TierSpec> specs, PageShape shape, Region& region, const std::string& spill_dir = {},
            SpillIo* io = nullptr);

  int size() const { return size_; }
  const TierSpec& spec(int tier) const { return specs_[tier]; }
  bool is_disk(int tier) const { return specs_[tier].medium == Medium::disk; }
  // The next colder tier, or kNone.
  int colder(int tier) const { return tier + 1 < size_ ? tier + 1 : kNone; }
  Arena& arena(int tier) { return arenas_[tier]; }  // DRAM tiers; a disk tier's arena has no slots
  const Arena& arena(int tier) const { return arenas_[tier]; }
  SpillFile* spill() { return spill_ ? &*spill_ : nullptr; }
  const SpillFile* spill() const { return spill_ ? &*spill_ : nullptr; }

  // kNone when the tier is full.
  SlotId acquire(int tier) { return is_disk(tier) ? spill_->try_acquire() : arenas_[tier].try_acquire(); }
  // The hottest tier of DRAM with a free slot, which is taken; kNone when all are full.
  int acquire_hottest(SlotId* slot);
  void release(int tier, SlotId slot) { is_disk(tier) ? spill_->release(slot) : arenas_[tier].release(slot); }
  // DRAM tiers only.
  PageView page(int tier, SlotId slot) const {
    std::byte* const at = arenas_[tier].address(slot);
    return meta_[tier] != nullptr ? PageView{meta_[tier] + static_cast<size_t>(slot) * kPageTokens, at}
                                  : whole_page(at);
  }
  // The page is one piece of memory that the host reads, as on disk.
  bool is_whole(int tier) const { return meta_[tier] == nullptr; }

  size_t slot_bytes(int tier) const { return slot_bytes_[tier]; }  // one page in this tier's codec, meta included
  int free_slots(int tier) const { return is_disk(tier) ? spill_->free_slots() : arenas_[tier].free_slots(); }
  int free_dram_slots() const;  // of all tiers in DRAM
  int used_slots(int tier) const { return specs_[tier].slots - free_slots(tier); }
  int peak_used(int tier) const { return is_disk(tier) ? spill_->peak_used() : arenas_[tier].peak_used(); }
  size_t used_bytes(int tier) const { return static_cast<size_t>(used_slots(tier)) * slot_bytes_[tier]; }
  size_t capacity_bytes(int tier) const { return static_cast<size_t>(specs_[tier].slots) * slot_bytes_[tier]; }
  // Peaks and counters; pages are their owner's to write.
  void serialize(Snapshot& s);
  void check_invariants() const;

 private:
  int size_ = 0;
  TierSpec specs_[kMaxTiers] = {};
  size_t slot_bytes_[kMaxTiers] = {};
  Arena arenas_[kMaxTiers];
  TokenMeta* meta_[kMaxTiers] = {};  // [slots, kPageTokens] of pages whose data lies apart
  std::optional<SpillFile> spill_;
};

}  // namespace mosaic
