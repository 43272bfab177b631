#include "server/scheduler/placement.h"

#include <algorithm>
#include <utility>

#include "server/scheduler/feasibility.h"

namespace longspan::scheduler {
namespace {

int64_t FreeSlots(const WorkerSlots& worker) { return static_cast<int64_t>(worker.free_slots.size()); }

// The one with the fewest free slots that still has `needed`; the first by id among equals. Null when there is none.
WorkerSlots* BestFit(const std::vector<WorkerSlots*>& candidates, int64_t needed) {
  WorkerSlots* best = nullptr;
  for (WorkerSlots* worker : candidates) {
    if (FreeSlots(*worker) < needed) continue;
    if (best == nullptr || FreeSlots(*worker) < FreeSlots(*best)) best = worker;
  }
  return best;
}

void TakeSlots(WorkerSlots& worker, int64_t count, std::vector<Placement>& ranks) {
  for (int64_t i = 0; i < count; ++i) ranks.push_back({worker.id, worker.free_slots[i]});
  worker.free_slots.erase(worker.free_slots.begin(), worker.free_slots.begin() + count);
}

std::vector<Placement> PlaceOn(int64_t needed, std::vector<WorkerSlots*> candidates) {
  int64_t free_slots = 0;
  for (const WorkerSlots* worker : candidates) free_slots += FreeSlots(*worker);
  if (free_slots < needed) return {};
  std::vector<Placement> ranks;
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const WorkerSlots* a, const WorkerSlots* b) { return FreeSlots(*a) > FreeSlots(*b); });
  // The largest first needs the fewest workers; the remainder goes where it leaves the least behind.
  for (size_t i = 0; needed > 0; ++i) {
    WorkerSlots* last = BestFit(candidates, needed);
    WorkerSlots* worker = last != nullptr ? last : candidates[i];
    const int64_t count = std::min(needed, FreeSlots(*worker));
    TakeSlots(*worker, count, ranks);
    needed -= count;
  }
  return ranks;
}

// Spreads them: the fewest such ranks first, then the most free slots.
std::vector<Placement> PlaceWithoutSlot(const std::vector<WorkerSlots*>& candidates) {
  WorkerSlots* best = nullptr;
  for (WorkerSlots* worker : candidates) {
    if (worker->slotless_ranks >= std::max<int64_t>(1, worker->slot_count)) continue;
    if (best == nullptr || std::make_pair(worker->slotless_ranks, -FreeSlots(*worker)) <
                               std::make_pair(best->slotless_ranks, -FreeSlots(*best))) {
      best = worker;
    }
  }
  if (best == nullptr) return {};
  ++best->slotless_ranks;
  return {{best->id, -1}};
}

}  // namespace

std::vector<Placement> PlaceGang(const WaitingJob& job, std::vector<WorkerSlots>& workers) {
  for (const bool with_avoided : {false, true}) {
    std::vector<WorkerSlots*> candidates;
    for (WorkerSlots& worker : workers) {
      if (IsOpen(worker) && (with_avoided || !IsAvoided(job, worker))) candidates.push_back(&worker);
    }
    std::vector<Placement> ranks = job.slots == 0 ? PlaceWithoutSlot(candidates) : PlaceOn(job.slots, candidates);
    if (!ranks.empty() || job.avoid.empty()) return ranks;
  }
  return {};
}

}  // namespace longspan::scheduler
