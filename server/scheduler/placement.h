// Third stage: where the ranks of one gang go, all of them or none.
#pragma once

#include <vector>

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// Takes the slots it uses out of `workers`. One worker if the gang fits there, the one that it fills best; else as few
// workers as can be, those with the most free slots. Consecutive ranks share a worker. Workers to avoid are used only
// when it does not go without them. A job without slots goes to the open worker with the fewest such ranks. Empty when
// the gang does not fit.
std::vector<Placement> PlaceGang(const WaitingJob& job, std::vector<WorkerSlots>& workers);

}  // namespace longspan::scheduler
