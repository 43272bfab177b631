#include "server/scheduler/cluster.h"

#include <algorithm>

#include "proto/support/check.h"
#include "server/scheduler/feasibility.h"

namespace longspan::scheduler {
namespace {

constexpr char kRackLabel[] = "rack";

}  // namespace

Cluster::Cluster(const Snapshot& snapshot, Work* work) : snapshot_(&snapshot), work_(work) {
  std::map<std::string, int32_t> racks;
  for (const WorkerSlots& worker : snapshot.workers) {
    const WorkerNumber number = static_cast<WorkerNumber>(begin_.size());
    begin_.push_back(static_cast<SlotNumber>(states_.size()));
    by_id_.emplace(worker.id, number);
    open_.push_back(IsOpen(worker));
    any_open_ = any_open_ || IsOpen(worker);
    slotless_.push_back(worker.slotless_ranks);
    const auto rack = worker.labels.find(kRackLabel);
    racks_.push_back(rack == worker.labels.end()
                         ? -1
                         : racks.emplace(rack->second, static_cast<int32_t>(racks.size())).first->second);
    for (const WorkerSlot& slot : worker.slots) {
      worker_of_.push_back(number);
      states_.push_back({slot.taken, false, 0});
    }
  }
  begin_.push_back(static_cast<SlotNumber>(states_.size()));
  ClassOf(Requirements());
}

ClassNumber Cluster::ClassOf(const Requirements& requirements) {
  const auto [it, is_new] = class_numbers_.emplace(requirements, static_cast<ClassNumber>(classes_.size()));
  if (!is_new) return it->second;
  Class& made = classes_.emplace_back();
  made.fits.resize(states_.size());
  made.on_worker.resize(snapshot_->workers.size());
  std::vector<uint8_t> kind_fits;
  for (const SlotKind& kind : snapshot_->kinds) {
    kind_fits.push_back(HasDevice(requirements, kind) && HasMemory(requirements, kind));
  }
  for (WorkerNumber w = 0; w < WorkerCount(); ++w) {
    const WorkerSlots& worker = Worker(w);
    if (!HasLabels(requirements, worker)) continue;
    for (SlotNumber slot = SlotsBegin(w); slot < SlotsEnd(w); ++slot) {
      made.fits[slot] = kind_fits.at(worker.slots[slot - SlotsBegin(w)].kind);
      if (!made.fits[slot]) continue;
      if (IsExpectedOpen(worker)) ++made.slot_count;
      const State& state = states_[slot];
      if (!open_[w] || state.taken || state.owner != 0) continue;
      ++(state.shadow ? made.total.shadow : made.total.open);
      ++(state.shadow ? made.on_worker[w].shadow : made.on_worker[w].open);
    }
  }
  return it->second;
}

void Cluster::Count(SlotNumber slot, int by) {
  const State& state = states_[slot];
  const WorkerNumber worker = worker_of_[slot];
  if (!open_[worker] || state.taken || state.owner != 0) return;
  for (Class& each : classes_) {
    if (!each.fits[slot]) continue;
    (state.shadow ? each.total.shadow : each.total.open) += by;
    (state.shadow ? each.on_worker[worker].shadow : each.on_worker[worker].open) += by;
  }
}

int64_t Cluster::CountOwned(SlotNumber begin, SlotNumber end, const Access& access) const {
  if (access.owner.empty()) return 0;
  const auto owned = owned_.find(access.owner);
  if (owned == owned_.end()) return 0;
  return std::count_if(owned->second.begin(), owned->second.end(),
                       [&](SlotNumber slot) { return slot >= begin && slot < end && IsUsable(slot, access); });
}

int64_t Cluster::Usable(const Access& access) const {
  const Counts& total = classes_[access.requirements].total;
  return total.open + (access.shadow ? total.shadow : 0) +
         CountOwned(0, static_cast<SlotNumber>(states_.size()), access);
}

int64_t Cluster::UsableOn(WorkerNumber worker, const Access& access) const {
  const Counts& here = classes_[access.requirements].on_worker[worker];
  return here.open + (access.shadow ? here.shadow : 0) + CountOwned(SlotsBegin(worker), SlotsEnd(worker), access);
}

bool Cluster::IsUsable(SlotNumber slot, const Access& access) const {
  const State& state = states_[slot];
  if (state.taken || !open_[worker_of_[slot]] || !classes_[access.requirements].fits[slot]) return false;
  if (state.owner != 0) return !access.owner.empty() && owners_[state.owner] == access.owner;
  return !state.shadow || access.shadow;
}

void Cluster::Take(SlotNumber slot) {
  CHECK(!states_[slot].taken);
  Count(slot, -1);
  states_[slot].taken = true;
}

void Cluster::Release(SlotNumber slot) {
  CHECK(states_[slot].taken);
  states_[slot].taken = false;
  Count(slot, 1);
}

void Cluster::SetOwner(SlotNumber slot, const JobId& owner) {
  Count(slot, -1);
  int32_t& current = states_[slot].owner;
  if (current != 0) std::erase(owned_[owners_[current]], slot);
  current = 0;
  if (!owner.empty()) {
    std::vector<SlotNumber>& slots = owned_[owner];
    slots.push_back(slot);
    owners_.push_back(owner);
    current = static_cast<int32_t>(owners_.size()) - 1;
  }
  Count(slot, 1);
}

void Cluster::SetShadow(SlotNumber slot) {
  Count(slot, -1);
  states_[slot].shadow = true;
  Count(slot, 1);
}

const JobId& Cluster::Owner(SlotNumber slot) const { return owners_[states_[slot].owner]; }

std::optional<SlotNumber> Cluster::Find(const Placement& placement) const {
  const auto worker = by_id_.find(placement.worker_id);
  if (worker == by_id_.end() || !open_[worker->second]) return std::nullopt;
  const std::vector<WorkerSlot>& slots = Worker(worker->second).slots;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].index == placement.slot) return SlotsBegin(worker->second) + static_cast<SlotNumber>(i);
  }
  return std::nullopt;
}

Placement Cluster::PlacementOf(SlotNumber slot) const {
  const WorkerNumber worker = worker_of_[slot];
  return {Worker(worker).id, Worker(worker).slots[slot - SlotsBegin(worker)].index};
}

std::vector<Placement> Cluster::PlacementsOf(const std::vector<SlotNumber>& slots) const {
  std::vector<Placement> placements;
  placements.reserve(slots.size());
  for (const SlotNumber slot : slots) placements.push_back(PlacementOf(slot));
  return placements;
}

}  // namespace longspan::scheduler
