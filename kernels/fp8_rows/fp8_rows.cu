// A block takes a row and goes through it twice: for the largest magnitude, and, out of the cache, for the codes.
#include <cuda_fp8.h>

#include "kernels/common/device.cuh"
#include "kernels/fp8_rows/fp8_rows_cuda.h"

namespace longspan::kernels::fp8_rows {
namespace {

constexpr int kThreads = 256;
constexpr float kInfinity = __builtin_huge_valf();

// Of all threads, in every thread.
__device__ float BlockMax(float value, float* scratch) {
  value = WarpMax(value);
  __syncthreads();  // an earlier one has been read
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  float largest = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / kWarp; ++warp) largest = fmaxf(largest, scratch[warp]);
  return largest;
}

// fmaxf passes over NaN, which must not be lost.
__device__ float Magnitude(float value) {
  const float magnitude = fabsf(value);
  return magnitude < kInfinity ? magnitude : kInfinity;
}

template <int width>
struct alignas(width) Codes {
  uint8_t values[width];
};

template <int width>
__device__ Codes<width> CodesOf(const float (&values)[width], float inverse) {
  Codes<width> codes;
  if constexpr (width == 1) {
    codes.values[0] = __nv_cvt_float_to_fp8(values[0] * inverse, __NV_SATFINITE, __NV_E4M3);
  } else {
#pragma unroll
    for (int i = 0; i < width; i += 2) {
      const __nv_fp8x2_storage_t pair = __nv_cvt_float2_to_fp8x2(
          make_float2(values[i] * inverse, values[i + 1] * inverse), __NV_SATFINITE, __NV_E4M3);
      codes.values[i] = static_cast<uint8_t>(pair & 0xff);
      codes.values[i + 1] = static_cast<uint8_t>(pair >> 8);
    }
  }
  return codes;
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) QuantizeKernel(QuantizeArguments arguments) {
  __shared__ float scratch[kThreads / kWarp];
  const int64_t first = static_cast<int64_t>(threadIdx.x) * width;
  constexpr int64_t kStep = int64_t{kThreads} * width;
  for (int64_t row = blockIdx.x; row < arguments.rows; row += gridDim.x) {
    const T* x = static_cast<const T*>(arguments.x) + row * arguments.x_stride;
    uint8_t* codes = arguments.codes + row * arguments.codes_stride;
    float largest = 0, values[width];
    for (int64_t column = first; column < arguments.columns; column += kStep) {
      Load(x + column, values);
#pragma unroll
      for (int i = 0; i < width; ++i) largest = fmaxf(largest, Magnitude(values[i]));
    }
    largest = BlockMax(largest, scratch);
    const float scale = largest < kInfinity ? fmaxf(largest / kLargest, kScaleMin) : nanf("");
    const float inverse = 1.0f / scale;
    for (int64_t column = first; column < arguments.columns; column += kStep) {
      Load(x + column, values);
      *reinterpret_cast<Codes<width>*>(codes + column) = CodesOf(values, inverse);
    }
    if (threadIdx.x == 0) arguments.scales[row] = scale;
  }
}

}  // namespace

cudaError_t Quantize(const QuantizeArguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.columns < 0 || arguments.x_stride < arguments.columns ||
      arguments.codes_stride < arguments.columns) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    constexpr int kWide = kPack<T>;
    const bool packed =
        arguments.columns % kWide == 0 && IsPacked(static_cast<const T*>(arguments.x), arguments.x_stride) &&
        reinterpret_cast<uintptr_t>(arguments.codes) % kWide == 0 && arguments.codes_stride % kWide == 0;
    const unsigned blocks = BlocksFor(arguments.rows, 1);
    if (packed) {
      QuantizeKernel<T, kWide><<<blocks, kThreads, 0, stream>>>(arguments);
    } else {
      QuantizeKernel<T, 1><<<blocks, kThreads, 0, stream>>>(arguments);
    }
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::fp8_rows
