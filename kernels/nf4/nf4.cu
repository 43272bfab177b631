// A thread takes 8 values, which are 4 bytes of codes, and writes them by 16 bytes. The levels lie in shared memory,
// where lanes may read different ones at once.
#include "kernels/common/device.cuh"
#include "kernels/nf4/nf4_cuda.h"

namespace longspan::kernels::nf4 {
namespace {

constexpr int kThreads = 256;
constexpr int kOfThread = 8;

__constant__ float kDeviceScaleLevels[256] = {
#include "kernels/nf4/scale_levels.inc"
};

struct CodeLevels {
  float values[16];
};

template <typename T>
__global__ void __launch_bounds__(kThreads) DequantizeKernel(DequantizeArguments arguments, CodeLevels levels) {
  __shared__ float code_levels[16];
  __shared__ float scale_levels[256];
  if (threadIdx.x < 16) code_levels[threadIdx.x] = levels.values[threadIdx.x];
  scale_levels[threadIdx.x] = kDeviceScaleLevels[threadIdx.x];
  __syncthreads();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kOfThread;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kOfThread; at < arguments.n;
       at += stride) {
    const int64_t block = (arguments.begin + at) / kBlock;
    // As the reference: no product and sum in one rounding.
    const float scale =
        __fadd_rn(__fmul_rn(scale_levels[arguments.scale_codes[block]], arguments.scale_maxima[block / kScaleBlock]),
                  arguments.mean);
    const uint8_t* packed = arguments.codes + (arguments.begin + at) / 2;
    T* out = static_cast<T*>(arguments.out) + at;
    if (at + kOfThread <= arguments.n) {
      float values[kOfThread];
#pragma unroll
      for (int i = 0; i < kOfThread / 2; ++i) {
        values[2 * i] = code_levels[packed[i] >> 4] * scale;
        values[2 * i + 1] = code_levels[packed[i] & 15] * scale;
      }
#pragma unroll
      for (int first = 0; first < kOfThread; first += kPack<T>) {
        float part[kPack<T>];
#pragma unroll
        for (int i = 0; i < kPack<T>; ++i) part[i] = values[first + i];
        StorePack(part, out + first);
      }
      continue;
    }
    for (int64_t i = 0; at + i < arguments.n; ++i) {
      const int code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
      out[i] = FromFloat<T>(code_levels[code] * scale);
    }
  }
}

}  // namespace

cudaError_t Dequantize(const DequantizeArguments& arguments, cudaStream_t stream) {
  if (arguments.begin < 0 || arguments.begin % kBlock != 0 || arguments.n < 0 ||
      reinterpret_cast<uintptr_t>(arguments.out) % 16 != 0) {
    return cudaErrorInvalidValue;
  }
  if (arguments.n == 0) return cudaSuccess;
  CodeLevels levels;
  for (int i = 0; i < 16; ++i) levels.values[i] = Levels()[i];
  return WithDeviceType(arguments.type, [&](auto tag) {
    DequantizeKernel<decltype(tag)>
        <<<BlocksFor(arguments.n, kThreads * kOfThread), kThreads, 0, stream>>>(arguments, levels);
    return cudaGetLastError();
  });
}

}  // namespace longspan::kernels::nf4
