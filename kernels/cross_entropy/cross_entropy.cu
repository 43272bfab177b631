// A block takes a row. It goes through it once for the largest logit and the sum of exponentials together (each thread
// keeps both for what it saw, and rescales when a larger one comes), and once more, out of the cache, for the gradient.
#include "kernels/common/device.cuh"
#include "kernels/cross_entropy/cross_entropy_cuda.h"

namespace longspan::kernels::cross_entropy {
namespace {

constexpr int kThreads = 512;

// The sum of exp(x - largest) over what was seen.
struct RunningSum {
  float largest, sum;

  __device__ void Add(float x) {
    if (x > largest) {
      sum *= __expf(largest - x);
      largest = x;
    }
    // An infinite x against itself must not give NaN before the other rows' -inf have had their turn.
    sum += x == largest ? 1.0f : __expf(x - largest);
  }
  __device__ void Join(const RunningSum& other) {
    const float joined = fmaxf(largest, other.largest);
    const float mine = largest == joined ? sum : sum * __expf(largest - joined);
    const float its = other.largest == joined ? other.sum : other.sum * __expf(other.largest - joined);
    largest = joined;
    sum = mine + its;
  }
};

__device__ RunningSum WarpJoin(RunningSum value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    RunningSum other;
    other.largest = __shfl_xor_sync(kWholeWarp, value.largest, offset);
    other.sum = __shfl_xor_sync(kWholeWarp, value.sum, offset);
    // The lower lane first on both sides, so that both get the same bits.
    if ((threadIdx.x & offset) == 0) {
      value.Join(other);
    } else {
      other.Join(value);
      value = other;
    }
  }
  return value;
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) LossKernel(Arguments arguments) {
  __shared__ RunningSum of_warps[kThreads / kWarp];
  __shared__ float target_logit;
  const int64_t size = arguments.vocabulary;
  for (int64_t row = blockIdx.x; row < arguments.rows; row += gridDim.x) {
    T* logits = static_cast<T*>(arguments.logits) + row * arguments.row_stride;
    const int64_t target = arguments.targets[row];
    RunningSum running{-INFINITY, 0};
    bool is_nan = false;
    for (int64_t column = static_cast<int64_t>(threadIdx.x) * width; column < size; column += kThreads * width) {
      float values[width];
      Load(logits + column, values);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        is_nan |= isnan(values[i]);
        running.Add(values[i]);
      }
    }
    if (is_nan) running.sum = NAN;
    if (threadIdx.x == 0) target_logit = ToFloat(logits[target]);
    running = WarpJoin(running);
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = running;
    __syncthreads();
    RunningSum whole = of_warps[0];
    for (int warp = 1; warp < kThreads / kWarp; ++warp) whole.Join(of_warps[warp]);
    if (threadIdx.x == 0) {
      arguments.loss[row] =
          log(static_cast<double>(whole.sum)) + static_cast<double>(whole.largest) - static_cast<double>(target_logit);
    }
    if (arguments.wants_gradient) {
      const float inverse = 1.0f / whole.sum;
      for (int64_t column = static_cast<int64_t>(threadIdx.x) * width; column < size; column += kThreads * width) {
        float values[width];
        Load(logits + column, values);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          values[i] = __expf(values[i] - whole.largest) * inverse - (column + i == target ? 1.0f : 0.0f);
        }
        Store(values, logits + column);
      }
    }
    __syncthreads();  // the shared values have been read
  }
}

}  // namespace

cudaError_t Loss(const Arguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.vocabulary < 1 || arguments.vocabulary >= int64_t{1} << 31 ||
      arguments.row_stride < arguments.vocabulary) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    const unsigned blocks = BlocksFor(arguments.rows, 1);
    if (IsPacked(static_cast<const T*>(arguments.logits), arguments.row_stride, arguments.vocabulary)) {
      LossKernel<T, kPack<T>><<<blocks, kThreads, 0, stream>>>(arguments);
    } else {
      LossKernel<T, 1><<<blocks, kThreads, 0, stream>>>(arguments);
    }
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::cross_entropy
