// Size: what cannot be counted is never a small number.
#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <string>

#include "core/error.h"
#include "core/size.h"

namespace {

using namespace mosaic;

__extension__ typedef __int128 Wide;

TEST_CASE("sums and products of sizes are those of the numbers, up to the most there is, and stay there") {
  for (const int64_t a : {int64_t{0}, int64_t{1}, int64_t{13}, int64_t{1} << 31, int64_t{1} << 62, Size::kMost})
    for (const int64_t b : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{1} << 33, Size::kMost - 1, Size::kMost}) {
      const Wide sum = static_cast<Wide>(a) + b, product = static_cast<Wide>(a) * b;
      CHECK((Size(a) + b).value() == (sum > Size::kMost ? Size::kMost : static_cast<int64_t>(sum)));
      CHECK((Size(a) * b).value() == (product > Size::kMost ? Size::kMost : static_cast<int64_t>(product)));
    }
  CHECK((Size(SIZE_MAX) * 0).value() == 0);
  CHECK(Size(-1).value() == Size::kMost);
  CHECK(Size(SIZE_MAX).value() == Size::kMost);
}

TEST_CASE("rounding up passes no multiple and never wraps") {
  CHECK(Size(0).rounded_up(64).value() == 0);
  CHECK(Size(1).rounded_up(64).value() == 64);
  CHECK(Size(65).rounded_up(64).value() == 128);
  CHECK(Size(Size::kMost - 1).rounded_up(64).value() == Size::kMost);
}

TEST_CASE("a size that no int holds is refused by the name it was given") {
  CHECK(Size(2147483647).to_int("pages") == 2147483647);
  for (const Size large : {Size(2147483648), Size(1 << 20) * (1 << 20), Size(-5)}) {
    std::string message;
    try {
      large.to_int("pages of a tier");
    } catch (const InvalidInput& error) {
      message = error.what();
    }
    CHECK(message.starts_with("pages of a tier would be "));
  }
}

}  // namespace
