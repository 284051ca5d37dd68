// CRC32C: the published values, and the instruction against the tables.
#include <doctest/doctest.h>

#include <vector>

#include "memory/crc32c.h"
#include "support/memory_fakes.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

TEST_CASE("CRC32C gives the published values, by table and by instruction") {
  std::vector<unsigned char> zeros(32, 0), ones(32, 0xff), up(32), down(32);
  for (int i = 0; i < 32; ++i) up[i] = static_cast<unsigned char>(i), down[i] = static_cast<unsigned char>(31 - i);
  // RFC 3720, B.4, and the check value of the polynomial.
  for (const auto crc : {&crc32c, &crc32c_portable}) {
    CHECK(crc("123456789", 9, 0) == 0xe3069283u);
    CHECK(crc(zeros.data(), 32, 0) == 0x8a9136aau);
    CHECK(crc(ones.data(), 32, 0) == 0x62a8ab43u);
    CHECK(crc(up.data(), 32, 0) == 0x46dd794eu);
    CHECK(crc(down.data(), 32, 0) == 0x113fdb5cu);
    CHECK(crc("", 0, 0) == 0u);
    CHECK(crc("6789", 4, crc("12345", 5, 0)) == 0xe3069283u);
  }
  MESSAGE("CRC32C in hardware: ", crc32c_in_hardware());
}

TEST_CASE("the CRC32C instruction equals the tables at every length and alignment") {
  std::vector<std::byte> data(600);
  fill(data.data(), data.size(), 5);
  for (size_t start = 0; start < 9; ++start) {
    for (size_t length = 0; length < 300; length += length < 40 ? 1 : 37) {
      CHECK(crc32c(data.data() + start, length) == crc32c_portable(data.data() + start, length));
    }
  }
}

}  // namespace
