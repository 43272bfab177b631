// Which memory policy a rank trains with: what the job file fixes, and for the rest the planner's choice for the memory
// of the slot.
#pragma once

#include <ATen/core/TensorBody.h>

#include <cstdint>
#include <optional>

#include "proto/jobfile/job_spec.h"
#include "worker/planner/job_plan.h"

namespace longspan::trainer {

struct MemoryPlanOptions {
  jobfile::JobSpec spec;
  int64_t threads = 1;
  std::optional<int64_t> slot_memory_bytes;  // absent: all that the device has
  at::Device device = at::kCPU;
  // Ranks that there are, which an elastic job may have fewer of than resources.slots. Absent: resources.slots.
  std::optional<int64_t> world_size = std::nullopt;
};

// Reads config.json and adapter_config.json of the job.
planner::PlannedJob PlannedJobFor(const MemoryPlanOptions& options);

// ResourceError when nothing fits, with the numbers and what would fit.
planner::JobPlan PlanMemory(const MemoryPlanOptions& options);

}  // namespace longspan::trainer
