#include "worker/trainer/model/row_sums.h"

#include "worker/trainer/model/row_loops.h"

namespace longspan::trainer {
namespace {

template <typename T>
void AddRow(const T* __restrict x, float scale, int64_t size, float* __restrict sum) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) sum[i] += scale * static_cast<float>(x[i]);
}

}  // namespace

void AddScaled(const at::Tensor& x, double scale, const at::Tensor& sum) {
  TORCH_CHECK(x.dim() == 2 && x.sizes() == sum.sizes() && sum.scalar_type() == at::kFloat, "adding ", x.sizes(), " to ",
              sum.sizes());
  const auto factor = static_cast<float>(scale);
  float* const to = sum.data_ptr<float>();
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const T* const from = x.data_ptr<T>();
    const bool contiguous = x.stride(1) == 1 && sum.stride(1) == 1;
    ForRowRanges(x.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (contiguous) {
          AddRow(from + row * x.stride(0), factor, x.size(1), to + row * sum.stride(0));
          continue;
        }
        for (int64_t column = 0; column < x.size(1); ++column) {
          to[row * sum.stride(0) + column * sum.stride(1)] +=
              factor * static_cast<float>(from[row * x.stride(0) + column * x.stride(1)]);
        }
      }
    });
  });
}

void AddColumnSums(const at::Tensor& x, const at::Tensor& sum, const at::Tensor& scratch) {
  const int64_t size = x.size(1);
  GradientSums sums(/*wanted=*/true, size, scratch);
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(x);
    sums.ForRows(x.size(0), [&](int64_t row, float* part) { AddRow(in[row], 1, size, part); });
  });
  sums.AddTo(sum, 0);
}

void AddRows(const at::Tensor& ids, const at::Tensor& x, const at::Tensor& table) {
  TORCH_CHECK(ids.dim() == 1 && x.size(0) == ids.size(0) && table.size(1) == x.size(1), "adding rows ", x.sizes(),
              " of ", ids.sizes(), " to ", table.sizes());
  const int64_t* const id = ids.data_ptr<int64_t>();
  const auto to = RowsOf<float>(table);
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto from = RowsOf<T>(x);
    // Threads share the columns, so that every sum has its order.
    ForRowRanges(x.size(1), /*grain=*/64, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < x.size(0); ++row) AddRow(from[row] + begin, 1, end - begin, to[id[row]] + begin);
    });
  });
}

}  // namespace longspan::trainer
