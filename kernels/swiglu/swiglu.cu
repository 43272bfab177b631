// One thread takes a pack of columns (16 bytes, or one element where rows are not aligned) and strides over the rows:
// every value is read once and written once, so the kernels run at the memory's rate.
#include "kernels/common/device.cuh"
#include "kernels/swiglu/swiglu_cuda.h"

namespace longspan::kernels::swiglu {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kRowBlocksMax = 65535;  // a grid's second dimension

__device__ float Sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) ForwardKernel(ForwardArguments arguments) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (column >= arguments.size) return;
  for (int64_t row = blockIdx.y; row < arguments.rows; row += gridDim.y) {
    const T* gates = static_cast<const T*>(arguments.gate_up) + row * arguments.gate_up_stride + column;
    float gate[width], up[width], out[width];
    Load(gates, gate);
    Load(gates + arguments.size, up);
#pragma unroll
    for (int i = 0; i < width; ++i) out[i] = gate[i] * Sigmoid(gate[i]) * up[i];
    Store(out, static_cast<T*>(arguments.out) + row * arguments.out_stride + column);
  }
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) BackwardKernel(BackwardArguments arguments) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * width;
  if (column >= arguments.size) return;
  for (int64_t row = blockIdx.y; row < arguments.rows; row += gridDim.y) {
    const T* gates = static_cast<const T*>(arguments.gate_up) + row * arguments.gate_up_stride + column;
    float gate[width], up[width], d[width];
    Load(gates, gate);
    Load(gates + arguments.size, up);
    Load(static_cast<const T*>(arguments.out_gradient) + row * arguments.out_gradient_stride + column, d);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float s = Sigmoid(gate[i]);
      const float of_gate = d[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
      up[i] = d[i] * gate[i] * s;
      gate[i] = of_gate;
    }
    T* gradient = static_cast<T*>(arguments.gate_up_gradient) + row * arguments.gate_up_gradient_stride + column;
    Store(gate, gradient);
    Store(up, gradient + arguments.size);
  }
}

dim3 GridFor(int64_t rows, int64_t columns, int width) {
  return {BlocksFor(columns, static_cast<int64_t>(kThreads) * width), BlocksFor(rows, 1, kRowBlocksMax)};
}

bool IsShape(int64_t rows, int64_t size) { return rows >= 0 && size >= 1 && size <= int64_t{1} << 32; }

}  // namespace

cudaError_t Forward(const ForwardArguments& arguments, cudaStream_t stream) {
  const int64_t size = arguments.size;
  if (!IsShape(arguments.rows, size) || arguments.gate_up_stride < 2 * size || arguments.out_stride < size) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    if (IsPacked(static_cast<const T*>(arguments.gate_up), arguments.gate_up_stride, size) &&
        IsPacked(static_cast<const T*>(arguments.out), arguments.out_stride)) {
      ForwardKernel<T, kPack<T>><<<GridFor(arguments.rows, size, kPack<T>), kThreads, 0, stream>>>(arguments);
    } else {
      ForwardKernel<T, 1><<<GridFor(arguments.rows, size, 1), kThreads, 0, stream>>>(arguments);
    }
    return cudaGetLastError();
  });
}

cudaError_t Backward(const BackwardArguments& arguments, cudaStream_t stream) {
  const int64_t size = arguments.size;
  if (!IsShape(arguments.rows, size) || arguments.gate_up_stride < 2 * size || arguments.out_gradient_stride < size ||
      arguments.gate_up_gradient_stride < 2 * size) {
    return cudaErrorInvalidValue;
  }
  if (arguments.rows == 0) return cudaSuccess;
  return WithDeviceType(arguments.type, [&](auto tag) {
    using T = decltype(tag);
    if (IsPacked(static_cast<const T*>(arguments.gate_up), arguments.gate_up_stride, size) &&
        IsPacked(static_cast<const T*>(arguments.out_gradient), arguments.out_gradient_stride) &&
        IsPacked(static_cast<const T*>(arguments.gate_up_gradient), arguments.gate_up_gradient_stride)) {
      BackwardKernel<T, kPack<T>><<<GridFor(arguments.rows, size, kPack<T>), kThreads, 0, stream>>>(arguments);
    } else {
      BackwardKernel<T, 1><<<GridFor(arguments.rows, size, 1), kThreads, 0, stream>>>(arguments);
    }
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::swiglu
