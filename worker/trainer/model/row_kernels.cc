#include "worker/trainer/model/row_kernels.h"

#include <cmath>

#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/row_loops.h"

namespace longspan::trainer {
namespace {

template <typename T>
float SumOfSquares(const T* __restrict x, int64_t size) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) sum += static_cast<float>(x[i]) * static_cast<float>(x[i]);
  return sum;
}

template <typename T>
void RmsNormRow(const T* __restrict x, const T* __restrict weight, float inverse_rms, int64_t size, T* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<T>(static_cast<float>(x[i]) * inverse_rms * static_cast<float>(weight[i]));
  }
}

// With n = x·r (r the inverse root mean square) and g = w∘dy: dx = r·(g − n·mean(g∘n)).
template <typename T>
void RmsNormBackwardRow(const T* __restrict x, const T* __restrict weight, float inverse_rms, const T* __restrict dy,
                        int64_t size, T* __restrict dx) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < size; ++i) {
    dot += static_cast<float>(dy[i]) * static_cast<float>(weight[i]) * static_cast<float>(x[i]);
  }
  const float scale = dot * inverse_rms * inverse_rms / static_cast<float>(size);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = static_cast<float>(dy[i]) * static_cast<float>(weight[i]);
    dx[i] = static_cast<T>(static_cast<float>(dx[i]) + inverse_rms * (g - static_cast<float>(x[i]) * scale));
  }
}

// The same in place of dy.
template <typename T>
void RmsNormBackwardInPlaceRow(const T* __restrict x, const T* __restrict weight, float inverse_rms, int64_t size,
                               T* __restrict gradient) {
  float dot = 0;
#pragma omp simd reduction(+ : dot)
  for (int64_t i = 0; i < size; ++i) {
    dot += static_cast<float>(gradient[i]) * static_cast<float>(weight[i]) * static_cast<float>(x[i]);
  }
  const float scale = dot * inverse_rms * inverse_rms / static_cast<float>(size);
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = static_cast<float>(gradient[i]) * static_cast<float>(weight[i]);
    gradient[i] = static_cast<T>(inverse_rms * (g - static_cast<float>(x[i]) * scale));
  }
}

template <typename T>
void AddWeightGradientRow(const T* __restrict x, float inverse_rms, const T* __restrict dy, int64_t size,
                          float* __restrict sum) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) sum[i] += static_cast<float>(dy[i]) * static_cast<float>(x[i]) * inverse_rms;
}

template <typename T>
void RotateHead(T* __restrict low, T* __restrict high, const float* __restrict cosine, const float* __restrict sine,
                float sign, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = static_cast<float>(low[i]);
    const float b = static_cast<float>(high[i]);
    const float s = sign * sine[i];
    low[i] = static_cast<T>(a * cosine[i] - b * s);
    high[i] = static_cast<T>(b * cosine[i] + a * s);
  }
}

template <typename T>
void SiluProductRow(const T* __restrict gate, const T* __restrict up, const float* __restrict sigmoid, int64_t size,
                    T* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<T>(static_cast<float>(gate[i]) * sigmoid[i] * static_cast<float>(up[i]));
  }
}

template <typename T>
void SiluProductBackwardRow(const T* __restrict gate, const T* __restrict up, const float* __restrict sigmoid,
                            const T* __restrict dy, int64_t size, T* __restrict gate_gradient,
                            T* __restrict up_gradient) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const float g = static_cast<float>(gate[i]);
    const float d = static_cast<float>(dy[i]);
    const float s = sigmoid[i];
    gate_gradient[i] = static_cast<T>(d * static_cast<float>(up[i]) * s * (1.0f + g * (1.0f - s)));
    up_gradient[i] = static_cast<T>(d * g * s);
  }
}

}  // namespace

void RmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon, const at::Tensor& out,
             const at::Tensor& inverse_rms) {
  if (x.is_cuda()) {
    gpu::HeadRmsNorm(x, weight, epsilon, out, inverse_rms);
    return;
  }
  HeadRmsNorm(x.unsqueeze(1), weight, epsilon, out.unsqueeze(1), inverse_rms);
}

void RmsNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                     const at::Tensor& out_gradient, const at::Tensor& x_gradient,
                     const NormWeightGradient& weight_gradient) {
  if (x.is_cuda()) {
    gpu::HeadRmsNormBackward(x, weight, inverse_rms, out_gradient,
                             {x_gradient, /*adds=*/true, weight_gradient.gradient, {}, weight_gradient.scratch});
    return;
  }
  const int64_t size = x.size(1);
  GradientSums sums(weight_gradient.gradient.defined(), size, weight_gradient.scratch);
  const float* inverse = inverse_rms.data_ptr<float>();
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(x);
    const auto dy = RowsOf<T>(out_gradient);
    const auto dx = RowsOf<T>(x_gradient);
    const T* w = weight.data_ptr<T>();
    sums.ForRows(x.size(0), [&](int64_t row, float* sum) {
      if (sum != nullptr) AddWeightGradientRow(in[row], inverse[row], dy[row], size, sum);
      RmsNormBackwardRow(in[row], w, inverse[row], dy[row], size, dx[row]);
    });
  });
  sums.AddTo(weight_gradient.gradient, 0);
}

void HeadRmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon, const at::Tensor& out,
                 const at::Tensor& inverse_rms) {
  if (x.is_cuda()) {
    gpu::HeadRmsNorm(x, weight, epsilon, out, inverse_rms);
    return;
  }
  const int64_t heads = x.size(1);
  const int64_t size = x.size(2);
  TORCH_CHECK(out.sizes() == x.sizes() && weight.numel() == size, "norm of ", x.sizes(), " into ", out.sizes());
  float* inverse_rms_data = inverse_rms.defined() ? inverse_rms.data_ptr<float>() : nullptr;
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(x);
    const auto to = RowsOf<T>(out);
    const T* w = weight.data_ptr<T>();
    ForRowRanges(x.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t head = 0; head < heads; ++head) {
          const T* from = in[row] + head * x.stride(1);
          const float mean = SumOfSquares(from, size) / static_cast<float>(size);
          const float inverse = 1.0f / std::sqrt(mean + static_cast<float>(epsilon));
          if (inverse_rms_data != nullptr) inverse_rms_data[row * heads + head] = inverse;
          RmsNormRow(from, w, inverse, size, to[row] + head * out.stride(1));
        }
      }
    });
  });
}

void HeadRmsNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                         const at::Tensor& gradient, const NormWeightGradient& weight_gradient) {
  if (x.is_cuda()) {
    gpu::HeadRmsNormBackward(x, weight, inverse_rms, gradient,
                             {gradient, /*adds=*/false, weight_gradient.gradient, {}, weight_gradient.scratch});
    return;
  }
  const int64_t heads = x.size(1);
  const int64_t size = x.size(2);
  GradientSums sums(weight_gradient.gradient.defined(), size, weight_gradient.scratch);
  const float* inverse = inverse_rms.data_ptr<float>();
  ForDtype(x.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(x);
    const auto dy = RowsOf<T>(gradient);
    const T* w = weight.data_ptr<T>();
    sums.ForRows(x.size(0), [&](int64_t row, float* sum) {
      for (int64_t head = 0; head < heads; ++head) {
        const T* from = in[row] + head * x.stride(1);
        T* row_gradient = dy[row] + head * gradient.stride(1);
        const float inverse_row = inverse[row * inverse_rms.stride(0) + head];
        if (sum != nullptr) AddWeightGradientRow(from, inverse_row, row_gradient, size, sum);
        RmsNormBackwardInPlaceRow(from, w, inverse_row, size, row_gradient);
      }
    });
  });
  sums.AddTo(weight_gradient.gradient, 0);
}

void ApplyRotation(const at::Tensor& rows, const Rotation& rotation, bool inverse) {
  const int64_t heads = rows.size(1);
  const int64_t half = rotation.cosine.size(1);
  TORCH_CHECK(rotation.cosine.size(0) >= rotation.tokens && 2 * half <= rows.size(2), "rotation by a table of ",
              rotation.cosine.sizes(), " of ", rotation.tokens, " tokens of heads of ", rows.size(2));
  TORCH_CHECK(!rotation.positions.defined() || rotation.positions.numel() == rows.size(0), "positions of ",
              rotation.positions.numel(), " rows for ", rows.size(0));
  if (rows.is_cuda()) {
    gpu::ApplyRotation(rows, {rotation.cosine, rotation.sine, rotation.tokens, rotation.positions}, inverse);
    return;
  }
  const auto cosine = RowsOf<float>(rotation.cosine);
  const auto sine = RowsOf<float>(rotation.sine);
  const int64_t* positions = rotation.positions.defined() ? rotation.positions.data_ptr<int64_t>() : nullptr;
  ForDtype(rows.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto to = RowsOf<T>(rows);
    ForRowRanges(rows.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t position = positions != nullptr ? positions[row] : row % rotation.tokens;
        for (int64_t head = 0; head < heads; ++head) {
          T* start = to[row] + head * rows.stride(1);
          RotateHead(start, start + half, cosine[position], sine[position], inverse ? -1.0f : 1.0f, half);
        }
      }
    });
  });
}

void SiluProduct(const at::Tensor& gate_up, const at::Tensor& sigmoid, const at::Tensor& out) {
  if (gate_up.is_cuda()) {
    gpu::SiluProduct(gate_up, out);
    return;
  }
  const int64_t size = out.size(1);
  ForDtype(gate_up.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(gate_up);
    const auto s = RowsOf<float>(sigmoid);
    const auto to = RowsOf<T>(out);
    ForRowRanges(out.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) SiluProductRow(in[row], in[row] + size, s[row], size, to[row]);
    });
  });
}

void SiluProductBackward(const at::Tensor& gate_up, const at::Tensor& sigmoid, const at::Tensor& out_gradient,
                         const at::Tensor& gate_up_gradient) {
  if (gate_up.is_cuda()) {
    gpu::SiluProductBackward(gate_up, out_gradient, gate_up_gradient);
    return;
  }
  const int64_t size = out_gradient.size(1);
  ForDtype(gate_up.scalar_type(), [&](auto tag) {
    using T = decltype(tag);
    const auto in = RowsOf<T>(gate_up);
    const auto s = RowsOf<float>(sigmoid);
    const auto dy = RowsOf<T>(out_gradient);
    const auto to = RowsOf<T>(gate_up_gradient);
    ForRowRanges(out_gradient.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        SiluProductBackwardRow(in[row], in[row] + size, s[row], dy[row], size, to[row], to[row] + size);
      }
    });
  });
}

void SubtractTargets(const at::Tensor& probabilities, const at::Tensor& targets) {
  const auto rows = RowsOf<float>(probabilities);
  const int64_t* target = targets.data_ptr<int64_t>();
  for (int64_t row = 0; row < probabilities.size(0); ++row) rows[row][target[row]] -= 1.0f;
}

}  // namespace longspan::trainer
