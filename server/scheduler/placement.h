// Where the ranks of one gang go, all of them or none.
#pragma once

#include <vector>

#include "server/scheduler/cluster.h"
#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// Takes `size` usable slots out of `cluster`. One worker if the gang fits there, the one that it fills best; else one
// rack (label `rack`), the one that it fills best, of it and of a cluster without racks as few workers as can be.
// Consecutive ranks share a worker. Workers of `avoid` are used only when it does not go without them. Empty, and
// nothing taken, when the gang does not fit.
std::vector<SlotNumber> PlaceGang(int64_t size, const std::vector<WorkerId>& avoid, const Access& access,
                                  Cluster& cluster);

// The largest of `sizes` (ascending) up to `limit` that fits. Smaller before on a worker to avoid.
std::vector<SlotNumber> PlaceLargest(const std::vector<int64_t>& sizes, int64_t limit,
                                     const std::vector<WorkerId>& avoid, const Access& access, Cluster& cluster);

// One rank that needs no slot: the open worker with the fewest such ranks, then the most free slots. Empty when each
// has as many as slots.
std::vector<Placement> PlaceWithoutSlot(const std::vector<WorkerId>& avoid, Cluster& cluster);

}  // namespace longspan::scheduler
