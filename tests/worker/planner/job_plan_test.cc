// Which policy is chosen, and what is said where none fits.
#include "worker/planner/job_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "tests/worker/planner/model_configs.h"
#include "worker/planner/plan_text.h"

namespace longspan::planner {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

jobfile::JobSpec LlamaSpec(int64_t context = 32768) {
  jobfile::JobSpec spec;
  spec.context_length = context;
  return spec;
}

PlannedJob LlamaJob(const jobfile::JobSpec& spec, std::optional<int64_t> device_gib,
                    std::optional<int64_t> host_gib = 0) {
  MemoryLimits limits;
  if (device_gib) limits.device = *device_gib << 30;
  limits.host = host_gib ? std::optional(*host_gib << 30) : std::nullopt;
  return JobOf(Llama2_7B(), spec, *ProfileOf("NVIDIA H100", 1), limits);
}

TEST(ChoosePolicy, WithoutALimitNothingIsRecomputed) {
  const PlanResult result = ChoosePolicy(LlamaJob(LlamaSpec(), std::nullopt));
  EXPECT_TRUE(result.fits);
  EXPECT_EQ(result.plan.policy.keep, KeepPolicy::kGateUp);
  EXPECT_EQ(result.plan.policy.checkpoint_every, 1);
  EXPECT_EQ(result.plan.policy.host_layers, 0);
  EXPECT_THAT(result.would_fit, IsEmpty());
}

TEST(ChoosePolicy, RanksThatShareSequencesReachLongerContextsThatTheyCanShare) {
  jobfile::JobSpec spec = LlamaSpec();
  const int64_t alone = *LongestContext(LlamaJob(spec, 40));
  spec.resources.slots = spec.resources.sequence_parallel.emplace(4);
  for (const std::optional<int64_t> group : {std::optional<int64_t>(), std::optional<int64_t>(1000)}) {
    spec.attention.group_size = group;
    const int64_t shared = *LongestContext(LlamaJob(spec, 40));
    EXPECT_GT(shared, 3 * alone);
    spec.context_length = shared;
    EXPECT_TRUE(jobfile::ContextDivides(spec)) << shared;
    EXPECT_TRUE(ChoosePolicy(LlamaJob(spec, 40)).fits);
    spec.context_length = 4 * 1000 * 1000;
    const PlanResult result = ChoosePolicy(LlamaJob(spec, 40));
    EXPECT_FALSE(result.fits);
    EXPECT_THAT(result.would_fit, Contains("context_length: " + std::to_string(shared)));
  }
}

// What needs least of 32 key/value heads, or of 8 that four query heads share, where nothing fits.
TEST(ChoosePolicy, TilesOfHeadsGoDownToAQuarterOnACpuAndToOneHeadOfALongSequenceOnAGpu) {
  const auto leanest = [](int64_t tokens, int64_t key_value_heads, const DeviceProfile& device) {
    nlohmann::json config = Llama2_7B();
    config["num_key_value_heads"] = key_value_heads;
    MemoryLimits limits;
    limits.device = 1;
    return ChoosePolicy(JobOf(config, LlamaSpec(tokens), device, limits)).plan.policy.tile_heads;
  };
  const DeviceProfile gpu = *ProfileOf("NVIDIA H200", 1);
  for (const int64_t tokens : {8192, 16384, 65536, 1048576}) EXPECT_EQ(leanest(tokens, 32, CpuProfile(1)), 8);
  EXPECT_EQ(leanest(8192, 32, gpu), 8);
  EXPECT_EQ(leanest(16384, 32, gpu), 4);
  EXPECT_EQ(leanest(20000, 32, gpu), 4);
  EXPECT_EQ(leanest(65535, 32, gpu), 2);
  EXPECT_EQ(leanest(65536, 32, gpu), 1);
  EXPECT_EQ(leanest(1048576, 32, gpu), 1);
  EXPECT_EQ(leanest(8192, 8, gpu), 2);
  EXPECT_EQ(leanest(16384, 8, gpu), 1);
}

TEST(ChoosePolicy, LessMemoryIsNeverFasterAndAlwaysKept) {
  double seconds = 0;
  for (const int64_t gib : {140, 100, 70, 50, 40, 30, 25, 20}) {
    const PlannedJob job = LlamaJob(LlamaSpec(), gib);
    const PlanResult result = ChoosePolicy(job);
    if (!result.fits) {
      EXPECT_LT(gib, 30);
      continue;
    }
    EXPECT_LE(result.plan.memory.device_bytes(), gib << 30);
    EXPECT_GE(result.plan.time.seconds, seconds / 1.005) << gib;  // within half a percent is equal
    seconds = std::max(seconds, result.plan.time.seconds);
    // What is told is what the policy gives.
    const JobPlan again = PlanWith(job, result.plan.policy);
    EXPECT_EQ(again.memory.device_bytes(), result.plan.memory.device_bytes());
    EXPECT_EQ(again.time.seconds, result.plan.time.seconds);
  }
}

// Every policy of the search, one by one.
TEST(ChoosePolicy, NoOpenPolicyThatFitsIsFaster) {
  const PlannedJob job = LlamaJob(LlamaSpec(16384), 26, 16);
  const PlanResult result = ChoosePolicy(job);
  ASSERT_TRUE(result.fits);
  for (int keep = 0; keep < 5; ++keep) {
    for (const int64_t every : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32}) {
      for (const int64_t host : {0, 1, 4, 8, 16, 32}) {
        for (const int64_t tile : {256, 2048}) {
          for (const int64_t heads : {0, 8}) {
            const MemoryPolicy policy{static_cast<KeepPolicy>(keep), every, host, tile, 512, heads};
            const JobPlan plan = PlanWith(job, policy);
            if (!Fits(plan.memory, job.limits)) continue;
            EXPECT_GE(plan.time.seconds * 1.005, result.plan.time.seconds) << PolicyText(policy, job.Shape());
          }
        }
      }
    }
  }
}

