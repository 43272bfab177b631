// The inside of Core: the rows in memory, and the steps that change them, one source file a topic:
//
//   commands.cc   submit, cancel, pause, resume, drain
//   attempts.cc   an attempt starts, ends, and what becomes of its job
//   reports.cc    what a worker says
//   time.cc       leases, deadlines; also the start from the store
//   scheduling.cc the scheduler's pass: its snapshot, and what its plan changes
//   queues.cc     queues: limits, use, fair share
//   desired.cc    which ranks should exist on a worker
//   queries.cc    views for others
//
// Within a Step every change marks its row; TakeEffects turns the marks into one transaction. So a job that changes
// twice in one step is written once, guarded by what it was before the step, and each of its transitions is an event
// row of its own.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "server/core/core.h"
#include "server/core/transitions.h"
#include "server/scheduler/schedule.h"

namespace longspan::core {

// Reasons of PREEMPTING.
inline constexpr char kPreemptRequested[] = "PREEMPT_REQUESTED";  // its slots go to a job of higher priority
inline constexpr char kResizeRequested[] = "RESIZE_REQUESTED";    // it goes on with another number of slots
inline constexpr char kMoveRequested[] = "MOVE_REQUESTED";        // it goes on elsewhere

class Core::State {
 public:
  explicit State(CoreOptions options);

  Effects Step(const Event& event, absl::Time now);
  absl::Time NextDeadline() const;

 private:
  friend class Core;

  // What the watchdog knows of the newest attempt; starts anew with every attempt and every process.
  struct Watch {
    absl::Time last_progress;
    absl::Time expected_until = absl::InfinitePast();  // no step will move before
    absl::Duration step_time;                          // zero until learned
    std::optional<Sample> previous;
  };
  struct JobEntry {
    Job job;
    size_t order = 0;  // of submission
    std::map<int64_t, Attempt> attempts;
    std::vector<Checkpoint> checkpoints;
    std::vector<Evaluation> evaluations;
    std::vector<Artifact> artifacts;
    std::optional<Sample> progress;
    Watch watch;
    scheduler::Wait wait;        // of the newest pass; position 0 when it does not wait
    std::string announced_wait;  // reason that an event told last
  };
  using RankKey = std::tuple<JobId, int64_t, int64_t>;  // job, attempt, rank
  struct WorkerEntry {
    Worker worker;
    std::set<RankKey> ranks;                         // not released
    mutable std::optional<std::string> fingerprint;  // of its desired ranks; empty when they may have changed
  };
  struct Before {
    int64_t version = 0;
    JobState state = JobState::kQueued;
  };
  struct QueueEntry {
    Queue queue;
    int64_t slots_held = 0;  // by ranks that are not released
    int64_t waiting = 0;     // jobs in QUEUED or RECOVERING
  };
  // Why an attempt ended.
  struct Cause {
    FailureClass failure_class = FailureClass::kInfrastructure;
    std::string message;
    WorkerId worker_id;
    absl::Time time;
    bool counts = true;    // against the limits of retries
    bool stalls = true;    // the job may be to blame when no new step was made
    bool crashed = false;  // the process was ended from outside, or by its own mistake, and did not say anything
  };

  // commands.cc
  void On(const Restarted& event);
  void GiveUpAttempt(JobEntry& entry);
  void On(const JobSubmitted& event);
  void On(const CancelRequested& event);
  void On(const PauseRequested& event);
  void On(const ResumeRequested& event);
  void On(const UpdateRequested& event);
  void On(const DeleteRequested& event);
  void On(const DrainRequested& event);
  void On(const UndrainRequested& event);
  void On(const QueueConfigured& event);
  void On(const WorkerReport& event);
  void On(const Tick& event);
  JobEntry* FindJobOrReply(const JobId& job_id);
  void SetDraining(const WorkerId& worker_id, bool draining);
  void MoveRanksAway(const WorkerEntry& entry);
  // Asks the ranks to save and stop; the job waits for that in `to`.
  void AskToStop(JobEntry& entry, JobState to, std::string reason, std::string message);

