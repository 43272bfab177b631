// The slots of a snapshot during one pass: which are taken, kept for somebody, or needed by the first job that waits.
//
// Slots and workers are numbered through, in the order of the snapshot. Jobs that require the same belong to one class;
// the cluster counts the usable slots of every class on every worker as slots are taken, so that most questions of a
// pass are one comparison. Copying one is how a placement at a later time is tried out.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "server/scheduler/schedule.h"

namespace longspan::scheduler {

using SlotNumber = int32_t;
using WorkerNumber = int32_t;
using ClassNumber = int32_t;

// Whose slots a job may use beside those that are nobody's.
struct Access {
  ClassNumber requirements = 0;
  JobId owner;          // slots kept for this job; empty: none
  bool shadow = false;  // those that the first waiting job needs later: the job has ended by then
};

class Cluster {
 public:
  // `snapshot` and `work`, where what was looked at is counted, outlive it and its copies.
  Cluster(const Snapshot& snapshot, Work* work);

  // The class of these requirements; made when it is new.
  ClassNumber ClassOf(const Requirements& requirements);

  // Slots of the class, taken or not, of workers that are open or expected to be.
  int64_t SlotCount(ClassNumber requirements) const { return classes_[requirements].slot_count; }

  int64_t Usable(const Access& access) const;
  int64_t UsableOn(WorkerNumber worker, const Access& access) const;
  bool IsUsable(SlotNumber slot, const Access& access) const;

  void Take(SlotNumber slot);
  void Release(SlotNumber slot);
  // Keeps slots, free or not, for one job; a slot has one owner, and none again with an empty id.
  void SetOwner(SlotNumber slot, const JobId& owner);
  void SetShadow(SlotNumber slot);

  bool IsTaken(SlotNumber slot) const { return states_[slot].taken; }
  const JobId& Owner(SlotNumber slot) const;
  bool IsFeasible(SlotNumber slot, ClassNumber requirements) const { return classes_[requirements].fits[slot]; }

  // Nothing when there is no such slot on an open worker.
  std::optional<SlotNumber> Find(const Placement& placement) const;
  Placement PlacementOf(SlotNumber slot) const;
  std::vector<Placement> PlacementsOf(const std::vector<SlotNumber>& slots) const;

  WorkerNumber WorkerCount() const { return static_cast<WorkerNumber>(snapshot_->workers.size()); }
  const WorkerSlots& Worker(WorkerNumber worker) const { return snapshot_->workers[worker]; }
  WorkerNumber WorkerOf(SlotNumber slot) const { return worker_of_[slot]; }
  SlotNumber SlotsBegin(WorkerNumber worker) const { return begin_[worker]; }
  SlotNumber SlotsEnd(WorkerNumber worker) const { return begin_[worker + 1]; }
  // Workers with the same label `rack` have the same number; -1 without one.
  int32_t Rack(WorkerNumber worker) const { return racks_[worker]; }
  bool AnyOpen() const { return any_open_; }
  Work& work() const { return *work_; }

  int64_t SlotlessRanks(WorkerNumber worker) const { return slotless_[worker]; }
  void AddSlotlessRank(WorkerNumber worker) { ++slotless_[worker]; }

 private:
  struct State {
    bool taken = false;
    bool shadow = false;
    int32_t owner = 0;  // into owners_; 0: nobody
  };
  struct Counts {
    int32_t open = 0;    // nobody's
    int32_t shadow = 0;  // nobody's, but needed later
  };
  struct Class {
    std::vector<uint8_t> fits;  // by slot; of workers that are not open too
    int64_t slot_count = 0;
    Counts total;
    std::vector<Counts> on_worker;
  };

  // Adds `by` to what the slot counts for, as it stands.
  void Count(SlotNumber slot, int by);
  int64_t CountOwned(SlotNumber begin, SlotNumber end, const Access& access) const;

  const Snapshot* snapshot_;
  Work* work_;
  bool any_open_ = false;
  std::vector<SlotNumber> begin_;        // by worker, and one more
  std::vector<WorkerNumber> worker_of_;  // by slot
  std::vector<int32_t> racks_;           // by worker
  std::vector<uint8_t> open_;            // by worker
  std::vector<int64_t> slotless_;        // by worker
  std::vector<State> states_;            // by slot
  std::vector<JobId> owners_ = {JobId()};
  std::map<JobId, std::vector<SlotNumber>> owned_;
  std::map<WorkerId, WorkerNumber> by_id_;
  std::map<Requirements, ClassNumber> class_numbers_;
  std::vector<Class> classes_;
};

}  // namespace longspan::scheduler
