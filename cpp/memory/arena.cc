#include "memory/arena.h"

#include <cstring>
#include <string>

#include "core/error.h"

namespace mosaic {

Arena::Arena(int slots, size_t slot_bytes, void* slab, void* lists)
    : slots_(slots),
      free_count_(slots),
      slot_bytes_(slot_bytes),
      slab_(static_cast<std::byte*>(slab)),
      free_bits_(static_cast<uint64_t*>(lists)) {
  if (slots <= 0 || slot_bytes == 0) {
    throw InvalidInput("an arena needs at least one slot of one byte; got " + std::to_string(slots) + " of " +
                       std::to_string(slot_bytes) + " bytes");
  }
  free_ = reinterpret_cast<SlotId*>(free_bits_ + words(slots));
  std::memset(free_bits_, 0, words(slots) * sizeof(uint64_t));
  for (SlotId slot = 0; slot < slots; ++slot) {
    free_bits_[slot / 64] |= uint64_t{1} << (slot % 64);
    free_[slots - 1 - slot] = slot;  // slot 0 on top
  }
}

void Arena::release(SlotId slot) {
  if (!is_used(slot)) {
    throw InvariantError("arena: slot " + std::to_string(slot) + " of " + std::to_string(slots_) +
                         " was released and is not in use");
  }
  free_bits_[slot / 64] |= uint64_t{1} << (slot % 64);
  free_[free_count_++] = slot;
}

void Arena::check_invariants() const {
  // Take each listed slot's bit away; one that is gone already was listed twice. Then put them back.
  int listed = 0;
  while (listed < free_count_) {
    const SlotId slot = free_[listed];
    if (slot < 0 || slot >= slots_ || is_used(slot)) break;
    free_bits_[slot / 64] &= ~(uint64_t{1} << (slot % 64));
    ++listed;
  }
  uint64_t unlisted = 0;
  for (size_t w = 0; w < words(slots_); ++w) unlisted |= free_bits_[w];
  for (int i = 0; i < listed; ++i) free_bits_[free_[i] / 64] |= uint64_t{1} << (free_[i] % 64);
  if (listed != free_count_) {
    throw InvariantError("arena: slot " + std::to_string(free_[listed]) + " is listed free but used, twice or no slot");
  }
  if (unlisted != 0) throw InvariantError("arena: a free slot is in no list");
  if (free_count_ < 0 || free_count_ > slots_ || peak_used_ < used_slots()) {
    throw InvariantError("arena: " + std::to_string(free_count_) + " free of " + std::to_string(slots_) +
                         " slots, peak " + std::to_string(peak_used_));
  }
}

}  // namespace mosaic
