#include "server/scheduler/forecast.h"

#include <algorithm>

#include "server/scheduler/feasibility.h"

namespace longspan::scheduler {

Forecast::Forecast(const Cluster& cluster, const std::vector<Holding>& holdings, absl::Time now)
    : cluster_(cluster), now_(now) {
  const SlotNumber end = cluster.SlotsBegin(cluster.WorkerCount());
  std::vector<absl::Time> free_at(end, now);
  for (SlotNumber slot = 0; slot < end; ++slot) {
    if (cluster.IsTaken(slot)) free_at[slot] = absl::InfiniteFuture();
  }
  for (const Holding& holding : holdings) {
    for (const SlotNumber slot : holding.slots) {
      const bool longer = free_at[slot] == absl::InfiniteFuture() || free_at[slot] < holding.until;
      if (longer) free_at[slot] = std::max(now, holding.until);
    }
  }
  std::vector<std::pair<absl::Time, SlotNumber>> sorted;
  for (SlotNumber slot = 0; slot < end; ++slot) {
    const bool counts = IsOpen(cluster.Worker(cluster.WorkerOf(slot))) && free_at[slot] < absl::InfiniteFuture();
    if (counts) sorted.emplace_back(free_at[slot], slot);
  }
  std::sort(sorted.begin(), sorted.end());
  free_at_.insert(sorted.begin(), sorted.end());
}

absl::Time Forecast::Add(const WaitingJob& job, ClassNumber requirements) {
  if (job.sizes.empty()) return absl::InfiniteFuture();
  std::vector<std::pair<absl::Time, SlotNumber>> taken;
  int64_t looked_at = 0;
  for (auto it = free_at_.begin(); it != free_at_.end() && looked_at < kSlotsLookedAtMax; ++it, ++looked_at) {
    if (cluster_.IsFeasible(it->second, requirements)) taken.push_back(*it);
    if (static_cast<int64_t>(taken.size()) == job.sizes.front()) break;
  }
  cluster_.work().slots += looked_at;
  if (static_cast<int64_t>(taken.size()) < job.sizes.front()) return absl::InfiniteFuture();
  const absl::Time start = std::max({now_, taken.back().first, job.not_before});
  for (const auto& slot : taken) {
    free_at_.erase(slot);
    free_at_.emplace(start + job.estimate, slot.second);
  }
  return start;
}

}  // namespace longspan::scheduler
