#include "server/scheduler/backfill.h"

#include <algorithm>

#include "server/scheduler/placement.h"

namespace longspan::scheduler {
namespace {

void LetGo(const Holding& holding, Cluster& cluster) {
  for (const SlotNumber slot : holding.slots) {
    if (holding.reservation) {
      cluster.SetOwner(slot, JobId());
    } else if (cluster.IsTaken(slot)) {
      cluster.Release(slot);
    }
  }
}

std::vector<SlotNumber> AllUsable(const Access& access, const Cluster& cluster) {
  std::vector<SlotNumber> slots;
  cluster.work().slots += cluster.SlotsBegin(cluster.WorkerCount());
  for (SlotNumber slot = 0; slot < cluster.SlotsBegin(cluster.WorkerCount()); ++slot) {
    if (cluster.IsUsable(slot, access)) slots.push_back(slot);
  }
  return slots;
}

}  // namespace

EarliestStart FindEarliestStart(int64_t size, const std::vector<WorkerId>& avoid, const Access& access,
                                std::vector<Holding> holdings, Cluster cluster, absl::Time now) {
  EarliestStart start;
  ++cluster.work().cluster_copies;
  start.slots = AllUsable(access, cluster);
  std::sort(holdings.begin(), holdings.end(), [](const Holding& a, const Holding& b) { return a.until < b.until; });
  for (size_t i = 0; i < holdings.size(); ++i) {
    LetGo(holdings[i], cluster);
    const bool more_at_once = i + 1 < holdings.size() && holdings[i + 1].until == holdings[i].until;
    if (more_at_once || cluster.Usable(access) < size) continue;
    start.time = std::max(now, holdings[i].until);
    start.slots = PlaceGang(size, avoid, access, cluster);
    break;
  }
  return start;
}

}  // namespace longspan::scheduler
