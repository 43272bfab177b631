#include "server/scheduler/schedule.h"

#include <fmt/format.h>

#include "server/scheduler/feasibility.h"
#include "server/scheduler/order.h"
#include "server/scheduler/placement.h"

namespace longspan::scheduler {
namespace {

std::string Slots(int64_t count) { return fmt::format("{} slot{}", count, count == 1 ? "" : "s"); }

// "needs 4 slots, 3 free, 1 on draining worker gpu-7"
std::string DoesNotFit(const WaitingJob& job, const std::vector<WorkerSlots>& workers) {
  int64_t free_slots = 0;
  std::string elsewhere;
  for (const WorkerSlots& worker : workers) {
    const int64_t here = static_cast<int64_t>(worker.free_slots.size());
    if (IsOpen(worker)) {
      free_slots += here;
    } else if (here > 0) {
      // A few names are enough to see what is wrong.
      if (elsewhere.size() > 200) continue;
      elsewhere += fmt::format(", {} on {} worker {}", here, worker.up ? "draining" : "unreachable", worker.id);
    }
  }
  return fmt::format("needs {}, {} free{}", Slots(job.slots), free_slots, elsewhere);
}

// One pass over the ordered queue.
class Pass {
 public:
  Pass(const Snapshot& snapshot, absl::Time now)
      : workers_(snapshot.workers), open_slots_(OpenSlots(snapshot.workers)), now_(now) {
    for (const WorkerSlots& worker : workers_) any_open_ = any_open_ || IsOpen(worker);
  }

  void Visit(const WaitingJob& job) {
    if (job.old_ranks_remain || job.not_before > now_) return Delay(job);
    if (!any_open_) return Wait(job, kNoWorkers, "no worker is up and open for new ranks");
    if (job.slots > open_slots_) {
      return Wait(job, kGangExceedsCluster,
                  fmt::format("needs {}, all workers that are there have {}", Slots(job.slots), open_slots_));
    }
    if (job.slots > 0 && blocked_by_ != nullptr) {
      return Wait(job, kBehindInQueue,
                  fmt::format("needs {}, waits behind {}, which needs {}", Slots(job.slots), blocked_by_->id,
                              blocked_by_->slots));
    }
    std::vector<Placement> ranks = PlaceGang(job, workers_);
    if (!ranks.empty()) {
      plan_.starts.push_back({job.id, std::move(ranks)});
      return;
    }
    if (job.slots == 0) {
      return Wait(job, kWorkersPreparing,
                  "waits to prepare its data: every worker prepares as many jobs as it has slots");
    }
    Wait(job, kGangDoesNotFit, DoesNotFit(job, workers_));
    blocked_by_ = &job;
  }

  Plan Finish() { return std::move(plan_); }

 private:
  // Keeps what it would get, so that nobody behind it takes its place meanwhile.
  void Delay(const WaitingJob& job) {
    if (job.old_ranks_remain) {
      Wait(job, kRanksStopping, "waits until every rank of the earlier attempt is surely gone");
    } else {
      Wait(job, kBackingOff, "waits a moment before the next attempt");
    }
    if (job.slots == 0 || job.slots > open_slots_ || blocked_by_ != nullptr) return;
    if (PlaceGang(job, workers_).empty()) blocked_by_ = &job;
  }

  void Wait(const WaitingJob& job, const char* reason, std::string message) {
    const int64_t position = static_cast<int64_t>(plan_.waits.size()) + 1;
    plan_.waits.push_back({job.id, position, reason, std::move(message)});
  }

  std::vector<WorkerSlots> workers_;  // what is left of them
  const int64_t open_slots_;
  const absl::Time now_;
  bool any_open_ = false;
  const WaitingJob* blocked_by_ = nullptr;
  Plan plan_;
};

}  // namespace

Plan Schedule(const Snapshot& snapshot, absl::Time now) {
  Pass pass(snapshot, now);
  for (const WaitingJob* job : OrderQueue(snapshot.jobs)) pass.Visit(*job);
  return pass.Finish();
}

}  // namespace longspan::scheduler
