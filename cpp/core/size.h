// Size: a number of things or of bytes that cannot wrap. A sum or product that would pass 63 bits stays at the most there
// is, and so does a number below zero: no room is ever large enough for it, so it is refused where it is used, by name.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"

namespace mosaic {

class Size {
 public:
  static constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

  constexpr Size() = default;
  template <std::integral T>
  constexpr Size(T n)  // NOLINT: sizes are written as numbers
      : n_(std::cmp_less(n, 0) || std::cmp_greater(n, kMost) ? kMost : static_cast<int64_t>(n)) {}

  friend constexpr Size operator+(Size a, Size b) {
    int64_t sum = 0;
    return __builtin_add_overflow(a.n_, b.n_, &sum) ? kMost : sum;
  }
  friend constexpr Size operator*(Size a, Size b) {
    int64_t product = 0;
    return __builtin_mul_overflow(a.n_, b.n_, &product) ? kMost : product;
  }
  friend constexpr auto operator<=>(Size a, Size b) = default;
  // Up to the next multiple of `step`.
  constexpr Size rounded_up(int64_t step) const { return n_ > kMost - step ? kMost : (n_ + step - 1) / step * step; }

  constexpr int64_t value() const { return n_; }
  constexpr size_t bytes() const { return static_cast<size_t>(n_); }
  // As an int. what: whose number it is, as the error names it. Throws InvalidInput.
  int to_int(const char* what) const {
    if (n_ <= std::numeric_limits<int>::max()) return static_cast<int>(n_);
    throw InvalidInput(std::string(what) + " would be " + (n_ == kMost ? "beyond any number" : std::to_string(n_)) +
                       "; at most 2147483647 can be counted.");
  }

 private:
  int64_t n_ = 0;
};

}  // namespace mosaic
