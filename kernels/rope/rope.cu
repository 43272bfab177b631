// A block takes a row, so that its angles are read once from memory and then from the cache; its threads take packs of
// pairs, head after head.
#include "kernels/common/device.cuh"
#include "kernels/rope/rope_cuda.h"

namespace longspan::kernels::rope {
namespace {

constexpr int kThreads = 256;

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) RotateKernel(Arguments arguments) {
  const int packs = static_cast<int>(arguments.half / width);
  const int64_t work = arguments.heads * packs;
  for (int64_t row = blockIdx.x; row < arguments.rows; row += gridDim.x) {
    const int64_t position = arguments.positions != nullptr ? arguments.positions[row] : row % arguments.tokens;
    const float* cosines = arguments.cosine + position * arguments.table_stride;
    const float* sines = arguments.sine + position * arguments.table_stride;
    T* heads = static_cast<T*>(arguments.data) + row * arguments.row_stride;
    for (int64_t index = threadIdx.x; index < work; index += kThreads) {
      const int64_t column = index % packs * width;
      T* low = heads + index / packs * arguments.head_stride + column;
      T* high = low + arguments.half;
      float a[width], b[width];
      Load(low, a);
      Load(high, b);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float cosine = __ldg(cosines + column + i);
        const float sine = arguments.inverse ? -__ldg(sines + column + i) : __ldg(sines + column + i);
        const float turned = a[i] * cosine - b[i] * sine;
        b[i] = b[i] * cosine + a[i] * sine;
        a[i] = turned;
      }
      Store(a, low);
      Store(b, high);
    }
  }
}

}  // namespace

cudaError_t Rotate(const Arguments& arguments, cudaStream_t stream) {
  if (arguments.rows < 0 || arguments.heads < 1 || arguments.half < 1 || arguments.half > 1 << 20 ||
      arguments.table_stride < arguments.half || (arguments.positions == nullptr && arguments.tokens < 1)) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    const unsigned blocks = BlocksFor(arguments.rows, 1);
    if (IsPacked(static_cast<const T*>(arguments.data), arguments.row_stride, arguments.head_stride, arguments.half)) {
      RotateKernel<T, kPack<T>><<<blocks, kThreads, 0, stream>>>(arguments);
    } else {
      RotateKernel<T, 1><<<blocks, kThreads, 0, stream>>>(arguments);
    }
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::rope
