// Sums into fp32 gradients, without temporary tensors: ATen's own operators convert a whole operand first where the
// dtypes differ.
//
// fp32 or bf16 operands, any strides unless said. Sums over rows come in a fixed order, so they do not depend on the
// number of threads. Legend: n rows, d columns.
#pragma once

#include <ATen/ATen.h>

namespace longspan::trainer {

// sum (n, d) fp32 += scale * x (n, d). Both of any strides.
void AddScaled(const at::Tensor& x, double scale, const at::Tensor& sum);

// sum (d) fp32 += the sum over the rows of x (n, d), last stride 1. scratch (planner::kColumnSumParts, d) fp32, on a
// GPU (planner::kGpuColumnSumParts, d).
void AddColumnSums(const at::Tensor& x, const at::Tensor& sum, const at::Tensor& scratch);

// table (V, d) fp32: row ids[i] += x[i], for i in order. ids (n) int64, x (n, d); last strides 1.
void AddRows(const at::Tensor& ids, const at::Tensor& x, const at::Tensor& table);

// The sum of the squares of all values of a tensor of one or two dimensions with last stride 1, in fp64.
double SumOfSquares(const at::Tensor& values);

}  // namespace longspan::trainer
