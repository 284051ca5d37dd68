// IEEE half precision as bits, converted in plain arithmetic so that host, device and every compiler agree.
// Kernels use the instruction sets' own conversions; these are the truth they must equal.
#pragma once

#include <bit>
#include <cstdint>

#if defined(__CUDACC__)
#define MOSAIC_HD __host__ __device__
#else
#define MOSAIC_HD
#endif

namespace mosaic {

using half_t = uint16_t;  // bits of an IEEE binary16
constexpr float kMostHalf = 65504.0f;

MOSAIC_HD inline float half_to_float(half_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return sign != 0 ? -value : value;
  }
  const uint32_t bits =
      exponent == 31 ? sign | 0x7f800000u | (mantissa << 13) : sign | ((exponent + 112) << 23) | (mantissa << 13);
  return std::bit_cast<float>(bits);
}

// Round to nearest even; overflow becomes infinity, NaN stays NaN.
MOSAIC_HD inline half_t float_to_half(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<half_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<half_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal half: let the float adder round at 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<half_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<half_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

// A number that is not negative, as the nearest half that is finite; NaN is 0. What is sorted by it has an order.
MOSAIC_HD inline half_t finite_half(float f) { return float_to_half(f > 0 ? (f < kMostHalf ? f : kMostHalf) : 0.0f); }

}  // namespace mosaic
