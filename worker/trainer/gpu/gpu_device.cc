#include "worker/trainer/gpu/gpu_device.h"

#include <ATen/cuda/CUDAContext.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cstdlib>

#include "worker/trainer/errors.h"

namespace longspan::trainer::gpu {
namespace {

namespace caching = c10::cuda::CUDACachingAllocator;
constexpr size_t kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

}  // namespace

bool IsBuilt() { return true; }
int64_t Count() { return c10::cuda::device_count(); }

Description Describe(int64_t index) {
  const cudaDeviceProp* const device = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(index));
  return {device->name, static_cast<int64_t>(device->totalGlobalMem), device->major * 10 + device->minor};
}

Memory MemoryNow() {
  if (Count() == 0) return {};
  const auto stats = caching::getDeviceStats(0);
  return {stats.allocated_bytes[kAll].current, stats.allocated_bytes[kAll].peak, stats.reserved_bytes[kAll].peak};
}

void ResetMemoryPeak() {
  if (Count() > 0) caching::resetPeakStats(0);
}

bool UseExpandableSegments() {
  if (std::getenv("PYTORCH_ALLOC_CONF") != nullptr || std::getenv("PYTORCH_CUDA_ALLOC_CONF") != nullptr) return false;
  c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
  return true;
}

void PinHostMemory(std::byte* data, int64_t bytes) {
  const cudaError_t status = cudaHostRegister(data, static_cast<size_t>(bytes), cudaHostRegisterDefault);
  if (status != cudaSuccess) {
    throw ResourceError("cannot pin " + std::to_string(bytes) +
                        " bytes of host memory for kept values: " + cudaGetErrorString(status));
  }
}

void UnpinHostMemory(std::byte* data) { cudaHostUnregister(data); }

void Synchronize() {
  const cudaError_t status = cudaDeviceSynchronize();
  TORCH_CHECK(status == cudaSuccess, "the GPU: ", cudaGetErrorString(status));
}

}  // namespace longspan::trainer::gpu
