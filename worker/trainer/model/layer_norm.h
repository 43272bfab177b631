// LayerNorm over rows, as row_kernels.h does RMSNorm: fp32 or bf16, last stride 1, fp32 sums in a fixed order. The
// variance is of the centred row (two passes), which cancels nothing where the mean is large.
//
// Legend: N rows, d features.
#pragma once

#include <ATen/ATen.h>

namespace longspan::trainer {

struct LayerNormWeights {
  at::Tensor weight, bias;  // (d)
  double epsilon = 0;
};

// out = (x - mean) / sqrt(variance + epsilon) * weight + bias. x, out (N, d); statistics (N, 2) fp32: mean and inverse
// deviation of each row, undefined when not wanted.
void LayerNorm(const at::Tensor& x, const LayerNormWeights& weights, const at::Tensor& out,
               const at::Tensor& statistics);

struct LayerNormGradients {
  at::Tensor x;             // (N, d), added to
  at::Tensor weight, bias;  // (d) fp32, added to; undefined when frozen, both or neither
  at::Tensor scratch{};     // (planner::kColumnSumParts, 2d) fp32 for their sums; undefined: memory of its own
};
void LayerNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& statistics,
                       const at::Tensor& out_gradient, const LayerNormGradients& gradients);

}  // namespace longspan::trainer
