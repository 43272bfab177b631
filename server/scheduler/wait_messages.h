// The sentences that say why a job waits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

std::string SlotsText(int64_t count);         // "1 slot"
std::string InText(absl::Duration from_now);  // "in 25m"; rounded so that it does not change with every pass

// ", 1 on draining worker gpu-7, 2 on unreachable worker c": free slots that are of no use now. The same for all jobs.
std::string ElsewhereText(const std::vector<WorkerSlots>& workers);

// "needs 4 slots, 3 free, 1 on draining worker gpu-7". `free_slots` are those that the job could use.
std::string DoesNotFitText(const WaitingJob& job, int64_t free_slots, const std::string& elsewhere);

// "waits for job-b, job-c to save a checkpoint and stop"
std::string StoppingText(const std::vector<JobId>& jobs);

}  // namespace longspan::scheduler
