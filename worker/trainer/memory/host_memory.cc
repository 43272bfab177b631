#include "worker/trainer/memory/host_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_device.h"

namespace longspan::trainer {

void HostBlock::Reserve(int64_t bytes) {
  if (bytes <= bytes_) return;
  Release();
  void* const mapped = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                              /*fd=*/-1, /*offset=*/0);
  if (mapped == MAP_FAILED) {
    throw ResourceError(
        fmt::format("cannot get {} bytes of host memory for kept values: {}; fewer memory.host_layers need less", bytes,
                    std::strerror(errno)));
  }
  data_ = static_cast<std::byte*>(mapped);
  bytes_ = bytes;
  if (!pinned_) return;
  try {
    gpu::PinHostMemory(data_, bytes);
  } catch (...) {
    ::munmap(data_, static_cast<size_t>(bytes_));
    data_ = nullptr;
    bytes_ = 0;
    throw;
  }
}

void HostBlock::Release() {
  if (data_ != nullptr && pinned_) gpu::UnpinHostMemory(data_);
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(bytes_));
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace longspan::trainer
