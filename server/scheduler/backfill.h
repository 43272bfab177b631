// When a gang that does not fit now can start at the earliest, and on which slots. Others may start before it in so far
// as they have ended by then or use none of these slots (EASY backfill: Lifka 1995; the slots are named here, where
// EASY counts them, because machines differ).
#pragma once

#include <vector>

#include "server/scheduler/cluster.h"
#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// Slots that somebody holds, or that are kept for somebody, until about then.
struct Holding {
  absl::Time until;
  std::vector<SlotNumber> slots;
  bool reservation = false;  // kept for a waiting job, and not only taken
};

struct EarliestStart {
  absl::Time time = absl::InfiniteFuture();  // when the slots are never enough, as far as is known
  std::vector<SlotNumber> slots;             // then: all that it could use now
};

// `cluster` is the caller's to lose: slots are released in it.
EarliestStart FindEarliestStart(int64_t size, const std::vector<WorkerId>& avoid, const Access& access,
                                std::vector<Holding> holdings, Cluster cluster, absl::Time now);

}  // namespace longspan::scheduler
