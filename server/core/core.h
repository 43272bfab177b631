// The coordinator's mind: what every job is, which ranks should exist, what a report means.
//
// Pure: reads no clock, touches no file, sends nothing. One thread owns it. `now` comes in and must never go back nor
// jump (the shell adds a steady clock to the wall time of its start). Step changes the memory at once and hands out
// what is to be stored; answers, wake-ups and the queries below may reach others only after that is durable.
//
//   Core core(options);
//   core.Step(Restarted{store.Load()}, now);           // first, always
//   Effects effects = core.Step(event, now);           // several may be merged: one commit for a group
//   CHECK(store.Commit(effects.transaction).ok());
//   publish(effects);
//
// What has ended is forgotten after keep_finished, so memory is bounded by what waits and runs and keep_finished_max.
// Samples and events are not held in memory.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/events.h"
#include "server/core/types.h"
#include "server/scheduler/schedule.h"

namespace longspan::core {

struct CoreOptions {
  std::string jobs_folder;                              // a job's folder is jobs_folder/<job id>
  absl::Duration lease = absl::Seconds(60);             // a worker is up this long after its newest report
  absl::Duration slot_reuse_after = absl::Seconds(75);  // its slots may be given away this long after it; above lease
  absl::Duration restart_grace =
      absl::Seconds(120);  // both, counted from a restart of the server; at least slot_reuse_after
  absl::Duration kill_grace = absl::Seconds(10);         // a cancelled rank may take this long to stop
  absl::Duration checkpoint_grace = absl::Seconds(120);  // a paused or preempted rank may take this long
  absl::Duration start_deadline = absl::Minutes(5);      // from placement to every rank RUNNING
  absl::Duration backoff_first = absl::Seconds(1);
  absl::Duration backoff_max = absl::Seconds(60);
  absl::Duration avoid_worker = absl::Minutes(10);             // after a failure there, when there is an alternative
  absl::Duration first_progress_deadline = absl::Minutes(10);  // from RUNNING to the first sample
  absl::Duration progress_deadline_min = absl::Seconds(60);  // between samples, or step_times_max step times if longer
  int64_t progress_step_times_max = 20;
  absl::Duration keep_finished = absl::Hours(24 * 90);  // a job that has ended is forgotten after that
  int64_t keep_finished_max = 20'000;                   // and the oldest when there are more
  int64_t stalled_attempts_max = 3;                     // failed attempts in a row without a new step
  // An attempt runs at least that long before it is asked to stop for another job or another size.
  absl::Duration min_run_time = absl::Minutes(10);
  absl::Duration schedule_interval = absl::Seconds(30);  // of passes while jobs wait, beside those after a change
  // Its stop_time is checkpoint_grace; its reservation must be longer than that.
  scheduler::Options scheduler;
};

// A rank that should exist on a worker.
struct DesiredRank {
  enum class Action : int { kRun = 1, kStop = 2 };
  JobId job_id;
  int64_t attempt = 0;
  int64_t rank = 0;
  int64_t world_size = 0;
  int64_t slot = -1;
  std::string command;
  std::string spec_json;
  std::string folder;
  std::string resume_from;
  std::string manifest_sha256;
  std::string store_address;
  Action action = Action::kRun;
  int64_t threads = 1;
  absl::Duration stop_grace;
  std::vector<std::string> recorded_checkpoints;
};
struct DesiredRanks {
  std::vector<DesiredRank> ranks;  // by job, attempt, rank
  std::string fingerprint;         // equal for equal ranks told by the same process
};

// A job and all that is known about it.
struct JobView {
  // Reason and message say why it waits, when it does; `reserved` has only what is kept now.
  Job job;
  int64_t queue_position = 0;                          // 1: next; 0: does not wait
  absl::Time expected_start = absl::InfiniteFuture();  // by estimates; InfiniteFuture: not known, or does not wait
  std::optional<Sample> progress;
  std::optional<Checkpoint> latest_checkpoint;
  std::vector<Evaluation> evaluations;
  std::vector<Artifact> artifacts;
  std::vector<Attempt> attempts;  // newest last, at most 50
};

struct WorkerView {
  Worker worker;
  std::vector<JobId> slot_jobs;  // beside worker.slots; empty id: free
};

// A kind of slot, and one that is of it.
struct SlotKind {
  WorkerId worker_id;
  Slot slot;
};

struct QueueView {
  Queue queue;
  int64_t slots_held = 0;
  int64_t waiting = 0;
  double used_share = 0;      // of what all queues have used; 0 when none has
  double expected_share = 0;  // by weight, among queues that hold slots or wait; 0: this one does neither
};

// Counted since the start of this process, for metrics.
struct Counters {
  std::array<std::array<int64_t, 12>, 12>
      transitions{};                         // [from][to], by the numbers of JobState; [0][QUEUED]: submitted
  std::array<int64_t, 7> attempts_failed{};  // by FailureClass
  int64_t attempts_started = 0;
  int64_t fenced_reports = 0;  // ranks refused because their attempt is over
  int64_t stale_reports = 0;   // calls refused as old or replaced
  int64_t scheduler_passes = 0;
  int64_t preemptions = 0;  // gangs asked to stop for another job
  int64_t resizes = 0;      // elastic gangs asked to stop for another size
};

class Core {
 public:
  explicit Core(CoreOptions options);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // CHECKs that the first event is Restarted and that no later one is.
  Effects Step(const Event& event, absl::Time now);

  // A Tick has nothing to do before this time, and may have nothing to do at it; InfiniteFuture when nothing is
  // pending. Costs nothing: callers ask in every turn.
  absl::Time NextDeadline() const;

  // ---- queries; all by value, safe to hand to another thread ----

  DesiredRanks Desired(const WorkerId& worker_id) const;
  // Its fingerprint alone, which is remembered: most reports ask whether anything has changed.
  std::string DesiredFingerprint(const WorkerId& worker_id) const;

  // An id, or a name that exactly one job has. NOT_FOUND; FAILED_PRECONDITION for a name of several.
  absl::StatusOr<JobId> ResolveJob(const std::string& id_or_name) const;
  // `now` only for the scheduler's words. NOT_FOUND.
  absl::StatusOr<JobView> ViewJob(const JobId& job_id) const;
  // Without attempts, evaluations and artifacts; newest first, submitted before `before` (empty id: from the newest),
  // at most `limit`, those for which `matches` holds.
  std::vector<JobView> ListJobs(const JobId& before, size_t limit,
                                const std::function<bool(const Job&)>& matches) const;
  // Newest first.
  absl::StatusOr<std::vector<Checkpoint>> ListCheckpoints(const JobId& job_id) const;
  // The job that a request id made; nothing when there is none.
  std::optional<JobId> FindRequest(const std::string& request_id) const;
  std::vector<WorkerView> ListWorkers() const;  // by id
  std::vector<SlotKind> ListSlotKinds() const;  // one for each device and memory that some slot has
  std::optional<WorkerView> ViewWorker(const WorkerId& worker_id) const;
  // By name; those that were configured or that jobs have named. Use as of `now`.
  std::vector<QueueView> ListQueues(absl::Time now) const;
  const Counters& counters() const;
  // Waiting jobs by the reason of the newest pass; of those that no pass has seen yet by the reason of the job.
  std::map<std::string, int64_t> WaitingByReason() const;
  // Jobs by the number of their state.
  std::array<int64_t, 12> JobsByState() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace longspan::core
