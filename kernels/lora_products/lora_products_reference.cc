#include <algorithm>

#include "kernels/common/bfloat16.h"
#include "kernels/lora_products/lora_products.h"

namespace longspan::kernels::lora_products {
namespace {

float At(const void* matrix, int64_t index) { return static_cast<float>(static_cast<const Bfloat16*>(matrix)[index]); }

}  // namespace

void ProjectReference(const ProjectArguments& arguments) {
  for (int64_t row = 0; row < arguments.rows; ++row) {
    for (int64_t rank = 0; rank < arguments.ranks; ++rank) {
      float sum = 0;
      for (int64_t feature = 0; feature < arguments.features; ++feature) {
        sum += At(arguments.x, row * arguments.x_stride + feature) *
               At(arguments.factor, rank * arguments.factor_rank_stride + feature * arguments.factor_feature_stride);
      }
      static_cast<Bfloat16*>(arguments.out)[row * arguments.out_stride + rank] = Bfloat16(sum);
    }
  }
}

// All in the first part; the others are zero.
void OuterReference(const OuterArguments& arguments) {
  std::fill_n(arguments.sums, arguments.parts * arguments.ranks * arguments.columns, 0.0f);
  for (int64_t row = 0; row < arguments.rows; ++row) {
    for (int64_t rank = 0; rank < arguments.ranks; ++rank) {
      const float left = At(arguments.left, row * arguments.left_stride + rank);
      for (int64_t column = 0; column < arguments.columns; ++column) {
        arguments.sums[rank * arguments.columns + column] +=
            left * At(arguments.right, row * arguments.right_stride + column);
      }
    }
  }
}

void AddOuterReference(const AddOuterArguments& arguments) {
  for (int64_t rank = 0; rank < arguments.gradient_ranks; ++rank) {
    for (int64_t column = 0; column < arguments.columns; ++column) {
      float sum = 0;
      for (int64_t part = 0; part < arguments.parts; ++part) {
        sum += arguments.sums[(part * arguments.ranks + arguments.first_rank + rank) * arguments.columns + column];
      }
      arguments.gradient[rank * arguments.gradient_rank_stride + column * arguments.gradient_column_stride] +=
          arguments.scale * sum;
    }
  }
}

}  // namespace longspan::kernels::lora_products