TEST(ChoosePolicy, RespectsWhatTheJobFileFixes) {
  jobfile::JobSpec spec = LlamaSpec(8192);
  spec.memory.keep = KeepPolicy::kQueryKeyValue;
  spec.memory.checkpoint_every = 5;
  spec.memory.host_layers = 2;
  spec.memory.tile_tokens = 300;
  spec.memory.loss_tile_tokens = 77;
  spec.memory.tile_heads = 5;
  const PlanResult result = ChoosePolicy(LlamaJob(spec, 80, 8));
  ASSERT_TRUE(result.fits);
  EXPECT_EQ(result.plan.policy.keep, KeepPolicy::kQueryKeyValue);
  EXPECT_EQ(result.plan.policy.checkpoint_every, 5);
  EXPECT_EQ(result.plan.policy.host_layers, 2);
  EXPECT_EQ(result.plan.policy.tile_tokens, 300);
  EXPECT_EQ(result.plan.policy.loss_tile_tokens, 77);
  EXPECT_EQ(result.plan.policy.tile_heads, 5);
  spec.memory = {};
  spec.memory.device_bytes = int64_t{20} << 30;
  EXPECT_LE(ChoosePolicy(LlamaJob(spec, 80)).plan.memory.device_bytes(), int64_t{20} << 30);
}

TEST(ChoosePolicy, MoreLayersThanThereAreAreAll) {
  jobfile::JobSpec spec = LlamaSpec(8192);
  spec.memory.checkpoint_every = 1000;
  spec.memory.host_layers = 1000;
  const PlanResult result = ChoosePolicy(LlamaJob(spec, 80, 80));
  EXPECT_EQ(result.plan.policy.checkpoint_every, 32);
  EXPECT_EQ(result.plan.policy.host_layers, 0);  // of the one input, which must stay
}

TEST(ChoosePolicy, MovesValuesToTheHostOnlyWhereTheDeviceIsTooSmall) {
  jobfile::JobSpec spec = LlamaSpec(65536);
  spec.memory.checkpoint_every = 1;
  spec.memory.keep = KeepPolicy::kInput;
  EXPECT_FALSE(ChoosePolicy(LlamaJob(spec, 24, 0)).fits);
  const PlanResult result = ChoosePolicy(LlamaJob(spec, 24, 64));
  ASSERT_TRUE(result.fits);
  EXPECT_GT(result.plan.policy.host_layers, 0);
  EXPECT_EQ(ChoosePolicy(LlamaJob(spec, 80, 64)).plan.policy.host_layers, 0);
  // One layer less would not have fitted.
  MemoryPolicy fewer = result.plan.policy;
  --fewer.host_layers;
  EXPECT_FALSE(Fits(PlanWith(LlamaJob(spec, 24, 64), fewer).memory, LlamaJob(spec, 24, 64).limits));
}

