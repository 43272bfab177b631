// Sums into fp32: what gradients are added up with.
//
//   AddScaled        sum (rows, columns) += scale · x, both by strides, either of which may be transposed
//   ColumnSums       sum (columns) += the sum over the rows of x
//   SquaredNorm      the sum of the squares of many tensors: the global norm is its root
//
// Sums over rows and over tensors go into a fixed number of parts that are added up in order, those of squares in fp64:
// the same inputs and parts give the same bits. Strides in elements.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::tensor_sums {

struct AddScaledArguments {
  ElementType type = ElementType::kFloat32;  // of x
  int64_t rows = 0, columns = 0;
  const void* x = nullptr;
  int64_t x_row_stride = 0, x_column_stride = 1;
  float* sum = nullptr;
  int64_t sum_row_stride = 0, sum_column_stride = 1;
  float scale = 1;
};

struct ColumnSumsArguments {
  ElementType type = ElementType::kFloat32;
  int64_t rows = 0, columns = 0;
  const void* x = nullptr;  // (rows, columns), rows row_stride apart
  int64_t row_stride = 0;
  int64_t parts = 1;      // at least 1, at most 65,535
  float* work = nullptr;  // workspace (parts, columns)
  float* sum = nullptr;   // (columns), added to
};

struct Span {
  const float* data = nullptr;
  int64_t elements = 0;
};
inline constexpr int64_t kNormParts = 1024;

void AddScaledReference(const AddScaledArguments& arguments);
void ColumnSumsReference(const ColumnSumsArguments& arguments);
double SquaredNormReference(const Span* spans, int64_t count);

}  // namespace longspan::kernels::tensor_sums
