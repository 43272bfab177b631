#include "kernels/common/device.cuh"
#include "kernels/normal/draw.h"
#include "kernels/normal/normal_cuda.h"

namespace longspan::kernels::normal {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) DrawKernel(Arguments arguments) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < arguments.elements; i += step) {
    static_cast<T*>(arguments.out)[i] = FromFloat<T>(Value(arguments.key, arguments.first + i, arguments.deviation));
  }
}

}  // namespace

cudaError_t Draw(const Arguments& arguments, cudaStream_t stream) {
  if (arguments.elements < 0 || arguments.first < 0 || !(arguments.deviation >= 0)) return cudaErrorInvalidValue;
  if (arguments.elements == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    DrawKernel<decltype(tag)><<<BlocksFor(arguments.elements, kThreads), kThreads, 0, stream>>>(arguments);
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::normal
