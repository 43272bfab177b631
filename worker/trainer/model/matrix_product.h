// Products of matrices into memory that is given, on the fastest library at hand.
//
// LibTorch's own mm goes to MKL, which on AMD processors uses AVX2 kernels: 105 GFLOP/s a core on a Zen 5 whose oneDNN,
// in the same LibTorch, reaches 220 to 250 through AVX-512. So large fp32 products go to oneDNN where the processor has
// AVX-512; all others to LibTorch. Thread-safe.
#pragma once

#include <ATen/ATen.h>

namespace longspan::trainer {

struct ProductScale {
  double of_out = 0;  // 0: what was in `out` does not matter
  double of_product = 1;
};

// out (m, n) = of_out * out + of_product * a (m, k) · b (k, n). All of one dtype; out does not overlap a and b.
void MultiplyInto(const at::Tensor& a, const at::Tensor& b, const at::Tensor& out, const ProductScale& scale = {});

}  // namespace longspan::trainer
