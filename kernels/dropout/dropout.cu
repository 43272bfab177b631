#include "kernels/common/device.cuh"
#include "kernels/dropout/dropout_cuda.h"
#include "kernels/dropout/mask.h"

namespace longspan::kernels::dropout {
namespace {

constexpr int kThreads = 256;

// A block takes a row, so that the key is made once for a thread's stretch of it.
template <typename T>
__global__ void __launch_bounds__(kThreads) ApplyKernel(Arguments arguments) {
  for (int64_t row = blockIdx.x; row < arguments.rows; row += gridDim.x) {
    const int64_t of_all = arguments.first_row + row;
    const uint64_t key = KeyOf(arguments, of_all / arguments.tokens);
    const int64_t token = arguments.first_token + of_all % arguments.tokens;
    const T* x = static_cast<const T*>(arguments.x) + row * arguments.x_stride;
    T* out = static_cast<T*>(arguments.out) + row * arguments.out_stride;
    for (int64_t i = threadIdx.x; i < arguments.columns; i += kThreads) {
      const auto element = static_cast<uint64_t>(token * arguments.columns + i);
      const bool kept = IsKept(key, element, arguments.threshold);
      out[i] = FromFloat<T>(kept ? ToFloat(x[i]) * arguments.scale : 0.0f);
    }
  }
}

}  // namespace

cudaError_t Apply(const Arguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.columns < 1 || arguments.tokens < 1 || arguments.first_row < 0 ||
      arguments.x_stride < arguments.columns || arguments.out_stride < arguments.columns) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    ApplyKernel<decltype(tag)><<<BlocksFor(arguments.rows, 1), kThreads, 0, stream>>>(arguments);
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::dropout
