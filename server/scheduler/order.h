// Who is asked first: priority, then who has waited too long, then a fair share of the cluster among queues, then
// submit time, then id.
//
// Within a priority the next job is always taken from the queue that has had least for its weight: what it used,
// decayed, plus what its running gangs are still expected to use, plus what its jobs further in front will (slots times
// expected seconds, each gang's at most one half-life ahead). That is weighted fair queueing (Demers, Keshav, Shenker
// 1989) over slot-seconds: a queue that was idle goes first, but not with all of its jobs at once. A job that has
// waited for options.patience goes before those that have not, the oldest first: a share is no reason to wait for ever.
#pragma once

#include <vector>

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// Pointers into the snapshot.
std::vector<const WaitingJob*> OrderQueue(const Snapshot& snapshot, absl::Time now, const Options& options);

}  // namespace longspan::scheduler
