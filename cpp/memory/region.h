// Region: the memory a session takes from its device: shared memory, which host and kernels read and write, and where
// kernels have memory of their own, some of that. Both are taken once, at exactly the planned size, and cut by name while
// the session is built; nothing is ever given back before the whole is. rows() is the account of who holds what. A plan
// adds rounded() of every piece and so knows the sizes before anything is allocated.
// Not thread-safe: used while a session is built, by one thread. Pieces are borrowed; the Device must outlive this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "backend/device.h"

namespace mosaic {

class Region {
 public:
  static constexpr size_t kAlignment = 64;
  static constexpr int kMaxRows = 64;
  static constexpr size_t kNameBytes = 40;  // longer names are cut short
  struct Row {
    char name[kNameBytes];
    size_t bytes;  // as taken from the region, rounded
  };

  // What a piece of `bytes` takes from the region.
  static constexpr size_t rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  // Counts what would be taken, and has no memory.
  explicit Region(bool has_private) { shared_.capacity = SIZE_MAX / 4, private_.capacity = has_private ? SIZE_MAX / 4 : 0; }
  size_t used_private() const { return private_.used; }
  // Throws DeviceError when the device does not have the bytes.
  Region(Device& device, size_t shared_bytes, size_t private_bytes = 0);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // n zeroed objects, 64-byte aligned, booked under `name` (the same name adds up). Objects are never constructed nor
  // destroyed: the memory may lie on a card. Throws MemoryCapError when it does not fit, which is a defect of the plan.
  template <class T>
  T* take(const char* name, size_t n) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= kAlignment);
    return reinterpret_cast<T*>(take_bytes(&shared_, name, n, sizeof(T)));
  }
  // The same of the memory that kernels alone reach.
  std::byte* take_private(const char* name, size_t bytes) { return take_bytes(&private_, name, bytes, 1); }
  bool has_private() const { return private_.capacity > 0; }

  size_t used() const { return shared_.used + private_.used; }
  size_t capacity() const { return shared_.capacity + private_.capacity; }
  size_t left() const { return capacity() - used(); }
  std::span<const Row> rows() const { return {rows_, static_cast<size_t>(row_count_)}; }

 private:
  struct Slab {
    std::byte* base = nullptr;
    size_t capacity = 0;
    size_t used = 0;
  };
  std::byte* take_bytes(Slab* slab, const char* name, size_t n, size_t object_bytes);

  Device* device_ = nullptr;
  Slab shared_, private_;
  int row_count_ = 0;
  Row rows_[kMaxRows] = {};
};

}  // namespace mosaic
