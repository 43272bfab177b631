// AddScaled: a thread an element, neighbours along whichever dimension x has them, in tiles through shared memory where
// x and sum lie the other way round. ColumnSums: a block goes through the rows of its part for a stretch of columns.
// SquaredNorm: block k of all goes through every kNormParts-th stretch of every tensor.
#include "kernels/common/device.cuh"
#include "kernels/tensor_sums/tensor_sums_cuda.h"

namespace longspan::kernels::tensor_sums {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32, kTileRows = 8;
constexpr int64_t kGridMax = 65535;

// Threads of a tile read x along its dense dimension and write sum along its own.
template <typename T>
__global__ void __launch_bounds__(kTile* kTileRows) AddScaledKernel(AddScaledArguments arguments, bool x_by_columns) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t tiles_across = (arguments.columns + kTile - 1) / kTile;
  const int64_t tiles = tiles_across * ((arguments.rows + kTile - 1) / kTile);
  const auto* x = static_cast<const T*>(arguments.x);
  const int lane = static_cast<int>(threadIdx.x) % kTile, line = static_cast<int>(threadIdx.x) / kTile;
  const bool sum_by_columns = arguments.sum_column_stride == 1;
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const int64_t first_row = index / tiles_across * kTile, first_column = index % tiles_across * kTile;
    for (int i = line; i < kTile; i += kTileRows) {
      const int64_t row = first_row + (x_by_columns ? i : lane), column = first_column + (x_by_columns ? lane : i);
      if (row < arguments.rows && column < arguments.columns) {
        tile[row - first_row][column - first_column] =
            ToFloat(x[row * arguments.x_row_stride + column * arguments.x_column_stride]);
      }
    }
    __syncthreads();
    for (int i = line; i < kTile; i += kTileRows) {
      const int64_t row = first_row + (sum_by_columns ? i : lane), column = first_column + (sum_by_columns ? lane : i);
      if (row < arguments.rows && column < arguments.columns) {
        arguments.sum[row * arguments.sum_row_stride + column * arguments.sum_column_stride] +=
            arguments.scale * tile[row - first_row][column - first_column];
      }
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) PartSumsKernel(ColumnSumsArguments arguments) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= arguments.columns) return;
  const int64_t rows_of_part = (arguments.rows + arguments.parts - 1) / arguments.parts;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * rows_of_part;
  const int64_t end = min(arguments.rows, begin + rows_of_part);
  float sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    sum += ToFloat(static_cast<const T*>(arguments.x)[row * arguments.row_stride + column]);
  }
  arguments.work[static_cast<int64_t>(blockIdx.y) * arguments.columns + column] = sum;
}

__global__ void __launch_bounds__(kThreads)
    AddPartsKernel(const float* parts, int64_t count, int64_t columns, float* sum) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= columns) return;
  float of_parts = 0;
  for (int64_t part = 0; part < count; ++part) of_parts += parts[part * columns + column];
  sum[column] += of_parts;
}

__device__ double BlockSum(double value, double* scratch) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kWholeWarp, value, offset);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += scratch[warp];
  return sum;
}

__global__ void __launch_bounds__(kThreads) SquaresKernel(const Span* spans, int64_t count, double* work) {
  __shared__ double scratch[kThreads / kWarp];
  double sum = 0;
  for (int64_t index = 0; index < count; ++index) {
    const Span span = spans[index];
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < span.elements;
         i += kNormParts * kThreads) {
      const double value = span.data[i];
      sum += value * value;
    }
  }
  sum = BlockSum(sum, scratch);
  if (threadIdx.x == 0) work[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) AddSquaresKernel(const double* work, double* result) {
  __shared__ double scratch[kThreads / kWarp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < kNormParts; i += kThreads) sum += work[i];
  sum = BlockSum(sum, scratch);
  if (threadIdx.x == 0) *result = sum;
}

}  // namespace

cudaError_t AddScaled(const AddScaledArguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.columns < 0) return cudaErrorInvalidValue;
  if (arguments.rows == 0 || arguments.columns == 0) return cudaSuccess;
  const int64_t tiles = ((arguments.rows + kTile - 1) / kTile) * ((arguments.columns + kTile - 1) / kTile);
  return WithDeviceType(arguments.type, [&](auto tag) {
    AddScaledKernel<decltype(tag)>
        <<<BlocksFor(tiles, 1), kTile * kTileRows, 0, stream>>>(arguments, arguments.x_column_stride == 1);
    return cudaGetLastError();
  });
}

cudaError_t ColumnSums(const ColumnSumsArguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.columns < 0 || arguments.parts < 1 || arguments.parts > kGridMax ||
      arguments.row_stride < arguments.columns) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0 || arguments.columns == 0) return cudaSuccess;
  const unsigned across = BlocksFor(arguments.columns, kThreads);
  const cudaError_t status = WithDeviceType(arguments.type, [&](auto tag) {
    PartSumsKernel<decltype(tag)>
        <<<dim3(across, static_cast<unsigned>(arguments.parts)), kThreads, 0, stream>>>(arguments);
    return cudaGetLastError();
  });
  if (status != cudaSuccess) return status;
  AddPartsKernel<<<across, kThreads, 0, stream>>>(arguments.work, arguments.parts, arguments.columns, arguments.sum);
  return cudaGetLastError();
}

cudaError_t SquaredNorm(const Span* spans, int64_t count, double* work, double* result, cudaStream_t stream) {
  if (count < 0) return cudaErrorInvalidValue;
  SquaresKernel<<<static_cast<unsigned>(kNormParts), kThreads, 0, stream>>>(spans, count, work);
  AddSquaresKernel<<<1, kThreads, 0, stream>>>(work, result);
  return cudaGetLastError();
}

}  // namespace longspan::kernels::tensor_sums
