// Arena: one slab of memory cut into equal slots when it is built. It never grows, so its capacity is the memory cap.
// Full is normal: try_acquire() gives kNone and the policy yields something. The slot released last is given out first
// (it is the warmest), from the lowest address at the start, so two runs with one history give the same slots.
// The slab may lie on a card; the lists are always host memory. Both are the caller's and outlive the arena.
// A slot must be released only after the copies that use it have finished. Not thread-safe: KvMemory holds the lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/ids.h"
#include "memory/snapshot.h"

namespace mosaic {

class Arena {
 public:
  // Slots start at multiples of 64 bytes.
  static constexpr size_t stride_of(size_t slot_bytes) { return (slot_bytes + 63) / 64 * 64; }
  static constexpr size_t slab_bytes(int slots, size_t slot_bytes) {
    return static_cast<size_t>(slots) * stride_of(slot_bytes);
  }
  static constexpr size_t list_bytes(int slots) { return words(slots) * sizeof(uint64_t) + slots * sizeof(SlotId); }
  // Slab and lists in one piece, the slab first.
  static constexpr size_t bytes_for(int slots, size_t slot_bytes) {
    return slab_bytes(slots, slot_bytes) + list_bytes(slots);
  }

  Arena() = default;  // no slots
  // slab: slab_bytes(), lists: list_bytes(), 8-byte aligned. Throws InvalidInput on a negative or zero size.
  Arena(int slots, size_t slot_bytes, void* slab, void* lists);
  // memory: bytes_for() bytes of the host.
  Arena(int slots, size_t slot_bytes, void* memory)
      : Arena(slots, slot_bytes, memory, static_cast<std::byte*>(memory) + slab_bytes(slots, slot_bytes)) {}

  SlotId try_acquire() {
    if (free_count_ == 0) return kNone;
    const SlotId slot = free_[--free_count_];
    free_bits_[slot / 64] &= ~(uint64_t{1} << (slot % 64));
    if (used_slots() > peak_used_) peak_used_ = used_slots();
    return slot;
  }
  // Throws InvariantError when the slot is not in use; nothing is changed then.
  void release(SlotId slot);

  std::byte* address(SlotId slot) const { return slab_ + static_cast<size_t>(slot) * stride_of(slot_bytes_); }
  bool is_used(SlotId slot) const {
    return slot >= 0 && slot < slots_ && (free_bits_[slot / 64] >> (slot % 64) & 1) == 0;
  }
  int slots() const { return slots_; }
  int free_slots() const { return free_count_; }
  int used_slots() const { return slots_ - free_count_; }
  int peak_used() const { return peak_used_; }
  size_t slot_bytes() const { return slot_bytes_; }
  size_t capacity_bytes() const { return slab_bytes(slots_, slot_bytes_); }

  void serialize(Snapshot& s) { s.in_range(peak_used_, used_slots(), slots_, "most slots of a tier that were used"); }
  // Throws InvariantError unless every slot is either in use or listed free exactly once.
  void check_invariants() const;

 private:
  static constexpr size_t words(int slots) { return (static_cast<size_t>(slots) + 63) / 64; }

  int slots_ = 0;
  int free_count_ = 0;
  int peak_used_ = 0;
  size_t slot_bytes_ = 0;
  std::byte* slab_ = nullptr;
  uint64_t* free_bits_ = nullptr;  // bit set: the slot is free. Makes a double release an error instead of a corruption
  SlotId* free_ = nullptr;         // [slots], a stack of free_count_
};

}  // namespace mosaic
