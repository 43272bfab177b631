#include "server/scheduler/placement.h"

#include <algorithm>
#include <map>
#include <utility>

#include "server/scheduler/feasibility.h"

namespace longspan::scheduler {
namespace {

struct Candidate {
  WorkerNumber worker = 0;
  int64_t usable = 0;
};

// The one with the fewest usable slots that still has `needed`; the first among equals. Null when there is none.
template <typename Container, typename Usable>
auto BestFit(Container& candidates, int64_t needed, Usable usable) {
  auto best = candidates.end();
  for (auto it = candidates.begin(); it != candidates.end(); ++it) {
    if (usable(*it) >= needed && (best == candidates.end() || usable(*it) < usable(*best))) best = it;
  }
  return best;
}

int64_t UsableOf(const Candidate& candidate) { return candidate.usable; }

bool IsAvoided(const std::vector<WorkerId>& avoid, const WorkerSlots& worker) {
  return std::find(avoid.begin(), avoid.end(), worker.id) != avoid.end();
}

std::vector<Candidate> Candidates(const std::vector<WorkerId>& avoid, const Access& access, const Cluster& cluster) {
  std::vector<Candidate> candidates;
  cluster.work().workers += cluster.WorkerCount();
  for (WorkerNumber w = 0; w < cluster.WorkerCount(); ++w) {
    const int64_t usable = cluster.UsableOn(w, access);
    if (usable > 0 && !IsAvoided(avoid, cluster.Worker(w))) candidates.push_back({w, usable});
  }
  return candidates;
}

void TakeSlots(const Candidate& candidate, int64_t count, const Access& access, Cluster& cluster,
               std::vector<SlotNumber>& taken) {
  for (SlotNumber slot = cluster.SlotsBegin(candidate.worker); count > 0; ++slot) {
    ++cluster.work().slots;
    if (!cluster.IsUsable(slot, access)) continue;
    cluster.Take(slot);
    taken.push_back(slot);
    --count;
  }
}

// The largest first needs the fewest workers; the remainder goes where it leaves the least behind. `candidates` have
// enough together.
std::vector<SlotNumber> FillFewest(int64_t needed, std::vector<Candidate> candidates, const Access& access,
                                   Cluster& cluster) {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.usable > b.usable; });
  std::vector<SlotNumber> taken;
  for (auto largest = candidates.begin(); needed > 0; ++largest) {
    const auto last = BestFit(candidates, needed, UsableOf);
    Candidate& chosen = last != candidates.end() ? *last : *largest;
    const int64_t count = std::min(needed, chosen.usable);
    TakeSlots(chosen, count, access, cluster, taken);
    chosen.usable = 0;
    needed -= count;
  }
  return taken;
}

// Candidates of the rack that the gang fills best; all of them when no rack has room.
std::vector<Candidate> BestRack(int64_t needed, const std::vector<Candidate>& candidates, const Cluster& cluster) {
  std::map<int32_t, int64_t> racks;
  for (const Candidate& candidate : candidates) {
    if (const int32_t rack = cluster.Rack(candidate.worker); rack >= 0) racks[rack] += candidate.usable;
  }
  const auto best = BestFit(racks, needed, [](const auto& rack) { return rack.second; });
  if (best == racks.end()) return candidates;
  std::vector<Candidate> within;
  std::copy_if(candidates.begin(), candidates.end(), std::back_inserter(within),
               [&](const Candidate& candidate) { return cluster.Rack(candidate.worker) == best->first; });
  return within;
}

std::vector<SlotNumber> PlaceOn(int64_t size, const std::vector<Candidate>& candidates, const Access& access,
                                Cluster& cluster) {
  int64_t usable = 0;
  for (const Candidate& candidate : candidates) usable += candidate.usable;
  if (usable < size) return {};
  if (const auto one = BestFit(candidates, size, UsableOf); one != candidates.end()) {
    std::vector<SlotNumber> taken;
    TakeSlots(*one, size, access, cluster, taken);
    return taken;
  }
  return FillFewest(size, BestRack(size, candidates, cluster), access, cluster);
}

}  // namespace

std::vector<SlotNumber> PlaceLargest(const std::vector<int64_t>& sizes, int64_t limit,
                                     const std::vector<WorkerId>& avoid, const Access& access, Cluster& cluster) {
  const int64_t usable = std::min(limit, cluster.Usable(access));
  if (sizes.empty() || sizes.front() > usable) return {};
  ++cluster.work().placements;
  static const std::vector<WorkerId> kNone;
  for (const std::vector<WorkerId>* avoided : {&avoid, &kNone}) {
    const std::vector<Candidate> candidates = Candidates(*avoided, access, cluster);
    for (auto size = sizes.rbegin(); size != sizes.rend(); ++size) {
      if (*size > usable) continue;
      std::vector<SlotNumber> slots = PlaceOn(*size, candidates, access, cluster);
      if (!slots.empty()) return slots;
    }
    if (avoided->empty()) break;
  }
  return {};
}

std::vector<SlotNumber> PlaceGang(int64_t size, const std::vector<WorkerId>& avoid, const Access& access,
                                  Cluster& cluster) {
  return PlaceLargest({size}, size, avoid, access, cluster);
}

std::vector<Placement> PlaceWithoutSlot(const std::vector<WorkerId>& avoid, Cluster& cluster) {
  static const std::vector<WorkerId> kNone;
  for (const std::vector<WorkerId>* avoided : {&avoid, &kNone}) {
    std::optional<std::pair<int64_t, int64_t>> least;
    WorkerNumber best = 0;
    for (WorkerNumber w = 0; w < cluster.WorkerCount(); ++w) {
      const WorkerSlots& worker = cluster.Worker(w);
      const int64_t room = std::max<int64_t>(1, static_cast<int64_t>(worker.slots.size()));
      if (!IsOpen(worker) || IsAvoided(*avoided, worker) || cluster.SlotlessRanks(w) >= room) continue;
      const std::pair<int64_t, int64_t> load(cluster.SlotlessRanks(w), -cluster.UsableOn(w, Access()));
      if (!least || load < *least) {
        least = load;
        best = w;
      }
    }
    if (least) {
      cluster.AddSlotlessRank(best);
      return {{cluster.Worker(best).id, -1}};
    }
  }
  return {};
}

}  // namespace longspan::scheduler
