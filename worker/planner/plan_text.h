// A plan in words, for logs, answers and refusals. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "worker/planner/job_plan.h"

namespace longspan::planner {

std::string BytesText(int64_t bytes);  // "1.5 GiB"

// "keeps the layer input and the attention output of each layer; tiles of 1,024 tokens, logits of 512"
std::string PolicyText(const MemoryPolicy& policy, const StepShape& shape);

// Kinds with their bytes on the device, in the order of documentation; the sum is device_bytes().
std::vector<std::pair<std::string, int64_t>> DeviceKinds(const RankMemory& memory);
// Likewise in host memory.
std::vector<std::pair<std::string, int64_t>> HostKinds(const RankMemory& memory);

// "fits: 12.3 GiB of 71.0 GiB; about 15,000 tokens/s", or what is missing and what would fit. `place` names whose
// memory it is, "slot 0 of worker-a (cpu)"; empty: the limits are the caller's.
std::string SummaryText(const PlannedJob& job, const PlanResult& result, const std::string& place);

}  // namespace longspan::planner