TEST(ChoosePolicy, EqualJobsGiveEqualPlans) {
  const PlanResult first = ChoosePolicy(LlamaJob(LlamaSpec(), 40, 10));
  const PlanResult second = ChoosePolicy(LlamaJob(LlamaSpec(), 40, 10));
  EXPECT_EQ(PolicyText(first.plan.policy, LlamaJob(LlamaSpec(), 40).Shape()),
            PolicyText(second.plan.policy, LlamaJob(LlamaSpec(), 40).Shape()));
  EXPECT_EQ(first.plan.memory.device_bytes(), second.plan.memory.device_bytes());
}

TEST(ChoosePolicy, OfEqualEstimatesTheOneWithLessMemoryIsTaken) {
  // A pass of 100 tokens is one tile of any size.
  const PlanResult result = ChoosePolicy(JobOf(TinyQwen(), LlamaSpec(100)));
  EXPECT_EQ(result.plan.policy.tile_tokens, 256);
  EXPECT_EQ(result.plan.policy.loss_tile_tokens, 256);
}

TEST(ChoosePolicy, SaysWhatIsMissingAndWhatWouldFit) {
  jobfile::JobSpec spec = LlamaSpec(131072);
  spec.training.micro_batch = 4;
  const PlannedJob job = LlamaJob(spec, 24);
  const PlanResult result = ChoosePolicy(job);
  ASSERT_FALSE(result.fits);
  EXPECT_GT(result.plan.memory.device_bytes(), int64_t{24} << 30);
  const std::string text = SummaryText(job, result, "slot 0 of worker-a");
  EXPECT_THAT(text, StartsWith("does not fit: needs at least "));
  EXPECT_THAT(text, HasSubstr("of 24.0 GiB that slot 0 of worker-a has for a rank; would fit: "));
  EXPECT_THAT(result.would_fit, Contains(StartsWith("context_length: ")));
  EXPECT_THAT(result.would_fit, Contains(HasSubstr("of memory for a rank")));
}

// What is proposed does fit, and nothing larger of its kind.
TEST(ChoosePolicy, WhatItProposesFits) {
  jobfile::JobSpec spec = LlamaSpec(16384);
  spec.training.micro_batch = 8;
  spec.memory.keep = KeepPolicy::kGateUp;
  spec.memory.checkpoint_every = 1;
  const PlannedJob job = LlamaJob(spec, 80);
  const PlanResult result = ChoosePolicy(job);
  ASSERT_FALSE(result.fits);
  EXPECT_THAT(result.would_fit, Contains(StartsWith("the same with what `memory` fixes left out")));
  for (const std::string& change : result.would_fit) {
    const auto number = [&] { return std::stoll(change.substr(change.find(": ") + 2)); };
    jobfile::JobSpec changed = spec;
    if (change.starts_with("training.micro_batch")) {
      changed.training.micro_batch = number();
      EXPECT_TRUE(ChoosePolicy(LlamaJob(changed, 80)).fits);
      changed.training.micro_batch = number() + 1;
      EXPECT_FALSE(ChoosePolicy(LlamaJob(changed, 80)).fits);
    } else if (change.starts_with("context_length")) {
      changed.context_length = number();
      EXPECT_TRUE(ChoosePolicy(LlamaJob(changed, 80)).fits);
      changed.context_length = number() + 1;
      EXPECT_FALSE(ChoosePolicy(LlamaJob(changed, 80)).fits);
    } else if (change.starts_with("memory.host_bytes")) {
      changed.memory.host_bytes = number();
      EXPECT_TRUE(ChoosePolicy(LlamaJob(changed, 80)).fits);
    }
  }
}

