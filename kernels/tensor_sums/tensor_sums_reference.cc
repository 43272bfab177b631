#include "kernels/common/bfloat16.h"
#include "kernels/tensor_sums/tensor_sums.h"

namespace longspan::kernels::tensor_sums {

void AddScaledReference(const AddScaledArguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t row = 0; row < arguments.rows; ++row) {
      for (int64_t column = 0; column < arguments.columns; ++column) {
        const T x =
            static_cast<const T*>(arguments.x)[row * arguments.x_row_stride + column * arguments.x_column_stride];
        arguments.sum[row * arguments.sum_row_stride + column * arguments.sum_column_stride] +=
            arguments.scale * static_cast<float>(x);
      }
    }
  });
}

void ColumnSumsReference(const ColumnSumsArguments& arguments) {
  WithHostType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t column = 0; column < arguments.columns; ++column) {
      double sum = 0;
      for (int64_t row = 0; row < arguments.rows; ++row) {
        sum += static_cast<float>(static_cast<const T*>(arguments.x)[row * arguments.row_stride + column]);
      }
      arguments.sum[column] += static_cast<float>(sum);
    }
  });
}

double SquaredNormReference(const Span* spans, int64_t count) {
  double sum = 0;
  for (const Span* span = spans; span != spans + count; ++span) {
    for (int64_t i = 0; i < span->elements; ++i) {
      const double value = span->data[i];
      sum += value * value;
    }
  }
  return sum;
}

}  // namespace longspan::kernels::tensor_sums
