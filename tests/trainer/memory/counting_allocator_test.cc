#include "worker/trainer/memory/counting_allocator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace longspan::trainer {
namespace {

TEST(CountingAllocator, CountsLiveAndPeakBytesExactly) {
  InstallCountingAllocator();
  InstallCountingAllocator();  // the second one does nothing
  const int64_t before = DeviceMemoryNow().live_bytes;
  ResetDeviceMemoryPeak();
  {
    const at::Tensor kept = at::empty({1000}, at::kFloat);
    at::Tensor passing = at::empty({5000}, at::kByte);
    EXPECT_EQ(DeviceMemoryNow().live_bytes, before + 9000);
    passing.reset();
    EXPECT_EQ(DeviceMemoryNow().live_bytes, before + 4000);
  }
  EXPECT_EQ(DeviceMemoryNow().live_bytes, before);
  EXPECT_EQ(DeviceMemoryNow().peak_bytes, before + 9000);
  ResetDeviceMemoryPeak();
  EXPECT_EQ(DeviceMemoryNow().peak_bytes, before);
}

TEST(CountingAllocator, MemoryIsAlignedAndAnEmptyTensorCostsNothing) {
  InstallCountingAllocator();
  const int64_t before = DeviceMemoryNow().live_bytes;
  const at::Tensor empty = at::empty({0}, at::kFloat), one = at::empty({1}, at::kByte);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(one.data_ptr()) % 64, 0u);
  EXPECT_EQ(DeviceMemoryNow().live_bytes, before + 1);
}

TEST(CountingAllocator, TensorsMayDieOnOtherThreads) {
  InstallCountingAllocator();
  const int64_t before = DeviceMemoryNow().live_bytes;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([tensor = at::empty({1 << 16}, at::kByte)]() mutable {
      tensor.reset();
      for (int j = 0; j < 100; ++j) at::empty({j + 1}, at::kFloat);
    });
  }
  for (std::thread& thread : threads) thread.join();
  threads.clear();
  EXPECT_EQ(DeviceMemoryNow().live_bytes, before);
}

TEST(CountingAllocator, OnlyLargeAllocationsOutsideOfAListAreUnlisted) {
  InstallCountingAllocator();
  const int64_t before = DeviceMemoryNow().unlisted_allocations;
  at::empty({kLargeAllocationBytes - 1}, at::kByte);
  {
    const ListedAllocation listed;
    at::empty({kLargeAllocationBytes}, at::kByte);
  }
  EXPECT_EQ(DeviceMemoryNow().unlisted_allocations, before);
  at::empty({kLargeAllocationBytes}, at::kByte);
  EXPECT_EQ(DeviceMemoryNow().unlisted_allocations, before + 1);
}

}  // namespace
}  // namespace longspan::trainer