  // attempts.cc
  void StartAttempt(JobEntry& entry, const std::vector<scheduler::Placement>& placements);
  void MarkRunning(JobEntry& entry, Attempt& attempt);
  void FinishAttemptWell(JobEntry& entry, Attempt& attempt);
  void FailAttempt(JobEntry& entry, Attempt& attempt, const Cause& cause);
  void RetryOrFail(JobEntry& entry, Attempt& attempt, const Cause& cause);
  void FailJob(JobEntry& entry, std::string reason, std::string message);
  void EndAttempt(JobEntry& entry, Attempt& attempt);
  void Requeue(JobEntry& entry);
  // Whether it explains the end of an attempt better than what is known.
  static bool IsBetter(const Cause& cause, const Attempt& attempt);
  // A better explanation of an attempt that has already ended.
  void LearnLateCause(JobEntry& entry, Attempt& attempt, const Cause& cause);
  void ReleaseRank(JobEntry& entry, Attempt& attempt, Rank& rank);
  // Moves a job on when its attempt is over and its ranks are gone.
  void Settle(JobEntry& entry);
  void OnRankExit(JobEntry& entry, Attempt& attempt, Rank& rank);
  static Cause CauseOf(const Rank& rank);
  bool HasUnreleasedRanks(const JobEntry& entry) const;
  Attempt* NewestAttempt(JobEntry& entry);
  bool IsLive(const Attempt& attempt) const { return attempt.end_time == kNever; }

  // reports.cc
  bool AcceptReport(const WorkerReport& report, ReportReply& reply);
  void LoseRank(JobEntry& entry, Attempt& attempt, const Cause& cause);
  void TakeOver(WorkerEntry& entry, const std::string& incarnation_id);
  void UpdateWorker(WorkerEntry& entry, const WorkerReport& report);
  RankAcknowledgement OnRankReport(const WorkerReport& report, const RankReport& rank_report);
  void OnRankState(JobEntry& entry, Attempt& attempt, Rank& rank, const RankReport& report);
  void RecordResults(JobEntry& entry, Attempt& attempt, const RankReport& report, RankAcknowledgement& acknowledgement);
  void RecordSample(JobEntry& entry, Attempt& attempt, const Sample& sample);
  void RecordCheckpoint(JobEntry& entry, Attempt& attempt, const Checkpoint& checkpoint);
  void RecordEvaluation(JobEntry& entry, Attempt& attempt, const Evaluation& evaluation);
  void RecordArtifact(JobEntry& entry, Attempt& attempt, Artifact artifact);
  void RecordWarnings(JobEntry& entry, Attempt& attempt, const std::vector<std::string>& warnings);
  std::set<RankKey> RanksToName(const WorkerEntry& entry) const;
  void OnRankMissing(const RankKey& key);
  static bool TellsProgress(const WorkerId& worker_id, const JobEntry& entry);
  void CheckProgress(JobEntry& entry);
  // Names the ranks that have come less far than the others, and takes the worker of the first as the cause.
  void BlameRanksBehind(const JobEntry& entry, const Attempt& attempt, Cause& cause) const;

  // time.cc
  void ExpireLeases();
  void CheckDeadlines(JobEntry& entry);
  void CheckBackoffs();
  void ForgetFinished();
  absl::Time ForgetTime() const;  // of the job that ended first
  absl::Time StartDeadline(const Attempt& attempt) const;
  absl::Time StopDeadline(const JobEntry& entry, const Attempt& attempt) const;
  absl::Time RunTimeDeadline(const Job& job) const;
  absl::Time DeadlineOf(const JobEntry& entry) const;
  static absl::Time DeadlineOf(const Worker& worker) { return std::min(worker.lease_end, worker.release_time); }
  static bool IsElastic(const JobEntry& entry) { return entry.job.gang_sizes.size() > 1; }
  void FindDeadline();
  void LowerDeadline();  // to those of what the step has touched

