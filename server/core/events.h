// What goes into the core (Event) and what comes out of it (Effects).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "server/core/types.h"

namespace longspan::core {

inline constexpr size_t kLabelsMax = 64;  // of a job, as in a job file

// ---- in ----

// A validated spec, with what the core needs of it taken out. `job` has the fields that are set at submit; `job.id` is
// a fresh id, used unless the request id is known. Reply: SubmitReply.
struct JobSubmitted {
  Job job;
};
// Reply: CommandReply.
struct CancelRequested {
  JobId job_id;
};
struct PauseRequested {
  JobId job_id;
};
struct ResumeRequested {
  JobId job_id;
};
// Of a waiting job. Reply: CommandReply.
struct UpdateRequested {
  JobId job_id;
  std::optional<int64_t> priority;            // 0 to 100
  std::map<std::string, std::string> labels;  // to set; an empty value removes one; kLabelsMax then at most
};
// Of a job that has ended: it is forgotten, with its events, samples and checkpoints' names. Files stay. Reply:
// CommandReply.
struct DeleteRequested {
  JobId job_id;
};
struct DrainRequested {
  WorkerId worker_id;
  bool move = false;  // its ranks save a checkpoint and go on elsewhere; else they finish there
};
struct UndrainRequested {
  WorkerId worker_id;
};

// What an operator says of a queue, as in Queue; what is absent stays, and its use does. Reply: CommandReply.
struct QueueConfigured {
  std::string name;
  std::optional<double> weight;
  std::optional<int64_t> slots_max;
  std::optional<int64_t> waiting_max;
  std::optional<absl::Duration> run_time_default;
};

struct RankExit {
  int exit_code = 0;
  int signal = 0;
  bool stopped = false;
  FailureClass failure_class = FailureClass::kUnspecified;
  std::string message;
  std::string log_tail;
  absl::Duration age;  // between the end and the report
};

struct RankReport {
  JobId job_id;
  int64_t attempt = 0;
  int64_t rank = 0;
  RankState state = RankState::kStarting;
  Phase phase = Phase::kUnspecified;
  std::string store_address;
  std::vector<Sample> samples;
  std::vector<Checkpoint> checkpoints;
  std::vector<Evaluation> evaluations;  // all of this attempt
  std::vector<Artifact> artifacts;      // all of this attempt
  std::vector<std::string> warnings;    // all of this attempt
  std::optional<RankExit> exit;
  absl::Duration expect_no_progress;
  int64_t reached_step = 0;  // its own part of this step is done; 0: of none
};

// The full picture of one worker. Reply: ReportReply.
struct WorkerReport {
  WorkerId worker_id;
  std::string incarnation_id;
  int64_t sequence = 0;
  std::string advertise_address;
  int64_t http_port = 0;
  std::vector<Slot> slots;
  std::map<std::string, std::string> labels;
  std::string version;
  std::vector<RankReport> ranks;
  bool leaving = false;
  std::string desired_fingerprint;  // of the desired ranks that the worker acts on
};

// Time has passed: leases, deadlines, backoff, a pass of the scheduler.
struct Tick {};

// All that the store holds. The first event of every core; gives each worker a fresh grace.
struct StoredState {
  struct JobRows {
    Job job;
    std::vector<Attempt> attempts;        // by number
    std::vector<Checkpoint> checkpoints;  // in the order of recording
    std::vector<Evaluation> evaluations;
    std::vector<Artifact> artifacts;
    std::optional<Sample> newest_sample;
  };
  std::vector<JobRows> jobs;  // in the order of submission
  std::vector<Worker> workers;
  std::vector<Queue> queues;
};
struct Restarted {
  StoredState state;
  // The state is of a backup: what happened after it is not known. Every running attempt is given up, and the numbers
  // of new ones are far from any that the lost time may have used, so that their checkpoints meet no older ones and
  // ranks of the lost time are refused. Jobs go on from their newest known checkpoint.
  bool from_backup = false;
};

using Event = std::variant<Restarted, JobSubmitted, CancelRequested, PauseRequested, ResumeRequested, UpdateRequested,
                           DeleteRequested, DrainRequested, UndrainRequested, QueueConfigured, WorkerReport, Tick>;

// ---- out ----

// A change of one job. The update is refused unless the stored row has the expected version and state; a version of 0
// inserts.
struct JobWrite {
  Job job;
  int64_t expected_version = 0;
  JobState expected_state = JobState::kQueued;
};
template <typename Row>
struct OfJob {
  JobId job_id;
  Row row;
};

// Everything one Step (or several, appended in order) wants stored: all of it or nothing.
// An attempt that is inserted or replaced.
struct AttemptWrite : Attempt {
  AttemptWrite(Attempt attempt, bool ranks_changed = true)  // NOLINT: an attempt, ranks and all
      : Attempt(std::move(attempt)), ranks_changed(ranks_changed) {}
  bool ranks_changed;  // false: only its own row; every step of a large gang would write all of its ranks
};

struct Transaction {
  std::vector<JobWrite> jobs;
  std::vector<AttemptWrite> attempts;
  std::vector<OfJob<JobEvent>> events;
  std::vector<OfJob<Sample>> samples;
  std::vector<OfJob<Checkpoint>> checkpoints;
  std::vector<OfJob<Evaluation>> evaluations;  // by model, length, protocol and step
  std::vector<OfJob<Artifact>> artifacts;      // by kind
  std::vector<Worker> workers;
  std::vector<Queue> queues;
  std::vector<JobId> deleted_jobs;  // with all that hangs on them; after everything else

  bool empty() const;
  void Append(Transaction&& later);
};

struct SubmitReply {
  absl::Status status;  // ALREADY_EXISTS: the request id has another content; RESOURCE_EXHAUSTED: the queue is full
  JobId job_id;
  bool already_submitted = false;
};
struct CommandReply {
  absl::Status status;  // NOT_FOUND, FAILED_PRECONDITION with a sentence
};
struct RankAcknowledgement {
  JobId job_id;
  int64_t attempt = 0;
  int64_t rank = 0;
  int64_t sample_sequence = 0;
  std::vector<std::string> checkpoints;
  int64_t evaluations = 0;
  int64_t artifacts = 0;
  int64_t warnings = 0;
  bool exit = false;
  bool fenced = false;
};
struct ReportReply {
  // OK; ABORTED for a report older than what is known (answer the call so, nothing else); FAILED_PRECONDITION for a
  // daemon that another one with the same worker id has replaced (it must stop its ranks); INVALID_ARGUMENT.
  absl::Status status;
  std::vector<RankAcknowledgement> acknowledged;
  // Not empty: nothing of the report was believed yet. It comes from a process that is not the known one of its worker;
  // answer at once, with no desired ranks and this as their fingerprint, which only a process that lives can report
  // back.
  std::string greeting;
};
using Reply = std::variant<std::monostate, SubmitReply, CommandReply, ReportReply>;

// None of this may leave before `transaction` is durable. A failed commit ends the server: the core is ahead of the
// store then, and a restart from the store is the way back.
struct Effects {
  Transaction transaction;
  Reply reply;
  std::vector<WorkerId> changed_workers;  // their desired ranks may differ: end their held calls
  std::vector<JobId> changed_jobs;        // wake their watchers
  bool tick_soon = false;                 // a pass of the scheduler is due: send Tick when the queue of events is empty
};

}  // namespace longspan::core
