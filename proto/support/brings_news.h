// The rule of Synchronize that both ends keep: a report that brings news is answered as soon as it is stored, never
// held.
#pragma once

#include <algorithm>

#include "longspan/v1/fleet_service.pb.h"

namespace longspan {

// Something that the worker resends until it is acknowledged: samples, checkpoints, the end of a rank. Evaluations,
// artifacts and warnings are whole lists, resent with every report of their attempt, and acknowledged by count, so they
// are no news by themselves: the daemon may wait for the hold to end.
inline bool BringsNews(const v1::SynchronizeRequest& request) {
  return std::any_of(request.ranks().begin(), request.ranks().end(), [](const v1::RankReport& rank) {
    return rank.samples_size() > 0 || rank.checkpoints_size() > 0 || rank.has_exit();
  });
}

}  // namespace longspan
