// bfloat16 on the host, for the references: the upper half of an fp32 value, rounded to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels {

struct Bfloat16 {
  uint16_t bits = 0;

  Bfloat16() = default;
  explicit Bfloat16(float value) {
    const auto whole = std::bit_cast<uint32_t>(value);
    if (std::isnan(value)) {
      bits = static_cast<uint16_t>((whole >> 16) | 0x40u);  // stays one
    } else {
      bits = static_cast<uint16_t>((whole + 0x7fffu + ((whole >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// Runs body(T{}) with the host type of an element.
template <typename Body>
void WithHostType(ElementType type, Body body) {
  if (type == ElementType::kFloat32) {
    body(float{});
  } else {
    body(Bfloat16{});
  }
}

}  // namespace longspan::kernels
