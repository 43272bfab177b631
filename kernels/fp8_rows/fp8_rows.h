// Rows of a matrix in 8-bit floating point, each with a scale of its own: what products of tensor cores in 8 bits read.
//
//   scale = max(largest |x| of the row / 448, 2^-100)      code = e4m3(x · (1 / scale))      x ≈ scale · code
//
// e4m3 (arXiv 2209.05433) has 4 bits of exponent and 3 of mantissa, 448 as its largest value and no infinity; the
// nearest value is taken, of two that are equally near the even one. A relative error is at most 2^-4, as long as a
// value is at least 2^-14 of the row's largest; smaller ones lose digits, and those below 2^-19 become 0.
//
// A row with a value that is not finite gets the scale NaN and any codes: what is computed from it is not finite
// either. A zero row has zero codes. Rows may be apart by any stride, in elements; values of a row are next to each
// other. Arithmetic is fp32, and every output depends on its own row alone: the codes and scales of a GPU are the
// reference's bit for bit. Fast where pointers, strides and columns are multiples of 16 bytes.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::fp8_rows {

inline constexpr float kLargest = 448;
inline constexpr float kScaleMin = 0x1p-100f;

struct QuantizeArguments {
  ElementType type = ElementType::kBfloat16;
  int64_t rows = 0, columns = 0;
  const void* x = nullptr;  // (rows, columns)
  int64_t x_stride = 0;
  uint8_t* codes = nullptr;  // (rows, columns)
  int64_t codes_stride = 0;
  float* scales = nullptr;  // (rows)
};

// Of one value: of those beyond ±448 the largest code, of NaN the code of NaN, 0x7f.
uint8_t ToE4m3(float value);
float FromE4m3(uint8_t code);

// On host memory.
void QuantizeReference(const QuantizeArguments& arguments);

}  // namespace longspan::kernels::fp8_rows
