// A block for each place in the order; where an id begins there it goes on through all of its rows, else it ends at
// once.
#include "kernels/common/device.cuh"
#include "kernels/embedding_gradient/embedding_gradient_cuda.h"

namespace longspan::kernels::embedding_gradient {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kColumnBlocksMax = 65535;

template <typename T>
__global__ void __launch_bounds__(kThreads) AddKernel(Arguments arguments) {
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (column >= arguments.columns) return;
  for (int64_t first = blockIdx.x; first < arguments.rows; first += gridDim.x) {
    const int64_t id = arguments.sorted_ids[first];
    if (first > 0 && arguments.sorted_ids[first - 1] == id) continue;
    float* to = arguments.table + id * arguments.table_stride + column;
    float sum = *to;
    for (int64_t at = first; at < arguments.rows && arguments.sorted_ids[at] == id; ++at) {
      sum += ToFloat(static_cast<const T*>(arguments.x)[arguments.order[at] * arguments.row_stride + column]);
    }
    *to = sum;
  }
}

}  // namespace

cudaError_t Add(const Arguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.columns < 1 || arguments.columns > kColumnBlocksMax * kThreads ||
      arguments.row_stride < arguments.columns || arguments.table_stride < arguments.columns) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  const dim3 grid(BlocksFor(arguments.rows, 1), BlocksFor(arguments.columns, kThreads));
  return WithDeviceType(arguments.type, [&](auto tag) {
    AddKernel<decltype(tag)><<<grid, kThreads, 0, stream>>>(arguments);
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::embedding_gradient
