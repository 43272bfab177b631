// Decides which waiting jobs start now and where, which running gangs give slots back, and why all others wait.
//
//   order the queue -> feasibility of slots -> placement of whole gangs -> backfill -> elastic resizing, preemption
//    (order.h)          (feasibility.h)         (placement.h)              (backfill.h) (reclaim.h, growth.h)
//
// Pure: the same snapshot, options and time give the same plan; nothing is remembered between passes, so that all that
// matters stands in the snapshot, reservations too. The caller applies the plan to the state that the snapshot was
// taken of. Not thread-safe data: a snapshot belongs to its pass.
//
// The rules, and what they are measured to do, are in README.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/time/time.h"
#include "proto/support/ids.h"

namespace longspan::scheduler {

// ---- in ----

// What a slot is made of. Slots of one machine mostly share one.
struct SlotKind {
  std::string device;  // "cpu", "NVIDIA H200"
  int64_t memory_bytes = 0;
};

struct WorkerSlot {
  int64_t index = 0;
  int32_t kind = 0;    // into Snapshot::kinds
  bool taken = false;  // a rank that is not surely gone holds it
};

struct WorkerSlots {
  WorkerId id;
  bool up = false;
  bool expected = false;  // not up, but may come back in a moment: the server has just restarted
  bool draining = false;  // drained, or leaving by itself
  std::map<std::string, std::string> labels;
  std::vector<WorkerSlot> slots;  // by index
  int64_t slotless_ranks = 0;     // that run there now (prepare); as many as it has slots may, one at least
};

// What every slot of a gang must offer.
struct Requirements {
  std::map<std::string, std::string> labels;  // of the worker, each equal; "gpu" is a part of the slot's device name
  int64_t memory_bytes_min = 0;
  bool operator==(const Requirements&) const = default;
  bool operator<(const Requirements& other) const {
    return std::tie(labels, memory_bytes_min) < std::tie(other.labels, other.memory_bytes_min);
  }
};

struct Placement {
  WorkerId worker_id;
  int64_t slot = -1;
  bool operator==(const Placement&) const = default;
};

struct WaitingJob {
  JobId id;
  std::string queue = "default";
  int64_t priority = 50;
  absl::Time submit_time;
  std::vector<int64_t> sizes;  // of the gangs it can run as, ascending; empty: one rank on any worker, without a slot
  absl::Duration estimate = absl::Hours(1);  // of its run time from here
  Requirements requirements;
  std::vector<WorkerId> avoid;  // not there, if there is an alternative
  absl::Time not_before = absl::InfinitePast();
  bool old_ranks_remain = false;    // of an earlier attempt: must not start yet
  std::vector<Placement> reserved;  // kept for it until...
  absl::Time reserved_until = absl::InfinitePast();
};

// A gang with slots that are not surely free.
struct RunningGang {
  JobId id;
  std::string queue = "default";
  int64_t priority = 50;
  std::vector<Placement> ranks;  // that still hold a slot
  absl::Time start_time;         // of this attempt
  absl::Time expected_end;       // of its slots, by estimates; when that is past it may take a while yet
  bool stopping = false;         // asked to, or over: its slots come back without anybody's help
  bool ending = false;  // stopping, and its job takes no slots again: all of them are free in a moment, for anybody
  absl::Time protected_until = absl::InfinitePast();  // it is not asked to give slots back before
  std::vector<int64_t> sizes;                         // as of a waiting job
  Requirements requirements;
};

// A queue that jobs name; one that is not listed has these values.
struct Queue {
  double weight = 1;             // share of the cluster relative to other queues
  double used_slot_seconds = 0;  // decayed
  int64_t slots_max = 0;         // that its gangs may hold at once; 0: no limit
};

struct Snapshot {
  std::vector<SlotKind> kinds = {SlotKind()};
  std::vector<WorkerSlots> workers;  // by id
  std::vector<WaitingJob> jobs;      // in any order
  std::vector<RunningGang> gangs;    // in any order
  std::map<std::string, Queue> queues;
};

struct Options {
  absl::Duration usage_half_life = absl::Hours(24);  // of a queue's use; the caller decays, the order looks ahead by it
  absl::Duration patience =
      absl::Hours(6);  // who has waited that long goes first of his priority, whatever his queue had
  absl::Duration stop_time = absl::Minutes(2);    // that a gang takes to save and stop; no less is waited for instead
  absl::Duration reservation = absl::Minutes(5);  // slots are kept that long for whom others stop; above stop_time
  absl::Duration resize_interval = absl::Minutes(10);  // a gang grows after so long, if it has as long to go
};

// ---- out ----

struct Start {
  JobId job_id;
  std::vector<Placement> ranks;  // by rank
};
// A running gang is to save a checkpoint and stop.
struct Stop {
  enum class Why { kPreempted, kShrinks, kGrows };
  JobId job_id;
  Why why = Why::kPreempted;
  JobId beneficiary;            // who gets the slots; itself when it grows
  std::vector<Placement> keep;  // to be reserved for the job itself, for its next attempt; empty when preempted
};
// Slots that others give back are kept for this waiting job. Replaces what was reserved for it.
struct Reserve {
  JobId job_id;
  std::vector<Placement> slots;
};
struct Wait {
  JobId job_id;
  int64_t position = 0;                                // 1: next
  std::string reason;                                  // see below
  std::string message;                                 // a sentence
  absl::Time expected_start = absl::InfiniteFuture();  // by estimates; InfiniteFuture: cannot be known
};
// What a pass looked at: the same on every machine, so that tests can bound what it costs.
struct Work {
  int64_t placements = 0;      // gangs tried to be placed
  int64_t workers = 0;         // looked at while doing so
  int64_t slots = 0;           // looked at, one by one
  int64_t cluster_copies = 0;  // to try something out

