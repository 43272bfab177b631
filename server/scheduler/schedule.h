// Decides which waiting jobs start now, and where.
//
//   order the queue  ->  feasibility of workers  ->  placement of whole gangs  ->  starts, and a reason for all the
//   others (order.h)            (feasibility.h)             (placement.h)
//
// Pure: the same snapshot and time give the same plan; nothing is remembered between passes. The caller applies the
// plan to the state that the snapshot was taken of.
//
// Order: priority (higher first), submit time, id. A job that could run on the workers that are there, but not now,
// holds back the jobs behind it, so that small jobs cannot starve a large one; a job that no set of present workers
// could hold does not. A job that must wait a moment (backoff, old ranks stopping) keeps the slots it would get. A job
// without slots (prepare) waits only while every worker runs as many such ranks as it may.
//
// Not here yet: fair share over queues, quotas, backfill by run-time estimates, preemption.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/support/ids.h"

namespace longspan::scheduler {

struct WorkerSlots {
  WorkerId id;
  bool up = false;
  bool expected = false;  // not up, but may come back in a moment: the server has just restarted
  bool draining = false;  // drained, or leaving by itself
  int64_t slot_count = 0;
  std::vector<int64_t> free_slots;  // ascending
  int64_t slotless_ranks = 0;       // that run there now (prepare); as many as it has slots may, one at least
};

struct WaitingJob {
  JobId id;
  int64_t priority = 50;
  absl::Time submit_time;
  int64_t slots = 0;            // 0: one rank on any worker that is up, without a slot
  std::vector<WorkerId> avoid;  // not there, if there is an alternative
  absl::Time not_before = absl::InfinitePast();
  bool old_ranks_remain = false;  // of an earlier attempt: must not start yet
};

struct Snapshot {
  std::vector<WorkerSlots> workers;  // by id
  std::vector<WaitingJob> jobs;      // in any order
};

struct Placement {
  WorkerId worker_id;
  int64_t slot = -1;
};
struct Start {
  JobId job_id;
  std::vector<Placement> ranks;  // by rank
};
struct Wait {
  JobId job_id;
  int64_t position = 0;  // 1: next
  std::string reason;    // see below
  std::string message;   // a sentence
};
struct Plan {
  std::vector<Start> starts;  // in queue order
  std::vector<Wait> waits;    // in queue order
};

// Reasons of waits.
inline constexpr char kNoWorkers[] = "NO_WORKERS";                     // none is up and open
inline constexpr char kGangExceedsCluster[] = "GANG_EXCEEDS_CLUSTER";  // more slots than all workers together
inline constexpr char kGangDoesNotFit[] = "GANG_DOES_NOT_FIT";         // not now
inline constexpr char kWorkersPreparing[] = "WORKERS_PREPARING";       // no worker may take another rank without a slot
inline constexpr char kBehindInQueue[] = "BEHIND_IN_QUEUE";            // held back by a job in front
inline constexpr char kBackingOff[] = "BACKING_OFF";                   // a failed attempt is retried later
inline constexpr char kRanksStopping[] = "RANKS_STOPPING";             // of the earlier attempt

Plan Schedule(const Snapshot& snapshot, absl::Time now);

}  // namespace longspan::scheduler
