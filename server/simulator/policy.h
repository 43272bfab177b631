// What decides in a simulation: the server's own scheduler, or the rules of others to compare it with. All of them get
// the same snapshots, and place gangs on workers by the same function: only order and backfill differ.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/scheduler/schedule.h"

namespace longspan::simulator {

struct Decision {
  scheduler::Plan plan;
  absl::Time again = absl::InfiniteFuture();  // asks for another pass by then, even if nothing happens
};

class Policy {
 public:
  virtual ~Policy() = default;
  // Called when something has happened, and when it asked to be. Waiting and running jobs in no order.
  virtual Decision Pass(const scheduler::Snapshot& snapshot, absl::Time now) = 0;
};

struct PolicyOptions {
  scheduler::Options scheduler;
  absl::Duration schedule_interval = absl::Seconds(30);  // of longspan's passes while jobs wait, as the server's
};

// "longspan", "fifo" (submit order, nobody overtakes), "fifo-backfill" (the same with EASY backfill: Lifka 1995) or
// "slurm" (slurm.h). A job's priority comes before its submit time everywhere. The others than longspan stop nobody and
// start an elastic job at its largest size.
absl::StatusOr<std::unique_ptr<Policy>> MakePolicy(const std::string& name, const PolicyOptions& options);

// Jobs by priority, submit time, id; without those that have ranks of an earlier attempt left.
std::vector<const scheduler::WaitingJob*> BySubmitTime(const scheduler::Snapshot& snapshot);

}  // namespace longspan::simulator
