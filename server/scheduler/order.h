// First stage: who is asked first.
#pragma once

#include <vector>

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

// Priority (higher first), submit time, id. Pointers into `jobs`.
std::vector<const WaitingJob*> OrderQueue(const std::vector<WaitingJob>& jobs);

}  // namespace longspan::scheduler
