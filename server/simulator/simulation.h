// Replays a trace against a policy in virtual time, event by event. The same trace, cluster and options give the same
// result, but for how long passes took.
//
// A gang works at the rate (slots / largest size) ^ scaling_efficiency, and is done when its work is the trace's run
// time; or when it has run for its limit, which ends it. A gang that is asked to stop holds its slots for `stop_time`
// and does not work meanwhile; it keeps what it did until the newest multiple of checkpoint_interval, or, with an
// interval of zero, all: the stop itself saves. Every start but the first costs restart_time without work.
//
// Estimates are the server's (server/core/scheduling.cc, RunTimeLeft): what is left by the progress so far, where that
// is known and asked for; else of the limit; else of the queue's default run time, which ends nobody.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/simulator/cluster.h"
#include "server/simulator/policy.h"
#include "server/simulator/trace.h"

namespace longspan::simulator {

struct SimulationOptions {
  absl::Duration stop_time = absl::Seconds(60);
  absl::Duration restart_time = absl::Seconds(60);
  absl::Duration checkpoint_interval = absl::Minutes(30);
  absl::Duration min_run_time = absl::Minutes(10);
  absl::Duration reservation = absl::Minutes(5);     // of slots that others give back
  absl::Duration usage_half_life = absl::Hours(24);  // of a queue's use
  double scaling_efficiency = 1;                     // exponent
  bool estimate_by_progress = true;                  // of gangs that have run for progress_after
  absl::Duration progress_after = absl::Minutes(1);
  int64_t passes_max = 0;  // ends the simulation after so many; 0: when every job has ended
};

// What became of a job.
struct JobOutcome {
  absl::Time start = absl::InfiniteFuture();  // first
  absl::Time end = absl::InfiniteFuture();
  int64_t preemptions = 0;
  int64_t resizes = 0;
  bool ended_by_limit = false;
  std::string wait_reason;  // of a job that never started, where the policy says one
};

struct PassTime {
  double wall_seconds = 0;
  double cpu_seconds = 0;  // of the thread
  int64_t waiting = 0;
  int64_t gangs = 0;
};

struct SimulationResult {
  std::vector<JobOutcome> jobs;  // beside the trace
  absl::Time begin, last_submit, end;
  int64_t slots = 0;
  double held_slot_seconds = 0;    // from the first submit to the last
  double held_whole = 0;           // to the end
  double useful_slot_seconds = 0;  // work that was kept, to the end
  double lost_slot_seconds = 0;    // work thrown away, stops and restarts, to the end
  // Jain's index of slots held by weight, among queues with jobs that wait; mean over the time in which two or more do.
  double fairness = 1;
  double contended_seconds = 0;
  std::vector<PassTime> passes;
  scheduler::Work work_max;  // of one pass, each count by itself
  scheduler::Work work_total;
};

// CHECKs that no policy hands out a slot twice, a part of a gang, or a slot that does not fit.
SimulationResult Simulate(const ClusterSpec& cluster, const std::vector<TraceJob>& trace,
                          const SimulationOptions& options, Policy& policy);

}  // namespace longspan::simulator
