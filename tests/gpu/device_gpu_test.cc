// The GPU itself as the trainer sets it up and measures it, and random weights made on it.
#include <ATen/ATen.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/measure_device.h"
#include "worker/trainer/model/base_tensors.h"

namespace longspan::trainer {
namespace {

TEST(DeviceGpu, TheAllocatorIsTheEnvironmentsWhereThatSetsIt) {
  for (const char* variable : {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}) {
    ASSERT_EQ(setenv(variable, "max_split_size_mb:512", 1), 0);
    EXPECT_FALSE(gpu::UseExpandableSegments()) << variable;
    ASSERT_EQ(unsetenv(variable), 0);
  }
}

TEST(DeviceGpu, SegmentsExpand) {
  ASSERT_TRUE(gpu::UseExpandableSegments());
  EXPECT_TRUE(c10::CachingAllocator::AcceleratorAllocatorConfig::use_expandable_segments());
  const at::Tensor tensor = at::empty({int64_t{64} << 20}, at::TensorOptions(at::kCUDA).dtype(at::kByte));
  bool any = false;
  for (const auto& segment : c10::cuda::CUDACachingAllocator::snapshot().segments) {
    any = any || (segment.is_expandable && segment.allocated_size >= size_t{64} << 20);
  }
  EXPECT_TRUE(any);
}

TEST(DeviceGpu, RandomWeightsAreTheCpusBits) {
  testing::TemporaryFolder folder;
  testing::TinyShape shape;
  shape.hidden = 64;
  testing::WriteTinyModel(folder.path(), shape);
  const ModelConfig config = ReadModelConfig(folder.path());
  const std::unique_ptr<BaseTensors> base = RandomBaseTensors(config, 5);
  for (const TensorShape& tensor : BaseTensorShapes(config)) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const at::Tensor drawn = at::empty(tensor.shape, at::TensorOptions(at::kCUDA).dtype(dtype));
      base->ReadInto(tensor.name, drawn);
      EXPECT_TRUE(drawn.to(at::kCPU).equal(base->Read(tensor.name).to(dtype))) << tensor.name;
    }
  }
}

// Within what any GPU of capability 8.0 and more has: an error of a unit or of a missing wait falls out of it.
TEST(DeviceGpu, MeasuredRatesAreAGpus) {
  const planner::DeviceProfile profile = MeasureDevice(at::kCUDA, 1);
  EXPECT_EQ(planner::CheckProfile(profile), "");
  EXPECT_FALSE(profile.is_host);
  EXPECT_EQ(profile.dtype, jobfile::TrainingDtype::kBf16);
  const auto expect_within = [](double value, double low, double high, const char* what) {
    EXPECT_TRUE(value > low && value < high) << what << ": " << value;
  };
  expect_within(profile.gemm_flops_per_second, 2e13, 4e15, "GEMM");
  expect_within(profile.attention_flops_per_second, 1e13, 4e15, "attention");
  expect_within(profile.memory_bytes_per_second, 3e11, 1e13, "memory");
  expect_within(profile.host_copy_bytes_per_second, 1e9, 9e11, "host copies");
  EXPECT_GE(profile.gemm_flops_per_second, profile.attention_flops_per_second / 2);
}

}  // namespace
}  // namespace longspan::trainer
