// An elastic gang that takes slots which nobody else waits for.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "server/scheduler/reclaim.h"

namespace longspan::scheduler {

struct Growth {
  size_t gang = 0;                // into the list of gangs
  std::vector<SlotNumber> slots;  // of its next attempt: its own and more
};

// The gang of the highest priority, then the oldest, that can run as a larger gang, by at most `slots_left` of its
// queue. It has run for options.resize_interval and is expected to run as long. Nothing when there is none. One gang
// grows in a pass: the next pass sees what it left.
//
// Nobody grows while that gang could become larger still with the slots of gangs that are ending: these come back rank
// by rank, and it would be stopped twice. That is over soon: as long as nobody waits for slots (when nobody grows
// anyway) free slots only become more.
std::optional<Growth> FindGrowth(const std::vector<GangSlots>& gangs, const Cluster& cluster, const Options& options,
                                 absl::Time now, const std::function<int64_t(const std::string& queue)>& slots_left);

}  // namespace longspan::scheduler
