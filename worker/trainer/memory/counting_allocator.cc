#include "worker/trainer/memory/counting_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <new>
#include <utility>

#include "worker/trainer/gpu/gpu_device.h"

namespace longspan::trainer {
namespace {

std::atomic<int64_t> live_bytes{0}, peak_bytes{0}, allocations{0}, unlisted_allocations{0};
thread_local int listed_depth = 0;

void CountAllocation(int64_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (bytes >= kLargeAllocationBytes && listed_depth == 0) unlisted_allocations.fetch_add(1, std::memory_order_relaxed);
  const int64_t live = live_bytes.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t peak = peak_bytes.load(std::memory_order_relaxed);
  while (peak < live && !peak_bytes.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
  }
}

// Stands in front of the memory that is handed out: c10's raw interface, which oneDNN uses, wants the pointer to be its
// own context. As long as the alignment that c10 promises.
struct alignas(64) Header {
  c10::DataPtr inner;
  int64_t bytes;
};
static_assert(sizeof(Header) == 64);

void DeleteCounted(void* data) {
  if (data == nullptr) return;
  Header* const header = static_cast<Header*>(data) - 1;
  live_bytes.fetch_sub(header->bytes, std::memory_order_relaxed);
  const c10::DataPtr inner = std::move(header->inner);  // gives the memory back, the header with it
  header->~Header();
}

class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &DeleteCounted, c10::Device(c10::DeviceType::CPU)};
    c10::DataPtr inner = inner_->allocate(bytes + sizeof(Header));
    const c10::Device device = inner.device();
    auto* const header = static_cast<Header*>(inner.get());
    new (header) Header{std::move(inner), static_cast<int64_t>(bytes)};
    CountAllocation(static_cast<int64_t>(bytes));
    void* const data = header + 1;
    return {data, data, &DeleteCounted, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &DeleteCounted; }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    inner_->copy_data(destination, source, bytes);
  }

 private:
  c10::Allocator* const inner_;
};

}  // namespace

void InstallCountingAllocator() {
  static std::once_flag once;
  std::call_once(once, [] {
    static CountingAllocator allocator(c10::GetCPUAllocator());  // lives as long as the process: tensors point to it
    c10::SetCPUAllocator(&allocator, /*priority=*/100);
  });
}

DeviceMemory DeviceMemoryNow(at::Device device) {
  if (device.is_cuda()) {
    const gpu::Memory memory = gpu::MemoryNow();
    return {memory.live_bytes, memory.peak_bytes, 0, 0};
  }
  return {live_bytes.load(), peak_bytes.load(), allocations.load(), unlisted_allocations.load()};
}

void ResetDeviceMemoryPeak(at::Device device) {
  if (device.is_cuda()) {
    gpu::ResetMemoryPeak();
  } else {
    peak_bytes.store(live_bytes.load());
  }
}

ListedAllocation::ListedAllocation() { ++listed_depth; }
ListedAllocation::~ListedAllocation() { --listed_depth; }

}  // namespace longspan::trainer
