// Second stage: which workers may take ranks of a job at all. Each hard constraint is one small predicate.
#pragma once

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// It answers, and nobody asked it to run dry.
bool IsOpen(const WorkerSlots& worker);

// The job failed there lately. Not a hard constraint: placement tries without such workers first.
bool IsAvoided(const WaitingJob& job, const WorkerSlots& worker);

// Slots, taken or not, of the workers that are open or expected to be.
int64_t OpenSlots(const std::vector<WorkerSlots>& workers);

}  // namespace longspan::scheduler
