// When waiting jobs will start, as far as can be known: every slot comes free when its holder is expected to end, and
// the jobs take them in queue order, each the earliest ones, for as long as its estimate says.
//
// It knows nothing of jobs that are yet to come, and lets nobody overtake; with backfill a job mostly starts earlier.
#pragma once

#include <set>
#include <utility>
#include <vector>

#include "server/scheduler/backfill.h"
#include "server/scheduler/cluster.h"
#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

class Forecast {
 public:
  // Slots of open workers: free ones now, the others when they are let go.
  Forecast(const Cluster& cluster, const std::vector<Holding>& holdings, absl::Time now);

  // The next job in queue order. InfiniteFuture when its slots are not in sight, or lie behind kSlotsLookedAtMax
  // others that it cannot use.
  absl::Time Add(const WaitingJob& job, ClassNumber requirements);

 private:
  static constexpr int64_t kSlotsLookedAtMax = 10'000;

  const Cluster& cluster_;
  const absl::Time now_;
  std::set<std::pair<absl::Time, SlotNumber>> free_at_;
};

}  // namespace longspan::scheduler