TEST(ChoosePolicy, ProposesFourBitsWhereTheyWouldDo) {
  EXPECT_THAT(ChoosePolicy(LlamaJob(LlamaSpec(8192), 10)).would_fit, Contains("method.kind: qlonglora"));
  EXPECT_THAT(ChoosePolicy(LlamaJob(LlamaSpec(8192), 3)).would_fit, Not(Contains(StartsWith("method.kind"))));
}

TEST(ChoosePolicy, ProposesThatRanksShareWeightsWhereThatWouldDo) {
  constexpr const char* kProposal = "resources.shard_weights: true";
  jobfile::JobSpec spec = LlamaSpec(8192);
  spec.training.global_batch = 8;
  EXPECT_THAT(ChoosePolicy(LlamaJob(spec, 10)).would_fit, Not(Contains(kProposal)));  // one rank
  spec.resources.slots = 8;
  EXPECT_THAT(ChoosePolicy(LlamaJob(spec, 10)).would_fit, Contains(kProposal));
  EXPECT_THAT(ChoosePolicy(LlamaJob(spec, 2)).would_fit, Not(Contains(kProposal)));
  spec.evaluation.passkey.lengths = {8192};
  EXPECT_THAT(ChoosePolicy(LlamaJob(spec, 10)).would_fit, Not(Contains(kProposal)));
  spec.evaluation.passkey.lengths.clear();
  spec.resources.shard_weights = true;
  EXPECT_TRUE(ChoosePolicy(LlamaJob(spec, 10)).fits);
}

TEST(ChoosePolicy, ASlotOfACpuHoldsHostValuesToo) {
  jobfile::JobSpec spec = LlamaSpec(512);
  const DeviceProfile cpu = CpuProfile(2);
  const MemoryLimits limits = LimitsOfSlot(int64_t{1} << 30, cpu);
  EXPECT_FALSE(limits.device);
  const PlanResult result = ChoosePolicy(JobOf(TinyQwen(), spec, cpu, limits));
  EXPECT_TRUE(result.fits);
  EXPECT_LE(result.plan.memory.whole_bytes(), *limits.whole);
  EXPECT_EQ(LimitsOfSlot(int64_t{80} << 30, *ProfileOf("NVIDIA H100", 1)).device,
            (int64_t{80} << 30) / 20 * 19 - (int64_t{1} << 30));
}

// A slot of this much memory is enough, one byte less is not.
void ExpectLeast(int64_t memory, const PlannedJob& job) {
  const auto fits = [&](int64_t bytes) {
    PlannedJob on_slot = job;
    const MemoryLimits limits = LimitsOfSlot(bytes, job.device);
    on_slot.limits.device = limits.device;
    on_slot.limits.whole = limits.whole;
    return ChoosePolicy(on_slot).fits;
  };
  EXPECT_TRUE(fits(memory)) << memory;
  EXPECT_FALSE(fits(memory - 1)) << memory;
}

TEST(LeastSlotMemory, IsEnoughAndAByteLessIsNot) {
  const PlannedJob on_gpu = LlamaJob(LlamaSpec(), std::nullopt);
  const int64_t alone = *LeastSlotMemory(on_gpu);
  ExpectLeast(alone, on_gpu);
  const PlannedJob with_host = LlamaJob(LlamaSpec(), std::nullopt, 200);
  const int64_t helped = *LeastSlotMemory(with_host);
  ExpectLeast(helped, with_host);
  EXPECT_LT(helped, alone);
  const PlannedJob on_cpu = JobOf(Llama2_7B(), LlamaSpec(4096), CpuProfile(8), {});
  ExpectLeast(*LeastSlotMemory(on_cpu), on_cpu);
}

TEST(LeastSlotMemory, IsWhatAJobTakesThatSaysHowMuchItMay) {
  jobfile::JobSpec spec = LlamaSpec();
  spec.memory.device_bytes = int64_t{60} << 30;
  PlannedJob job = LlamaJob(spec, 60);
  const int64_t memory = *LeastSlotMemory(job);
  EXPECT_GT(memory, ChoosePolicy(job).plan.memory.device_bytes());
  EXPECT_GT(memory, *LeastSlotMemory(LlamaJob(LlamaSpec(), std::nullopt)));
  job.limits.device = 1 << 30;
  EXPECT_EQ(LeastSlotMemory(job), std::nullopt);
}

