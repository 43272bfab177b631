// What the row kernels share: rows of a tensor by pointer, the element type, and sums over rows. Private to this
// folder.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>

#include "worker/planner/step_buffers.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {

inline constexpr int64_t kRowsPerTask = 16;

template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
};

template <typename T>
Rows<T> RowsOf(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.dim() >= 2 && tensor.stride(-1) == 1, "row kernels want a last stride of 1");
  return {tensor.data_ptr<T>(), tensor.stride(0)};
}

// Runs `body` with a value of the element type.
template <typename Body>
void ForDtype(at::ScalarType dtype, Body body) {
  if (dtype == at::kFloat) {
    body(float{});
  } else {
    TORCH_CHECK(dtype == at::kBFloat16, "row kernels know float32 and bfloat16, not ", dtype);
    body(at::BFloat16{});
  }
}

// Sums over rows in a fixed number of parts, so that the result does not depend on the number of threads.
class GradientSums {
 public:
  // Not wanted: nothing is summed, and the rows are visited with a null sum. `scratch` (kParts, size) fp32 is where the
  // parts lie; undefined: memory of its own.
  GradientSums(bool wanted, int64_t size, const at::Tensor& scratch = {}) {
    if (!wanted) return;
    TORCH_CHECK(!scratch.defined() || (scratch.size(0) == kParts && scratch.size(1) == size), "sums of ", size,
                " columns in ", scratch.sizes());
    partial_ = scratch.defined() ? scratch : at::empty({kParts, size}, at::kFloat);
    partial_.zero_();
  }

  // visit(row, sum) for every row, in parallel over the parts.
  template <typename Visit>
  void ForRows(int64_t rows, Visit visit) {
    const int64_t rows_per_part = (rows + kParts - 1) / kParts;
    ForRowRanges(kParts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        float* sum = partial_.defined() ? partial_.data_ptr<float>() + part * partial_.size(1) : nullptr;
        for (int64_t row = part * rows_per_part; row < std::min(rows, (part + 1) * rows_per_part); ++row) {
          visit(row, sum);
        }
      }
    });
  }
  // gradient (n) fp32 += the sums of columns [first, first + n), where wanted.
  void AddTo(const at::Tensor& gradient, int64_t first) const {
    if (!partial_.defined()) return;
    float* const to = gradient.data_ptr<float>();
    const float* const from = partial_.data_ptr<float>() + first;
    for (int64_t column = 0; column < gradient.numel(); ++column) {
      float sum = 0;
      for (int64_t part = 0; part < kParts; ++part) sum += from[part * partial_.size(1) + column];
      to[column] += sum;
    }
  }

 private:
  static constexpr int64_t kParts = planner::kColumnSumParts;
  at::Tensor partial_;
};

}  // namespace longspan::trainer
