// Who gives slots back so that a waiting job can start: elastic gangs that shrink, else gangs of lower priority that
// are preempted.
//
// Fewest gangs; among sets of as few, those of the lowest priority, then those that started last. Only after the whole
// gang of the job was placed on what would be free. A gang is spared that has been asked already, or is protected.
#pragma once

#include <optional>
#include <vector>

#include "server/scheduler/cluster.h"
#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// A gang of the snapshot during a pass.
struct GangSlots {
  const RunningGang* gang = nullptr;
  std::vector<SlotNumber> slots;  // on open workers
  bool asked = false;             // to stop: before this pass, or in it
};

struct Concession {
  size_t gang = 0;                // into the list of gangs
  std::vector<SlotNumber> keeps;  // empty: all is given up
};
struct Reclaimed {
  std::vector<SlotNumber> slots;  // for the job
  std::vector<Concession> concessions;
};

// Gangs of the job's priority or below, down to their smallest size at most.
std::optional<Reclaimed> ReclaimByShrinking(const WaitingJob& job, const Access& access,
                                            const std::vector<GangSlots>& gangs, const Cluster& cluster,
                                            absl::Time now);

// Gangs below the job's priority.
std::optional<Reclaimed> ReclaimByPreempting(const WaitingJob& job, const Access& access,
                                             const std::vector<GangSlots>& gangs, const Cluster& cluster,
                                             absl::Time now);

}  // namespace longspan::scheduler
