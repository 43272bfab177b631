#include "worker/trainer/model/layer_norm.h"

#include <cmath>

#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/row_loops.h"

namespace longspan::trainer {
namespace {

struct RowStatistics {
  float mean, inverse_deviation;
};

template <typename T>
RowStatistics StatisticsOf(const T* __restrict x, double epsilon, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += static_cast<float>(x[i]);
  const float mean = sum / static_cast<float>(size);
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < size; ++i) {
    const float centred = static_cast<float>(x[i]) - mean;
    squares += centred * centred;
  }
  return {mean, 1.0f / std::sqrt(squares / static_cast<float>(size) + static_cast<float>(epsilon))};
}

template <typename T>
void LayerNormRow(const T* __restrict x, const T* __restrict weight, const T* __restrict bias, RowStatistics row,
                  int64_t size, T* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float normal = (static_cast<float>(x[i]) - row.mean) * row.inverse_deviation;
    out[i] = static_cast<T>(normal * static_cast<float>(weight[i]) + static_cast<float>(bias[i]));
  }
}

// With n = (x - mean)·r (r the inverse deviation) and g = w∘dy: dx = r·(g − mean(g) − n·mean(g∘n)).
template <typename T>
void LayerNormBackwardRow(const T* __restrict x, const T* __restrict weight, RowStatistics row, const T* __restrict dy,
                          int64_t size, T* __restrict dx) {
  float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < size; ++i) {
    const float g = static_cast<float>(dy[i]) * static_cast<float>(weight[i]);
    sum += g;
    dot += g * (static_cast<float>(x[i]) - row.mean) * row.inverse_deviation;
  }
  const float mean_g = sum / static_cast<float>(size);
  const float mean_dot = dot / static_cast<float>(size);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = static_cast<float>(dy[i]) * static_cast<float>(weight[i]);
    const float normal = (static_cast<float>(x[i]) - row.mean) * row.inverse_deviation;
    dx[i] = static_cast<T>(static_cast<float>(dx[i]) + row.inverse_deviation * (g - mean_g - normal * mean_dot));
  }
}

// sum: d values of the weight, then d of the bias.
template <typename T>
void AddGradientRow(const T* __restrict x, RowStatistics row, const T* __restrict dy, int64_t size,
                    float* __restrict sum) {
  float* __restrict bias_sum = sum + size;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float d = static_cast<float>(dy[i]);
    sum[i] += d * (static_cast<float>(x[i]) - row.mean) * row.inverse_deviation;
    bias_sum[i] += d;
  }
}

}  // namespace

void LayerNorm(const at::Tensor& x, const LayerNormWeights& weights, const at::Tensor& out,
               const at::Tensor& statistics) {
  const int64_t size = x.size(1);
  TORCH_CHECK(out.sizes() == x.sizes() && weights.weight.numel() == size && weights.bias.numel() == size, "norm of ",
              x.sizes(), " into ", out.sizes());
  if (x.is_cuda()) {
    gpu::LayerNorm(x, weights.weight, weights.bias, weights.epsilon, out, statistics);
    return;
  }
  auto* kept = statistics.defined() ? statistics.data_ptr<float>() : nullptr;
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(x);
    const auto to = RowsOf<T>(out);
    const T* weight = weights.weight.data_ptr<T>();
    const T* bias = weights.bias.data_ptr<T>();
    ForRowRanges(x.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const RowStatistics of_row = StatisticsOf(in[row], weights.epsilon, size);
        if (kept != nullptr) {
          kept[2 * row] = of_row.mean;
          kept[2 * row + 1] = of_row.inverse_deviation;
        }
        LayerNormRow(in[row], weight, bias, of_row, size, to[row]);
      }
    });
  });
}

void LayerNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& statistics,
                       const at::Tensor& out_gradient, const LayerNormGradients& gradients) {
  if (x.is_cuda()) {
    gpu::LayerNormBackward(x, weight, statistics, out_gradient,
                           {gradients.x, /*adds=*/true, gradients.weight, gradients.bias, gradients.scratch});
    return;
  }
  const int64_t size = x.size(1);
  const bool trains = gradients.weight.defined();
  GradientSums sums(trains, 2 * size, gradients.scratch);
  const float* kept = statistics.data_ptr<float>();
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(x);
    const auto dy = RowsOf<T>(out_gradient);
    const auto dx = RowsOf<T>(gradients.x);
    const T* w = weight.data_ptr<T>();
    sums.ForRows(x.size(0), [&](int64_t row, float* sum) {
      const RowStatistics of_row{kept[2 * row], kept[2 * row + 1]};
      if (sum != nullptr) AddGradientRow(in[row], of_row, dy[row], size, sum);
      LayerNormBackwardRow(in[row], w, of_row, dy[row], size, dx[row]);
    });
  });
  if (!trains) return;
  sums.AddTo(gradients.weight, 0);
  sums.AddTo(gradients.bias, size);
}

}  // namespace longspan::trainer
