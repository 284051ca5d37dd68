#include "core/error.h"

#include <cmath>
#include <cstdio>

namespace mosaic {

namespace {

std::string text_of(uint64_t bytes, bool up) {
  static const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024.0 && unit < 4) {
    value /= 1024.0;
    ++unit;
  }
  if (up && unit > 0) value = std::ceil(value * 10) / 10;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

}  // namespace

std::string format_bytes(uint64_t bytes) { return text_of(bytes, false); }
std::string format_bytes_up(uint64_t bytes) { return text_of(bytes, true); }

}  // namespace mosaic