TEST(LeastSlotMemory, OfSharedWeightsIsMoreForFewerRanks) {
  jobfile::JobSpec spec = LlamaSpec();
  spec.resources.shard_weights = true;
  spec.resources.slots = 8;
  const int64_t eight = *LeastSlotMemory(LlamaJob(spec, std::nullopt));
  spec.resources.slots = 2;
  EXPECT_GT(*LeastSlotMemory(LlamaJob(spec, std::nullopt)), eight + (int64_t{2} << 30));
}

TEST(LongestContext, FitsAndOneMoreTokenDoesNot) {
  for (const int64_t gib : {24, 80}) {
    jobfile::JobSpec spec = LlamaSpec();
    const std::optional<int64_t> longest = LongestContext(LlamaJob(spec, gib));
    ASSERT_TRUE(longest);
    spec.context_length = *longest;
    EXPECT_TRUE(ChoosePolicy(LlamaJob(spec, gib)).fits);
    ++spec.context_length;
    EXPECT_FALSE(ChoosePolicy(LlamaJob(spec, gib)).fits);
  }
}

TEST(LongestContext, IsNoneWithoutRoomForTheWeightsAndUnknownWithoutALimit) {
  EXPECT_EQ(LongestContext(LlamaJob(LlamaSpec(), 4)), 0);
  EXPECT_EQ(LongestContext(LlamaJob(LlamaSpec(), std::nullopt)), std::nullopt);
}

TEST(ChoosePolicy, AJobBeyondCountingIsRefusedAsSuch) {
  jobfile::JobSpec spec = LlamaSpec(1 << 24);
  spec.training.global_batch = 1'000'000;
  spec.training.micro_batch = 1'000'000;
  EXPECT_THROW(ChoosePolicy(LlamaJob(spec, 80)), std::overflow_error);
  const std::optional<int64_t> longest = LongestContext(LlamaJob(spec, 80));
  EXPECT_EQ(longest, 0);
}

TEST(PolicyText, NamesWhatIsKeptAndWhere) {
  const StepShape shape = LlamaJob(LlamaSpec(), 80).Shape();
  EXPECT_EQ(PolicyText({KeepPolicy::kAttentionOutput, 1, 0, 1024, 512}, shape),
            "each layer keeps its input and the attention output; tiles of 1024 tokens, logits of 512");
  EXPECT_EQ(
      PolicyText({KeepPolicy::kInput, 4, 3, 1024, 512}, shape),
      "of every 4 layers the first one's input is kept; while they run again, each layer keeps its input; the first "
      "3 of these inputs wait in host memory; tiles of 1024 tokens, logits of 512");
}

TEST(DeviceProfile, IsFoundByTheNameOfADevice) {
  EXPECT_EQ(ProfileOf("NVIDIA H100 80GB HBM3", 1)->name, "NVIDIA H100");
  EXPECT_EQ(ProfileOf("NVIDIA A100-SXM4-80GB", 1)->dtype, jobfile::TrainingDtype::kBf16);
  EXPECT_EQ(ProfileOf("cpu", 4)->gemm_flops_per_second, 4 * ProfileOf("cpu", 1)->gemm_flops_per_second);
  EXPECT_FALSE(ProfileOf("NVIDIA GeForce 6600", 1));
}

TEST(DeviceProfile, GoesThroughJson) {
  const DeviceProfile h200 = *ProfileOf("NVIDIA H200", 1);
  DeviceProfile read;
  EXPECT_EQ(ReadJson(ToJson(h200), &read), "");
  EXPECT_EQ(ToJson(read), ToJson(h200));
  EXPECT_EQ(ReadJson({{"gemm_flops", 1}}, &read), "unknown key \"gemm_flops\"");
  EXPECT_EQ(ReadJson({{"gemm_flops_per_second", 0}}, &read), "gemm_flops_per_second is 0; must be above 0");
  EXPECT_EQ(ReadJson({{"gemm_flops_per_second", "fast"}}, &read), "gemm_flops_per_second must be a number");
  EXPECT_EQ(ReadJson({{"dtype", "fp8"}}, &read), "dtype must be fp32 or bf16");
}

}  // namespace
}  // namespace longspan::planner
