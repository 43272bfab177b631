// Llama-2-7B on one GPU of 141 GB (139 GiB that its driver tells) with 128 GiB of host memory: LongLoRA in bf16, with
// everything that a step holds, at the lengths of the published tables and at 1,048,576 tokens.
#include <gtest/gtest.h>

#include <iostream>

#include "tests/worker/planner/model_configs.h"
#include "worker/planner/job_plan.h"
#include "worker/planner/plan_text.h"

namespace longspan::planner {
namespace {

constexpr int64_t kGibibyte = int64_t{1} << 30;
constexpr int64_t kDeviceBytes = 139 * kGibibyte;
constexpr int64_t kHostBytes = 110 * kGibibyte;  // of 128: the rest for the process, the files and the system

PlannedJob Job(int64_t tokens) {
  jobfile::JobSpec spec;
  spec.context_length = tokens;
  spec.method.kind = jobfile::MethodKind::kLongLora;
  spec.training.global_batch = 1;
  const DeviceProfile device = *ProfileOf("NVIDIA H200", 1);
  MemoryLimits limits = LimitsOfSlot(kDeviceBytes, device);
  limits.host = kHostBytes;
  return JobOf(Llama2_7B(), spec, device, limits);
}

class LongContexts : public ::testing::TestWithParam<int64_t> {};

TEST_P(LongContexts, FitsOneGpu) {
  const PlannedJob job = Job(GetParam());
  const PlanResult result = ChoosePolicy(job);
  ASSERT_TRUE(result.fits) << SummaryText(job, result, "");
  const RankMemory& memory = result.plan.memory;
  std::cout << GetParam() << " tokens: " << BytesText(memory.device_bytes()) << " (" << memory.device_bytes()
            << ") on the device, " << BytesText(memory.host_activations()) << " in host memory, "
            << result.plan.time.tokens_per_second << " tokens/s; " << PolicyText(result.plan.policy, job.Shape())
            << "\n";
  EXPECT_LE(memory.device_bytes(), kDeviceBytes - kDeviceBytes / 20 - job.device.process_bytes);
  EXPECT_LE(memory.host_activations() + memory.tokens + memory.model.checkpoint, 128 * kGibibyte);
  // What training cannot do without: bf16 weights, fp32 masters, moments and gradients of what trains.
  EXPECT_GT(memory.model.weights, 12 * kGibibyte);
  EXPECT_EQ(memory.model.gradients, 4 * memory.model.trained_values);
  EXPECT_GE(memory.model.optimizer, 12 * memory.model.trained_values);
  EXPECT_GT(memory.attention, 0);
}

INSTANTIATE_TEST_SUITE_P(Tokens, LongContexts, ::testing::Values(102400, 262144, 524288, 1048576));

}  // namespace
}  // namespace longspan::planner
