// What the coordinator knows, as plain rows: the store writes them, the core changes them, the RPC layer translates
// them.
//
// Times are the server's. Paths are as the workers see them. A field is durable unless its comment says "not stored".
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/support/ids.h"
#include "server/core/states.h"
#include "server/scheduler/schedule.h"

namespace longspan::core {

inline constexpr absl::Time kNever = absl::InfiniteFuture();  // "not yet", for ends
inline constexpr int kPhaseCount = 5;

// A job: what was asked for, and where it stands.
struct Job {
  // Set at submit, for ever.
  JobId id;
  std::string request_id;
  std::string content_hash;  // of what differs from the defaults; tells a retry from another job of the same request id
  std::string spec_json;     // the job file, defaults written out
  std::string name;
  std::string queue;
  int64_t priority = 50;
  std::map<std::string, std::string> labels;
  std::vector<int64_t> gang_sizes = {1};  // numbers of ranks it can run with, ascending; one number unless elastic
  scheduler::Requirements requirements;   // what each of their slots must offer
  int64_t threads_per_slot = 1;
  int64_t max_attempts = 20;
  absl::Duration max_run_time = absl::InfiniteDuration();
  std::string owner;
  std::string folder;
  absl::Time submit_time;

  // Changes.
  JobState state = JobState::kQueued;
  std::string reason;                 // machine-readable; empty when the state says enough
  std::string message;                // a sentence
  Phase phase = Phase::kUnspecified;  // what the running attempt is doing
  int64_t attempt = 0;                // newest; 0 before the first
  int64_t version = 0;                // 1 when stored first
  bool prepared = false;              // the prepare attempt ended well
  absl::Time start_time = kNever;     // first ran
  absl::Time end_time = kNever;
  int64_t failed_attempts = 0;                            // counted against max_attempts
  int64_t stalled_attempts = 0;                           // in a row, without a new step
  absl::Time retry_time = absl::InfinitePast();           // RECOVERING: not before
  absl::Duration run_time;                                // in RUNNING, up to the newest change out of it
  absl::Time running_since = kNever;                      // now in RUNNING, since
  int64_t best_step[kPhaseCount] = {-1, -1, -1, -1, -1};  // by phase; what counts as progress is to go beyond
  int64_t last_event = 0;                                 // newest sequence of its events
  int64_t last_sample = 0;                                // newest sequence of its samples
  int64_t preemptions = 0;                                // times it was asked to give its slots to another job
  std::vector<scheduler::Placement> reserved;             // slots kept for its next attempt, until...
  absl::Time reserved_until = absl::InfinitePast();
};

// Jobs name a queue; one that nobody configured has these values. Its use decays: half of it counts after
// CoreOptions::scheduler.usage_half_life.
struct Queue {
  std::string name;
  double weight = 1;                                  // share relative to other queues, above 0
  int64_t slots_max = 0;                              // that its jobs may hold at once; 0: no limit
  int64_t waiting_max = 0;                            // jobs that may wait; 0: no limit
  absl::Duration run_time_default = absl::Hours(24);  // estimate for jobs without limits.max_run_time; ends no job
  double used_slot_seconds = 0;                       // decayed, as of...
  absl::Time used_time = absl::InfinitePast();
};

// Where a rank runs, and what is known of its process.
struct Rank {
  int64_t rank = 0;
  WorkerId worker_id;
  int64_t slot = -1;           // -1: needs none
  std::string incarnation_id;  // of the daemon it was placed on
  RankState state = RankState::kPending;
  bool seen = false;      // a report has named it
  bool released = false;  // surely gone: the slot is free
  // The end of the process; meaningful when `exited`.
  bool exited = false;
  int exit_code = 0;
  int signal = 0;
  bool stopped = false;  // on request
  FailureClass failure_class = FailureClass::kUnspecified;
  std::string message;
  std::string log_tail;           // at most 4 KiB
  absl::Time exit_time = kNever;  // by the server's clock, from the age in the report
  // Not stored.
  int64_t reached_step = 0;  // its own part of this step is done; 0: of none
};

// One run of a job's gang. It lives until `end_time`; its ranks hold their slots until they are released, which may be
// later.
struct Attempt {
  JobId job_id;
  int64_t number = 0;
  Phase phase = Phase::kUnspecified;  // it started in
  std::string command;                // trainer subcommand: prepare or run
  absl::Time start_time;
  absl::Time end_time = kNever;
  FailureClass failure_class = FailureClass::kUnspecified;
  std::string message;
  WorkerId cause_worker;  // of the rank that failed first; empty otherwise
  absl::Time cause_time = kNever;
  std::string resumed_from;
  std::string manifest_sha256;
  std::string store_address;      // of rank 0, once it listens
  absl::Time stop_time = kNever;  // asked to stop
  bool progressed = false;        // beyond the best step of the job, or a new checkpoint
  int64_t sample_sequence = 0;    // newest stored, as the daemon counts
  int64_t warnings = 0;           // of rank 0 that became events
  std::vector<Rank> ranks;        // by rank
};

// Numbers of rank 0 at one moment.
struct Sample {
  int64_t sequence = 0;  // of the job; in a report: of the daemon, within the attempt
  int64_t attempt = 0;
  Phase phase = Phase::kUnspecified;
  int64_t step = 0;
  int64_t steps = 0;
  std::map<std::string, double> values;  // may hold NaN and infinities
  absl::Time time;
};

struct Checkpoint {
  std::string name;
  int64_t step = 0;
  int64_t attempt = 0;
  std::string manifest_sha256;
  int64_t size_bytes = 0;
  absl::Time time;
};

struct Evaluation {
  std::string model;
  int64_t length = 0;
  std::string protocol;
  double perplexity = 0;
  double loss = 0;
  int64_t tokens = 0;
  int64_t step = 0;
  double score = 0;      // of a task, 0 to 100
  int64_t examples = 0;  // of a task; 0: the row is a perplexity
};

struct Artifact {
  std::string kind;
  std::string path;
  std::string excerpt;  // lines for people; empty for most
  bool operator==(const Artifact&) const = default;
};

// One thing that happened to a job.
struct JobEvent {
  int64_t sequence = 0;  // of the job, without gaps
  absl::Time time;
  JobState state = JobState::kQueued;  // after it
  std::string reason;                  // ATTEMPT_STARTED, CHECKPOINT_RECORDED, ...
  std::string message;
  int64_t attempt = 0;  // 0 for none
};

struct Slot {
  int64_t index = 0;
  std::string device;
  int64_t memory_bytes = 0;
};

// A worker daemon.
struct Worker {
  WorkerId id;
  std::string advertise_address;
  int64_t http_port = 0;
  std::vector<Slot> slots;
  std::map<std::string, std::string> labels;
  std::string version;
  std::string incarnation_id;
  std::vector<std::string> retired_incarnations;  // newest last, at most 8
  bool draining = false;                          // by an operator
  bool leaving = false;                           // by itself
  int64_t placements = 0;                         // ranks ever placed there
  absl::Time last_seen;                           // stored with other changes only
  // Not stored.
  int64_t sequence = 0;              // newest report of this incarnation
  bool up = false;                   // has reported to this process, and its lease runs
  absl::Time lease_end = kNever;     // attempts with ranks there fail then
  absl::Time release_time = kNever;  // its ranks are surely gone from then on
};

}  // namespace longspan::core
