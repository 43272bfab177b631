// The search that lays out few arenas answers as one that lays out all of them.
#include "worker/planner/policy_search.h"

#include <gtest/gtest.h>

#include "tests/worker/planner/model_configs.h"

namespace longspan::planner {
namespace {

std::vector<PlannedJob> Jobs() {
  std::vector<PlannedJob> jobs;
  for (const char* device : {"NVIDIA H100", "cpu"}) {
    for (const int64_t context : {1024, 10'000, 131'072}) {
      for (const std::optional<int64_t> host :
           {std::optional<int64_t>(), std::optional<int64_t>(0), std::optional<int64_t>(int64_t{4} << 30)}) {
        jobfile::JobSpec spec;
        spec.context_length = context;
        spec.method.kind = context == 1024 ? jobfile::MethodKind::kLora : jobfile::MethodKind::kLongLora;
        spec.training.micro_batch = context == 1024 ? 3 : 1;
        spec.data.packing = context == 10'000;
        MemoryLimits limits;
        limits.host = host;
        jobs.push_back(JobOf(Llama2_7B(), spec, *ProfileOf(device, 1), limits));
      }
    }
  }
  return jobs;
}

TEST(PolicySearch, FindsEveryPolicyThatFitsAndNoOther) {
  for (const PlannedJob& job : Jobs()) {
    const ModelMemory model = ModelMemoryOf(job);
    MemoryLimits limits = job.limits;
    for (const int64_t gib : {16, 24, 40, 80}) {
      (job.device.is_host ? limits.whole : limits.device) = gib << 30;
      std::vector<int64_t> all, found;
      PolicySearch(job, model).ForEach(limits, [&](const Candidate& candidate) {
        if (Fits(candidate.memory, limits)) all.push_back(candidate.memory.whole_bytes());
        return true;
      });
      PolicySearch search(job, model);
      EXPECT_EQ(search.AnyFits(limits), !all.empty());
      search.ForEachThatFits(limits, [&](const Candidate& candidate) {
        found.push_back(candidate.memory.whole_bytes());
        return true;
      });
      EXPECT_EQ(found, all);
    }
  }
}

TEST(PolicySearch, TheLeastIsThatOfAllPolicies) {
  for (const PlannedJob& job : Jobs()) {
    const ModelMemory model = ModelMemoryOf(job);
    std::optional<int64_t> least;
    PolicySearch(job, model).ForEach(job.limits, [&](const Candidate& candidate) {
      if (Fits(candidate.memory, job.limits)) {
        least = std::min(least.value_or(candidate.memory.whole_bytes()), candidate.memory.whole_bytes());
      }
      return true;
    });
    ASSERT_TRUE(least);
    EXPECT_EQ(PolicySearch(job, model).Least(job.limits, [](const RankMemory& memory) { return memory.whole_bytes(); }),
              least);
  }
}

TEST(PolicySearch, UnderTheLeastDeviceBytesSomethingFitsAndAByteLowerNothing) {
  for (const PlannedJob& job : Jobs()) {
    PolicySearch search(job, ModelMemoryOf(job));
    MemoryLimits limits = job.limits;
    limits.device = search.LeastDeviceBytes(job.limits);
    ASSERT_TRUE(limits.device);
    EXPECT_TRUE(search.AnyFits(limits));
    --*limits.device;
    EXPECT_FALSE(search.AnyFits(limits));
  }
}

}  // namespace
}  // namespace longspan::planner
