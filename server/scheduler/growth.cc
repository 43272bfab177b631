#include "server/scheduler/growth.h"

#include <algorithm>
#include <tuple>

#include "server/scheduler/placement.h"

namespace longspan::scheduler {
namespace {

bool MayGrow(const GangSlots& gang, const Options& options, absl::Time now) {
  const RunningGang& running = *gang.gang;
  return !gang.asked && !running.stopping && running.protected_until <= now && !running.sizes.empty() &&
         running.sizes.back() > static_cast<int64_t>(running.ranks.size()) &&
         now - running.start_time >= options.resize_interval && running.expected_end - now >= options.resize_interval;
}

// As if its own slots were free, so that it may also end up on one worker. Empty when it gains nothing.
std::vector<SlotNumber> PlaceLarger(const GangSlots& gang, int64_t size_max, Cluster cluster) {
  ++cluster.work().cluster_copies;
  const int64_t size = static_cast<int64_t>(gang.gang->ranks.size());
  std::vector<int64_t> larger;
  std::copy_if(gang.gang->sizes.begin(), gang.gang->sizes.end(), std::back_inserter(larger),
               [&](int64_t each) { return each > size; });
  for (const SlotNumber slot : gang.slots) cluster.Release(slot);
  Access access;
  access.requirements = cluster.ClassOf(gang.gang->requirements);
  return PlaceLargest(larger, size_max, {}, access, cluster);
}

// As it will be when the gangs that are ending are gone.
Cluster AfterEndings(const std::vector<GangSlots>& gangs, Cluster cluster) {
  ++cluster.work().cluster_copies;
  for (const GangSlots& gang : gangs) {
    if (!gang.gang->ending) continue;
    for (const SlotNumber slot : gang.slots) cluster.Release(slot);
  }
  return cluster;
}

int64_t SlotsOfEndings(const std::vector<GangSlots>& gangs, const std::string& queue) {
  int64_t slots = 0;
  for (const GangSlots& gang : gangs) {
    if (gang.gang->ending && gang.gang->queue == queue) slots += static_cast<int64_t>(gang.slots.size());
  }
  return slots;
}

}  // namespace

std::optional<Growth> FindGrowth(const std::vector<GangSlots>& gangs, const Cluster& cluster, const Options& options,
                                 absl::Time now, const std::function<int64_t(const std::string& queue)>& slots_left) {
  std::vector<size_t> candidates;
  for (size_t i = 0; i < gangs.size(); ++i) {
    if (MayGrow(gangs[i], options, now)) candidates.push_back(i);
  }
  std::sort(candidates.begin(), candidates.end(), [&](size_t a, size_t b) {
    const RunningGang& x = *gangs[a].gang;
    const RunningGang& y = *gangs[b].gang;
    return std::tie(y.priority, x.start_time, x.id) < std::tie(x.priority, y.start_time, y.id);
  });
  std::optional<Cluster> later;
  const bool some_end = std::any_of(gangs.begin(), gangs.end(), [](const GangSlots& g) { return g.gang->ending; });
  if (some_end && !candidates.empty()) later = AfterEndings(gangs, cluster);
  for (const size_t i : candidates) {
    const int64_t size = static_cast<int64_t>(gangs[i].gang->ranks.size());
    const std::string& queue = gangs[i].gang->queue;
    const int64_t size_max = size + slots_left(queue);
    std::vector<SlotNumber> slots = PlaceLarger(gangs[i], size_max, cluster);
    if (later) {
      const int64_t size_max_later = size_max + SlotsOfEndings(gangs, queue);
      if (PlaceLarger(gangs[i], size_max_later, *later).size() > slots.size()) return std::nullopt;
    }
    if (!slots.empty()) return Growth{i, std::move(slots)};
  }
  return std::nullopt;
}

}  // namespace longspan::scheduler
