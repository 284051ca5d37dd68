// Region: the one device allocation a session makes for memory of one place. It is taken once, at exactly the planned
// size, and cut by name while the session is built; nothing is ever given back before the whole is. rows() is the
// account of who holds what. A plan adds rounded() of every piece and so knows the size before anything is allocated.
// Not thread-safe: used while a session is built, by one thread. Pieces are borrowed; the Device must outlive this.
#pragma once

#include <cstddef>
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

  // Throws DeviceError when the device does not have the bytes.
  Region(Device& device, size_t bytes);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // n zeroed objects, 64-byte aligned, booked under `name` (the same name adds up). Objects are never constructed nor
  // destroyed: the memory may lie on a card. Throws MemoryCapError when it does not fit, which is a defect of the plan.
  template <class T>
  T* take(const char* name, size_t n) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= kAlignment);
    return reinterpret_cast<T*>(take_bytes(name, n, sizeof(T)));
  }

  size_t used() const { return used_; }
  size_t capacity() const { return capacity_; }
  size_t left() const { return capacity_ - used_; }
  std::span<const Row> rows() const { return {rows_, static_cast<size_t>(row_count_)}; }

 private:
  std::byte* take_bytes(const char* name, size_t n, size_t object_bytes);

  Device* device_;
  std::byte* base_ = nullptr;
  size_t capacity_;
  size_t used_ = 0;
  int row_count_ = 0;
  Row rows_[kMaxRows] = {};
};

}  // namespace mosaic
