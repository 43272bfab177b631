#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/common/bfloat16.h"
#include "kernels/fp8_rows/fp8_rows.h"

namespace longspan::kernels::fp8_rows {
namespace {

constexpr uint8_t kNan = 0x7f, kLargestCode = 0x7e;
constexpr float kSmallestNormal = 0x1p-6f;

// Magnitudes; what is not finite counts as infinity.
template <typename T>
float LargestOf(const T* x, int64_t columns) {
  float largest = 0;
  for (int64_t i = 0; i < columns; ++i) {
    const float magnitude = std::abs(static_cast<float>(x[i]));
    largest = std::max(largest, std::isfinite(magnitude) ? magnitude : std::numeric_limits<float>::infinity());
  }
  return largest;
}

}  // namespace

uint8_t ToE4m3(float value) {
  if (std::isnan(value)) return kNan;
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80 : 0);
  const float magnitude = std::min(std::abs(value), kLargest);
  if (magnitude < kSmallestNormal) {
    // Multiples of 2^-9; 8 of them are the smallest normal value, and so is code 8.
    return static_cast<uint8_t>(sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f)));
  }
  // The upper 12 bits of the fp32 value, rounded, with an exponent that counts from -7 instead of -127.
  uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  bits += 0x7ffffu + ((bits >> 20) & 1u);
  return static_cast<uint8_t>(sign |
                              static_cast<uint8_t>(std::min<uint32_t>((bits >> 20) - (120u << 3), kLargestCode)));
}

float FromE4m3(uint8_t code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

void QuantizeReference(const QuantizeArguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      const T* x = static_cast<const T*>(arguments.x) + row * arguments.x_stride;
      uint8_t* codes = arguments.codes + row * arguments.codes_stride;
      const float largest = LargestOf(x, arguments.columns);
      const float scale =
          std::isfinite(largest) ? std::max(largest / kLargest, kScaleMin) : std::numeric_limits<float>::quiet_NaN();
      const float inverse = 1.0f / scale;
      for (int64_t i = 0; i < arguments.columns; ++i) codes[i] = ToE4m3(static_cast<float>(x[i]) * inverse);
      arguments.scales[row] = scale;
    }
  });
}

}  // namespace longspan::kernels::fp8_rows
