// Region: the memory a session takes from its device: shared memory, which host and kernels read and write, and where
// kernels have memory of their own, some of that. Both are taken once, at exactly the planned size, and cut by name while
// the session is built; nothing is ever given back before the whole is. rows() is the account of who holds what.
//
// A counting region gives nothing and has no end: every piece of it is null, and its account is what the same code would
// take of a real one. So a part says once what it takes - where it takes it - and a plan builds the parts on a counting
// region to know the sizes before anything is allocated. A part that writes into its pieces asks is_counting() first.
// Not thread-safe: used while a session is built, by one thread. Pieces are borrowed; the Device must outlive this.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>

#include "backend/device.h"
#include "core/size.h"

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
  static constexpr size_t rounded(Size bytes) { return bytes.rounded_up(kAlignment).bytes(); }

  // Throws DeviceError when the device does not have the bytes.
  Region(Device& device, size_t shared_bytes, size_t private_bytes = 0);
  // has_private: kernels have memory of their own.
  static Region counting(bool has_private = false) { return Region(has_private); }
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // n zeroed objects, 64-byte aligned, booked under `name` (the same name adds up). Objects are never constructed nor
  // destroyed: the memory may lie on a card. Throws MemoryCapError when it does not fit, which is a defect of the plan.
  template <class T>
  T* take(const char* name, Size n) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= kAlignment);
    return reinterpret_cast<T*>(take_bytes(&shared_, name, n * sizeof(T)));
  }
  // n copies of `value`.
  template <class T>
  T* take(const char* name, Size n, const T& value) {
    T* const piece = take<T>(name, n);
    if (!is_counting()) std::fill_n(piece, n.value(), value);
    return piece;
  }
  // Bytes that kernels alone reach.
  std::byte* take_private(const char* name, Size bytes) { return take_bytes(&private_, name, bytes); }
  // Bytes of those where there are some, else of the shared ones: what kernels read and the host does not.
  std::byte* take_for_kernels(const char* name, Size bytes) {
    return take_bytes(has_private_ ? &private_ : &shared_, name, bytes);
  }
  bool has_private() const { return has_private_; }
  bool is_counting() const { return device_ == nullptr; }

  size_t used() const { return (Size(shared_.used) + private_.used).bytes(); }
  size_t private_used() const { return private_.used; }
  size_t capacity() const { return (Size(shared_.capacity) + private_.capacity).bytes(); }
  size_t left() const { return capacity() - used(); }
  std::span<const Row> rows() const { return {rows_, static_cast<size_t>(row_count_)}; }

 private:
  struct Slab {
    std::byte* base = nullptr;
    size_t capacity = 0;
    size_t used = 0;
  };
  explicit Region(bool has_private) : has_private_(has_private) {}
  std::byte* take_bytes(Slab* slab, const char* name, Size wanted);
  Row& row_of(const char* name);

  Device* device_ = nullptr;
  bool has_private_ = false;
  Slab shared_, private_;
  int row_count_ = 0;
  int last_row_ = 0;  // pieces of one name come in runs
  Row rows_[kMaxRows] = {};
};

}  // namespace mosaic
