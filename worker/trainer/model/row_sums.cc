#include "worker/trainer/model/row_sums.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/row_loops.h"

namespace longspan::trainer {
namespace {

template <typename T>
void AddRow(const T* __restrict x, float scale, int64_t size, float* __restrict sum) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) sum[i] += scale * static_cast<float>(x[i]);
}

template <typename T>
double SquaresOf(const T* __restrict x, int64_t size) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    const auto value = static_cast<double>(static_cast<float>(x[i]));
    sum += value * value;
  }
  return sum;
}

}  // namespace

double SumOfSquares(const at::Tensor& values) {
  if (values.is_cuda()) return gpu::SumOfSquares({values});
  const at::Tensor rows = values.dim() == 2 ? values : values.view({1, -1});
  constexpr int64_t kParts = planner::kColumnSumParts;
  double parts[kParts] = {};
  ForDtype(rows.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(rows);
    const int64_t rows_per_part = (rows.size(0) + kParts - 1) / kParts;
    ForRowRanges(kParts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t row = part * rows_per_part; row < std::min(rows.size(0), (part + 1) * rows_per_part); ++row) {
          parts[part] += SquaresOf(in[row], rows.size(1));
        }
      }
    });
  });
  return std::accumulate(std::begin(parts), std::end(parts), 0.0);
}

void AddScaled(const at::Tensor& x, double scale, const at::Tensor& sum) {
  TORCH_CHECK(x.dim() == 2 && x.sizes() == sum.sizes() && sum.scalar_type() == at::kFloat, "adding ", x.sizes(), " to ",
              sum.sizes());
  if (x.is_cuda()) {
    gpu::AddScaled(x, scale, sum);
    return;
  }
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
  if (x.is_cuda()) {
    gpu::AddColumnSums(x, sum, scratch);
    return;
  }
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
  if (x.is_cuda()) {
    gpu::AddRows(ids, x, table);
    return;
  }
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