  // scheduling.cc
  bool WantsPasses() const;
  void RunScheduler();
  scheduler::Snapshot TakeSnapshot();
  scheduler::WorkerSlots SlotsOf(const WorkerEntry& entry, std::vector<scheduler::SlotKind>& kinds) const;
  scheduler::WaitingJob WaitingJobOf(const JobEntry& entry) const;
  std::optional<scheduler::RunningGang> GangOf(const JobEntry& entry) const;
  // Of its run time from here, by its limit, its progress or its queue; may be negative when it takes longer.
  absl::Duration RunTimeLeft(const JobEntry& entry) const;
  void StopForAnother(const scheduler::Stop& stop);
  void ReserveSlots(JobEntry& entry, const std::vector<scheduler::Placement>& slots);
  void RecordWait(const scheduler::Wait& wait);

  // queues.cc
  QueueEntry& QueueOf(const Job& job);
  const Queue& QueueRules(const std::string& name) const;
  void SlotsHeldChange(const Job& job, int64_t by);
  static Queue WithUse(const QueueEntry& entry, absl::Duration half_life, absl::Time now);

  // desired.cc
  DesiredRanks Desired(const WorkerEntry& entry) const;
  DesiredRank MakeDesired(const JobEntry& entry, const Attempt& attempt, const Rank& rank) const;
  const std::string& Fingerprint(const WorkerEntry& entry) const;

  // Bookkeeping of a step.
  void MoveTo(JobEntry& entry, JobState to, std::string reason, std::string message);
  void AddEvent(JobEntry& entry, std::string reason, std::string message);
  void Touch(JobEntry& entry);  // the job row changes; call before changing it
  void Touch(const Attempt& attempt);
  void TouchRow(const Attempt& attempt);  // what it is, but for its ranks
  void Touch(const WorkerEntry& entry);
  void DesiredChanged(const WorkerId& worker_id);
  void DesiredChanged(const Attempt& attempt);  // of all workers with ranks of it
  void IndexJob(JobEntry& entry);
  void Forget(const JobId& job_id);
  Effects TakeEffects();

  const CoreOptions options_;
  bool started_ = false;
  absl::Time restart_time_;
  std::map<JobId, JobEntry> jobs_;
  std::map<size_t, JobId> submission_order_;
  size_t submissions_ = 0;                           // ever, or since the start
  std::set<std::pair<absl::Time, JobId>> finished_;  // by end time
  std::unordered_map<std::string, JobId> by_request_;
  std::map<WorkerId, WorkerEntry> workers_;
  std::map<std::string, QueueEntry> queues_;
  std::set<JobId> waiting_;  // QUEUED, RECOVERING
  std::set<JobId> busy_;     // with an attempt that lives or has ranks not released
  Counters counters_;
  bool pass_due_ = false;
  absl::Time last_pass_ = absl::InfinitePast();
  // Of workers, attempts and backoffs: exact after a Tick, and never too late; what becomes later in between is found
  // at the next one.
  absl::Time deadline_ = absl::InfiniteFuture();
  bool elastic_busy_ = false;                                // likewise: whether a busy job may change its size
  mutable std::optional<std::vector<SlotKind>> slot_kinds_;  // empty when they may have changed

  // Of the current step.
  absl::Time now_;
  Effects effects_;
  std::map<JobId, Before> touched_jobs_;
  std::map<std::pair<JobId, int64_t>, bool> touched_attempts_;  // whether ranks changed
  std::set<std::pair<JobId, int64_t>> started_attempts_;        // written last: what they take was freed by others
  std::set<WorkerId> touched_workers_;
  std::set<std::string> touched_queues_;
  std::set<WorkerId> changed_workers_;
  std::set<JobId> changed_jobs_;
};

}  // namespace longspan::core
