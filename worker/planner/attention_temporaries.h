// Which dense attention calls a job's layers make on a GPU, and the most that one of them takes beside the planned
// buffers.
//
// Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/planner/dense_attention_memory.h"
#include "worker/planner/memory_policy.h"
#include "worker/planner/planned_job.h"

namespace longspan::planner {

// The calls of one pass over the attention of a layer, with heads tiled for the backward pass where the policy says so;
// ragged rests, which take less, left out.
std::vector<DenseCall> DenseCallsOf(const PlannedJob& job, const StepShape& shape, const MemoryPolicy& policy);

// The most that any part of a pass takes at once; 0 on a CPU, whose kernels write into the planned buffers.
int64_t AttentionTemporaries(const PlannedJob& job, const StepShape& shape, const MemoryPolicy& policy);

}  // namespace longspan::planner
