// The GPU of this process: which one trains, its memory, and host memory that it can reach. A build without CUDA sees
// none.
#pragma once

#include <c10/core/Device.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace longspan::trainer::gpu {

bool IsBuilt();   // with CUDA
int64_t Count();  // that this process may use; 0 without a driver

struct Description {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int64_t memory_bytes = 0;
  int compute_capability = 0;  // 90
};
// Of one of Count(). The first is the one that trains: the daemon hides the others.
Description Describe(int64_t index = 0);

// Bytes that LibTorch's allocator has out there, and the most at once since the last reset.
struct Memory {
  int64_t live_bytes = 0, peak_bytes = 0;
  int64_t reserved_peak_bytes = 0;  // with what it keeps back for later
};
Memory MemoryNow();
void ResetMemoryPeak();

// Lets LibTorch's allocator grow its segments instead of taking new ones, so that what is given back serves larger
// requests too: a step's buffers change size with its sequences. Before the first tensor on the GPU. False where the
// environment (PYTORCH_ALLOC_CONF, PYTORCH_CUDA_ALLOC_CONF) sets the allocator itself, which then stays as it is.
bool UseExpandableSegments();

// Lets the GPU copy from and to this host memory at full speed, beside its computation. ResourceError when the system
// refuses.
void PinHostMemory(std::byte* data, int64_t bytes);
void UnpinHostMemory(std::byte* data);

// Returns when all work that was queued is done. c10::Error when any of it failed.
void Synchronize();

}  // namespace longspan::trainer::gpu
