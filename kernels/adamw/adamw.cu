// A column of blocks takes a tensor and strides over its elements; blocks beyond a short tensor end at once.
#include <cmath>

#include "kernels/adamw/adamw_cuda.h"
#include "kernels/common/device.cuh"

namespace longspan::kernels::adamw {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 4;
constexpr int64_t kBlocksOfTensorMax = 4096;

// The update's numbers as the kernel wants them, computed in fp64 on the host.
struct Factors {
  float keep;  // 1 - rate·decay
  float beta1, beta2, one_less_beta1, one_less_beta2;
  float step_size;    // rate / (1 - beta1^t)
  float root_factor;  // 1 / sqrt(1 - beta2^t)
  float epsilon, gradient_scale;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) StepKernel(Factors factors, const Tensor* tensors) {
  const Tensor tensor = tensors[blockIdx.y];
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < tensor.elements; i += stride) {
    const float gradient = tensor.gradient[i] * factors.gradient_scale;
    const float first = factors.beta1 * tensor.first_moment[i] + factors.one_less_beta1 * gradient;
    const float second = factors.beta2 * tensor.second_moment[i] + factors.one_less_beta2 * gradient * gradient;
    const float value = tensor.master[i] * factors.keep -
                        factors.step_size * first / (sqrtf(second) * factors.root_factor + factors.epsilon);
    tensor.master[i] = value;
    tensor.first_moment[i] = first;
    tensor.second_moment[i] = second;
    if (tensor.value != nullptr) static_cast<T*>(tensor.value)[i] = FromFloat<T>(value);
  }
}

}  // namespace

cudaError_t Step(const Update& update, const Tensor* tensors, int64_t count, int64_t elements, cudaStream_t stream) {
  if (count < 0 || count > 65535 || elements < 0 || update.step < 1) return cudaErrorInvalidValue;
  if (count == 0 || elements == 0) return cudaSuccess;
  Factors factors{};
  factors.keep = static_cast<float>(1 - update.rate * update.decay);
  factors.beta1 = static_cast<float>(update.beta1);
  factors.beta2 = static_cast<float>(update.beta2);
  factors.one_less_beta1 = static_cast<float>(1 - update.beta1);
  factors.one_less_beta2 = static_cast<float>(1 - update.beta2);
  factors.step_size = static_cast<float>(update.rate / (1 - std::pow(update.beta1, static_cast<double>(update.step))));
  factors.root_factor = static_cast<float>(1 / std::sqrt(1 - std::pow(update.beta2, static_cast<double>(update.step))));
  factors.epsilon = static_cast<float>(update.epsilon);
  factors.gradient_scale = update.gradient_scale;
  const dim3 grid(BlocksFor(elements, kThreads * kPerThread, kBlocksOfTensorMax), static_cast<unsigned>(count));
  return WithDeviceType(update.value_type, [&](auto tag) {
    StepKernel<decltype(tag)><<<grid, kThreads, 0, stream>>>(factors, tensors);
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::adamw