  void Add(const Work& other);
  void TakeMax(const Work& other);  // of each by itself
};
struct Plan {
  std::vector<Start> starts;  // in queue order
  std::vector<Stop> stops;
  std::vector<Reserve> reserves;
  std::vector<Wait> waits;  // in queue order
  Work work;
};

// Reasons of waits.
inline constexpr char kNoWorkers[] = "NO_WORKERS";                     // none is up and open
inline constexpr char kRequirementsNotMet[] = "REQUIREMENTS_NOT_MET";  // no slot has what it requires
inline constexpr char kGangExceedsCluster[] = "GANG_EXCEEDS_CLUSTER";  // more slots than all (fitting) workers together
inline constexpr char kGangExceedsQuota[] = "GANG_EXCEEDS_QUOTA";      // more slots than its queue may ever hold
inline constexpr char kQueueAtQuota[] = "QUEUE_AT_QUOTA";              // its queue holds what it may
inline constexpr char kGangDoesNotFit[] = "GANG_DOES_NOT_FIT";         // not now
inline constexpr char kSlotsComingFree[] = "SLOTS_COMING_FREE";        // others were asked to stop for it
inline constexpr char kWorkersPreparing[] = "WORKERS_PREPARING";       // no worker may take another rank without a slot
inline constexpr char kBehindInQueue[] = "BEHIND_IN_QUEUE";            // would delay a job in front
inline constexpr char kBackingOff[] = "BACKING_OFF";                   // a failed attempt is retried later
inline constexpr char kRanksStopping[] = "RANKS_STOPPING";             // of the earlier attempt
inline constexpr const char* kWaitReasons[] = {
    kNoWorkers,       kRequirementsNotMet, kGangExceedsCluster, kGangExceedsQuota, kQueueAtQuota, kGangDoesNotFit,
    kSlotsComingFree, kWorkersPreparing,   kBehindInQueue,      kBackingOff,       kRanksStopping};

Plan Schedule(const Snapshot& snapshot, absl::Time now, const Options& options = {});

}  // namespace longspan::scheduler
