// Counts what LibTorch allocates on the CPU, which is the device memory of a job without a GPU: live bytes, their peak,
// and allocations. What libraries take for themselves (GEMM packing, threads) is not seen; resident memory is.
//
// Installed once for the whole process, before the first tensor; free functions, thread-safe.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>

namespace longspan::trainer {

struct DeviceMemory {
  int64_t live_bytes = 0;
  int64_t peak_bytes = 0;            // since the last ResetDeviceMemoryPeak
  int64_t allocations = 0;           // since the process began
  int64_t unlisted_allocations = 0;  // of at least kLargeAllocationBytes, outside of every ListedAllocation
};
inline constexpr int64_t kLargeAllocationBytes = 16384;

// Wraps LibTorch's CPU allocator. A second call does nothing.
void InstallCountingAllocator();
// Of a GPU, what LibTorch's allocator for it says: bytes alone.
DeviceMemory DeviceMemoryNow(at::Device device = at::kCPU);
void ResetDeviceMemoryPeak(at::Device device = at::kCPU);  // to what is live

// While one of these lives on a thread, its large allocations are expected: the few ATen calls that have no variant
// with an output of the caller's. Everything else takes its memory from the arena.
class ListedAllocation {
 public:
  ListedAllocation();
  ~ListedAllocation();
  ListedAllocation(const ListedAllocation&) = delete;
  ListedAllocation& operator=(const ListedAllocation&) = delete;
};

}  // namespace longspan::trainer
