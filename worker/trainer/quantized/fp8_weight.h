// A frozen weight in 8 bits (kernels/fp8_rows), and the products with it: `training.fp8`.
//
// It is kept twice, with a scale of each output for y = x·Wᵀ, and transposed, with a scale of each input, for
// dx = dy·W: tensor cores read 8-bit operands along what is summed over, and a scale can only be taken out of a sum
// that it is the same for. Together that is the bytes of bf16, and 4 for each scale.
//
// x and dy are quantized row by row (token by token) before a product, both in e4m3: a scale of each row gives the
// range that e5m2 has its fifth exponent bit for, and with two bits of mantissa its roundings would be twice as large.
// What a row has below 2^-19 of its largest value is lost. tests/trainer/model/fp8_test.cc holds a model's loss, logits
// and gradients to the error that such roundings may make, and a short training to the one in bf16.
//
// On a GPU products are at::_scaled_mm, which wants compute capability 8.9, bf16 out, and k and m in multiples of 16.
// On a CPU, where that knows one scale of a whole matrix only, the codes are turned back and multiplied in fp32, in
// memory of their own: the same numbers but for the order of sums, for tests, not for speed.
//
// Values that are cheap to copy: copies share their tensors. Thread-safe. Legend: n rows (tokens).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

namespace longspan::trainer {

struct Fp8Rows {
  at::Tensor codes;   // (n, k) float8_e4m3fn, contiguous
  at::Tensor scales;  // (n) fp32
};

struct Fp8Weight {
  Fp8Rows by_output;  // (out, in)
  Fp8Rows by_input;   // (in, out)

  int64_t inputs() const { return by_output.codes.size(1); }
  int64_t bytes() const;
};

// weight (out, in), fp32 or bf16, on any device. UserError naming `name` when a value is not finite.
Fp8Weight QuantizeFp8(const at::Tensor& weight, const std::string& name);

// x (n, k), fp32 or bf16, last stride 1, into rows of its size on its device. A row that is not finite gets a scale
// that is not.
void QuantizeRows(const at::Tensor& x, const Fp8Rows& to);

// out (n, m) = left (n, k) · rightᵀ, right (m, k); overwritten, contiguous; sums in fp32.
void MultiplyFp8(const Fp8Rows& left, const Fp8Rows& right, const at::Tensor& out);

}  // namespace longspan::trainer
