#include "worker/trainer/memory/counting_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>

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

// What stands behind a counted pointer.
struct Counted {
  c10::DataPtr inner;
  int64_t bytes;
};

void DeleteCounted(void* context) {
  const std::unique_ptr<Counted> counted(static_cast<Counted*>(context));
  live_bytes.fetch_sub(counted->bytes, std::memory_order_relaxed);
}

class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t bytes) override {
    c10::DataPtr inner = inner_->allocate(bytes);
    void* const data = inner.get();
    const c10::Device device = inner.device();
    auto counted = std::make_unique<Counted>(Counted{std::move(inner), static_cast<int64_t>(bytes)});
    CountAllocation(static_cast<int64_t>(bytes));
    return {data, counted.release(), &DeleteCounted, device};
  }
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

DeviceMemory DeviceMemoryNow() {
  return {live_bytes.load(), peak_bytes.load(), allocations.load(), unlisted_allocations.load()};
}

void ResetDeviceMemoryPeak() { peak_bytes.store(live_bytes.load()); }

ListedAllocation::ListedAllocation() { ++listed_depth; }
ListedAllocation::~ListedAllocation() { --listed_depth; }

}  // namespace longspan::trainer
