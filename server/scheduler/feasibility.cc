#include "server/scheduler/feasibility.h"

#include <algorithm>

namespace longspan::scheduler {

bool IsOpen(const WorkerSlots& worker) { return worker.up && !worker.draining; }

bool IsAvoided(const WaitingJob& job, const WorkerSlots& worker) {
  return std::find(job.avoid.begin(), job.avoid.end(), worker.id) != job.avoid.end();
}

int64_t OpenSlots(const std::vector<WorkerSlots>& workers) {
  int64_t slots = 0;
  for (const WorkerSlots& worker : workers) {
    if (IsOpen(worker) || (worker.expected && !worker.draining)) slots += worker.slot_count;
  }
  return slots;
}

}  // namespace longspan::scheduler
