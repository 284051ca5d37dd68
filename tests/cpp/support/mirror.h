// Copies of what an op's arguments point at, in memory of a device: what MirrorOps makes for each call.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "backend/backend.h"

namespace mosaic::testing {

// One call's copies. Pointers to nothing stay null.
class Mirror {
 public:
  explicit Mirror(Device& device) : device_(device) {}
  Mirror(const Mirror&) = delete;
  ~Mirror() {
    try {
      device_.wait(device_.record());  // an op that refused leaves copies in the stream
    } catch (const std::exception&) {
    }
    for (const Copy& copy : copies_) device_.release(copy.there, copy.bytes);
  }
  template <class T>
  const T* in(const T* host, size_t n) {
    return host == nullptr || n == 0 ? nullptr : static_cast<const T*>(copy(host, nullptr, n * sizeof(T)));
  }
  template <class T>
  T* inout(T* host, size_t n) {
    return host == nullptr || n == 0 ? nullptr : static_cast<T*>(copy(host, host, n * sizeof(T)));
  }
  RopeTable rope(const RopeTable& table) {
    const size_t bytes = RopeTable::bytes_for(table.spec(), table.max_position());
    if (bytes == 0) return table;
    return table.at(copy(table.fine(0), nullptr, bytes));
  }
  // Until the copies have run.
  std::vector<PageEntry>& keep(std::vector<PageEntry> pages) {
    kept_.push_back(std::make_unique<std::vector<PageEntry>>(std::move(pages)));
    return *kept_.back();
  }
  // After the op: the results.
  void back() {
    for (const Copy& copy : copies_) {
      if (copy.host != nullptr) device_.copy_async(copy.host, copy.there, copy.bytes);
    }
    device_.wait(device_.record());
  }

 private:
  struct Copy {
    void* there;
    void* host;
    size_t bytes;
  };
  void* copy(const void* from, void* to, size_t bytes) {
    void* const there = device_.allocate_private(bytes);
    copies_.push_back({there, to, bytes});
    device_.copy_async(there, from, bytes);
    return there;
  }
  Device& device_;
  std::vector<Copy> copies_;
  std::vector<std::unique_ptr<std::vector<PageEntry>>> kept_;
};

inline size_t extent(int rows, size_t stride, int width) {
  return rows == 0 ? 0 : static_cast<size_t>(rows - 1) * stride + static_cast<size_t>(width);
}
inline size_t size_of(int n) { return static_cast<size_t>(n); }
inline size_t table_rows(const int32_t* rows, int n) {
  if (rows == nullptr) return size_of(n);
  return n == 0 ? 0 : size_of(*std::max_element(rows, rows + n) + 1);
}

}  // namespace mosaic::testing
