// The plan of a job: which memory policy it trains with, what that takes, and what would fit where it does not.
//
//   PlannedJob job = PlannedJobOf(spec, config, adapter, profile, limits);
//   PlanResult result = ChoosePolicy(job);
//   result.fits, result.plan.policy, result.plan.memory, result.plan.time, result.would_fit
//
// Pure: reads no file and no clock; equal jobs give equal plans, so every rank chooses the same policy by itself. A
// plan takes some milliseconds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "worker/planner/memory_policy.h"
#include "worker/planner/planned_job.h"
#include "worker/planner/policy_search.h"
#include "worker/planner/rank_memory.h"
#include "worker/planner/step_time.h"

namespace longspan::planner {

struct JobPlan {
  MemoryPolicy policy;
  RankMemory memory;
  StepTime time;
  double model_flops = 0;  // of a step over all ranks, as published tables count them
};
JobPlan PlanWith(const PlannedJob& job, const MemoryPolicy& policy);

struct PlanResult {
  bool fits = false;
  JobPlan plan;  // the fastest that fits, else the one that needs least
  // Where nothing fits: changes of the job or the limits with which it would, nearest first. Empty where none helps.
  std::vector<std::string> would_fit;
};
// Over all policies that the job's `memory` section leaves open: the fastest estimate that fits. Among those within
// half a percent of it, which is less than estimates tell apart, the one that needs least memory; then the first in the
// order of the search.
// std::overflow_error where IsCountable says no.
PlanResult ChoosePolicy(const PlannedJob& job);

// Tokens of the longest context that fits under any open policy, of the job as it is else; 0 when none does. A group
// size given as a ratio follows the context. Absent when nothing limits it.
std::optional<int64_t> LongestContext(const PlannedJob& job);

// The least memory of a slot, in bytes, that LimitsOfSlot makes room for some open policy of; `limits` are those of the
// job file alone (PlannedJobOf without others). A GPU job that fixes memory.device_bytes uses as much as it may: the
// slot must have what its policy takes. Absent when no slot is large enough for the limits of the job file.
// std::overflow_error where IsCountable says no.
std::optional<int64_t> LeastSlotMemory(const PlannedJob& job);

}  // namespace longspan::planner
