// An attempt starts, ends, and what becomes of its job.
//
//   StartAttempt -> (ranks come up) MarkRunning -> FinishAttemptWell
//                                               -> FailAttempt -> RetryOrFail
//   EndAttempt: its ranks should no longer exist.   ReleaseRank: one is surely gone.   Settle: over, and all of them
//   gone.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <tuple>

#include "proto/support/check.h"
#include "server/core/core_state.h"

namespace longspan::core {
namespace {

constexpr int kExitStopped = 40;  // of the trainer: stopped on request, after a checkpoint

// A daemon gives a class to an exit code 0 that no `done` line came with.
bool EndedWell(const Rank& rank) {
  return rank.exited && !rank.stopped && rank.exit_code == 0 && rank.signal == 0 &&
         rank.failure_class == FailureClass::kUnspecified;
}
bool StoppedOnRequest(const Rank& rank) { return rank.exited && (rank.stopped || rank.exit_code == kExitStopped); }

// Trying again would end the same way.
bool IsFinal(FailureClass failure_class) {
  return failure_class == FailureClass::kUser || failure_class == FailureClass::kResource;
}

// Ended by the kernel, or by somebody with kill -9. Losing a peer ends a rank in other ways: it says so, or aborts. A
// daemon that ends a rank on the server's wish asks with SIGTERM first.
bool Crashed(const Rank& rank) {
  return rank.signal == SIGKILL || rank.signal == SIGSEGV || rank.signal == SIGBUS || rank.signal == SIGILL ||
         rank.signal == SIGFPE;
}

// The times of ends are known only as well as reports travel: within this, what ended the ranks says more.
constexpr absl::Duration kAtOnce = absl::Seconds(1);

FailureClass ClassOfExit(const Rank& rank) {
  if (rank.failure_class != FailureClass::kUnspecified) return rank.failure_class;
  if (rank.signal != 0) return FailureClass::kInfrastructure;
  switch (rank.exit_code) {
    case 2:
    case 10:
      return FailureClass::kUser;
    case 20:
      return FailureClass::kResource;
    case 70:
      return FailureClass::kInternal;
    default:
      return FailureClass::kInfrastructure;
  }
}

}  // namespace

Attempt* Core::State::NewestAttempt(JobEntry& entry) {
  return entry.attempts.empty() ? nullptr : &entry.attempts.rbegin()->second;
}

bool Core::State::HasUnreleasedRanks(const JobEntry& entry) const {
  // Only the newest can have any: the next one starts when all are released.
  if (entry.attempts.empty()) return false;
  const std::vector<Rank>& ranks = entry.attempts.rbegin()->second.ranks;
  return std::any_of(ranks.begin(), ranks.end(), [](const Rank& rank) { return !rank.released; });
}

void Core::State::StartAttempt(JobEntry& entry, const std::vector<scheduler::Placement>& placements) {
  Job& job = entry.job;
  CHECK(!HasUnreleasedRanks(entry)) << job.id << " still has ranks of attempt " << job.attempt;
  Touch(entry);
  Attempt attempt;
  attempt.job_id = job.id;
  attempt.number = ++job.attempt;
  attempt.phase = job.prepared ? Phase::kTrain : Phase::kPrepare;
  attempt.command = job.prepared ? "run" : "prepare";
  attempt.start_time = now_;
  if (job.prepared && !entry.checkpoints.empty()) {
    const auto newest = std::max_element(entry.checkpoints.begin(), entry.checkpoints.end(),
                                         // Of one step, the later attempt's: it came there again for a reason.
                                         [](const Checkpoint& a, const Checkpoint& b) {
                                           return std::tie(a.step, a.attempt) < std::tie(b.step, b.attempt);
                                         });
    attempt.resumed_from = newest->name;
    attempt.manifest_sha256 = newest->manifest_sha256;
  }
  std::string where;
  for (size_t i = 0; i < placements.size(); ++i) {
    WorkerEntry& worker = workers_.at(placements[i].worker_id);
    Rank rank;
    rank.rank = static_cast<int64_t>(i);
    rank.worker_id = worker.worker.id;
    rank.slot = placements[i].slot;
    rank.incarnation_id = worker.worker.incarnation_id;
    worker.ranks.emplace(job.id, attempt.number, rank.rank);
    if (rank.slot >= 0) SlotsHeldChange(job, 1);
    ++worker.worker.placements;
    Touch(worker);
    if (i == 0 || attempt.ranks.back().worker_id != rank.worker_id) {
      if (where.size() < 200) where += (i == 0 ? "" : ", ") + rank.worker_id.value();
    }
    attempt.ranks.push_back(std::move(rank));
  }
  busy_.insert(job.id);
  ++counters_.attempts_started;
  entry.watch = {};
  job.phase = attempt.phase;
  const Attempt& stored = entry.attempts.emplace(attempt.number, std::move(attempt)).first->second;
  started_attempts_.emplace(job.id, stored.number);
  DesiredChanged(stored);
  MoveTo(entry, JobState::kStarting, "ATTEMPT_STARTED",
         fmt::format("attempt {} ({}): {} rank{} on {}{}", stored.number, stored.command, stored.ranks.size(),
                     stored.ranks.size() == 1 ? "" : "s", where,
                     stored.resumed_from.empty() ? "" : ", from checkpoint " + stored.resumed_from));
}

void Core::State::MarkRunning(JobEntry& entry, Attempt& attempt) {
  if (entry.job.state != JobState::kStarting) return;
  for (const Rank& rank : attempt.ranks) {
    if (rank.state != RankState::kRunning && rank.state != RankState::kStopping && !EndedWell(rank)) return;
  }
  entry.watch.last_progress = now_;
  Touch(entry);
  if (entry.job.start_time == kNever) entry.job.start_time = now_;
  MoveTo(entry, JobState::kRunning, "ATTEMPT_RUNNING", fmt::format("attempt {}: every rank is up", attempt.number));
}

void Core::State::EndAttempt(JobEntry& entry, Attempt& attempt) {
  CHECK(IsLive(attempt));
  attempt.end_time = now_;
  Touch(attempt);
  DesiredChanged(attempt);
}

void Core::State::ReleaseRank(JobEntry& entry, Attempt& attempt, Rank& rank) {
  if (rank.released) return;
  rank.released = true;
  Touch(attempt);
  CHECK_EQ(workers_.at(rank.worker_id).ranks.erase({attempt.job_id, attempt.number, rank.rank}), 1u);
  DesiredChanged(rank.worker_id);
  if (rank.slot >= 0) SlotsHeldChange(entry.job, -1);
  pass_due_ = true;
}

void Core::State::Settle(JobEntry& entry) {
  Attempt* attempt = NewestAttempt(entry);
  if (attempt != nullptr && (IsLive(*attempt) || HasUnreleasedRanks(entry))) return;
  busy_.erase(entry.job.id);
  switch (entry.job.state) {
    case JobState::kCancelling:
      return MoveTo(entry, JobState::kCancelled, "CANCELLED", "its ranks have stopped");
    case JobState::kPausing:
      return MoveTo(entry, JobState::kPaused, "PAUSED", "its ranks have stopped");
    case JobState::kPreempting:
      return Requeue(entry);
    case JobState::kQueued:
    case JobState::kStarting:
    case JobState::kRunning:
    case JobState::kRecovering:
    case JobState::kPaused:
    case JobState::kSucceeded:
    case JobState::kFailed:
    case JobState::kCancelled:
      return;
  }
}

// After it gave its slots back on request: the request says why.
void Core::State::Requeue(JobEntry& entry) {
  if (entry.job.reason == kResizeRequested) {
    return MoveTo(entry, JobState::kQueued, "RESIZING", "waits to go on with another number of slots");
  }
  if (entry.job.reason == kMoveRequested) {
    return MoveTo(entry, JobState::kQueued, "MOVING", "waits for slots on other workers");
  }
  MoveTo(entry, JobState::kQueued, "PREEMPTED", "gave its slots to a job of higher priority");
}

void Core::State::FinishAttemptWell(JobEntry& entry, Attempt& attempt) {
  MarkRunning(entry, attempt);  // short attempts may end before they were seen running
  EndAttempt(entry, attempt);
  Touch(entry);
  entry.job.stalled_attempts = 0;
  if (attempt.command == "prepare") {
    entry.job.prepared = true;
    if (entry.job.state == JobState::kRunning) {
      busy_.erase(entry.job.id);
      return MoveTo(entry, JobState::kQueued, "DATA_PREPARED", "its data is prepared; waits for slots");
    }
  } else if (entry.job.state != JobState::kCancelling) {
    busy_.erase(entry.job.id);
    return MoveTo(entry, JobState::kSucceeded, "SUCCEEDED", fmt::format("attempt {} finished", attempt.number));
  }
  Settle(entry);
}

Core::State::Cause Core::State::CauseOf(const Rank& rank) {
  Cause cause;
  cause.failure_class = ClassOfExit(rank);
  cause.worker_id = rank.worker_id;
  cause.time = rank.exit_time;
  cause.crashed = Crashed(rank);
  std::string how = rank.signal != 0 ? fmt::format("was ended by signal {}", rank.signal)
                                     : fmt::format("ended with exit code {}", rank.exit_code);
  cause.message = fmt::format("rank {} on {} {}", rank.rank, rank.worker_id, how);
  if (!rank.message.empty()) cause.message += ": " + rank.message;
  if (!rank.log_tail.empty()) cause.message += "\nThe last lines of its log:\n" + rank.log_tail;
  return cause;
}

void Core::State::OnRankExit(JobEntry& entry, Attempt& attempt, Rank& rank) {
  const bool all_exited =
      std::all_of(attempt.ranks.begin(), attempt.ranks.end(), [](const Rank& r) { return r.exited; });
  if (EndedWell(rank) || StoppedOnRequest(rank)) {
    if (StoppedOnRequest(rank) && attempt.stop_time == kNever) {
      Cause cause = CauseOf(rank);
      cause.message = fmt::format("rank {} on {} stopped without being asked by the server", rank.rank, rank.worker_id);
      cause.failure_class = FailureClass::kInfrastructure;
      cause.counts = false;
      return FailAttempt(entry, attempt, cause);
    }
    if (!all_exited) return MarkRunning(entry, attempt);
    if (std::all_of(attempt.ranks.begin(), attempt.ranks.end(), EndedWell)) return FinishAttemptWell(entry, attempt);
    EndAttempt(entry, attempt);
    return Settle(entry);
  }
  FailAttempt(entry, attempt, CauseOf(rank));
}

void Core::State::FailAttempt(JobEntry& entry, Attempt& attempt, const Cause& cause) {
  EndAttempt(entry, attempt);
  attempt.failure_class = cause.failure_class;
  attempt.message = cause.message;
  attempt.cause_worker = cause.worker_id;
  attempt.cause_time = cause.time;
  ++counters_.attempts_failed[static_cast<int>(cause.failure_class)];
  switch (entry.job.state) {
    case JobState::kStarting:
    case JobState::kRunning:
      RetryOrFail(entry, attempt, cause);
      break;
    case JobState::kPreempting:
    case JobState::kPausing:
      if (IsFinal(cause.failure_class)) FailJob(entry, Name(cause.failure_class), attempt.message);
      break;
    case JobState::kCancelling:
      break;
    case JobState::kQueued:
    case JobState::kRecovering:
    case JobState::kPaused:
    case JobState::kSucceeded:
    case JobState::kFailed:
    case JobState::kCancelled:
      CHECK(false) << entry.job.id << " has a live attempt in " << Name(entry.job.state);
  }
  Settle(entry);
}

void Core::State::RetryOrFail(JobEntry& entry, Attempt& attempt, const Cause& cause) {
  Job& job = entry.job;
  Touch(entry);
  if (IsFinal(cause.failure_class)) return FailJob(entry, Name(cause.failure_class), cause.message);
  if (cause.counts) {
    ++job.failed_attempts;
    if (attempt.progressed) {
      job.stalled_attempts = 0;
    } else if (cause.stalls) {
      ++job.stalled_attempts;
    }
  }
  if (job.stalled_attempts >= options_.stalled_attempts_max) {
    attempt.failure_class = FailureClass::kNoProgress;
    return FailJob(entry, Name(FailureClass::kNoProgress),
                   fmt::format("{} attempts in a row ended without a new step; the last: {}", job.stalled_attempts,
                               cause.message));
  }
  if (job.failed_attempts >= job.max_attempts) {
    return FailJob(entry, "ATTEMPTS_EXHAUSTED",
                   fmt::format("{} attempts failed, and limits.max_attempts is {}; the last: {}", job.failed_attempts,
                               job.max_attempts, cause.message));
  }
  const double exponent = static_cast<double>(std::max<int64_t>(0, job.stalled_attempts - 1));
  job.retry_time = now_ + std::min(options_.backoff_max, options_.backoff_first * std::exp2(std::min(exponent, 20.0)));
  MoveTo(entry, JobState::kRecovering, "ATTEMPT_FAILED", fmt::format("attempt {}: {}", attempt.number, cause.message));
}

void Core::State::FailJob(JobEntry& entry, std::string reason, std::string message) {
  MoveTo(entry, JobState::kFailed, std::move(reason), std::move(message));
}

bool Core::State::IsBetter(const Cause& cause, const Attempt& attempt) {
  if (IsFinal(cause.failure_class) != IsFinal(attempt.failure_class)) return IsFinal(cause.failure_class);
  const auto known = std::find_if(attempt.ranks.begin(), attempt.ranks.end(), [&](const Rank& rank) {
    return rank.exited && rank.worker_id == attempt.cause_worker && rank.exit_time == attempt.cause_time;
  });
  const bool at_once = absl::AbsDuration(cause.time - attempt.cause_time) < kAtOnce;
  if (known != attempt.ranks.end() && at_once && cause.crashed != Crashed(*known)) return cause.crashed;
  return cause.time < attempt.cause_time;
}

void Core::State::LearnLateCause(JobEntry& entry, Attempt& attempt, const Cause& cause) {
  if (attempt.failure_class == FailureClass::kUnspecified) return;  // did not fail: it was stopped
  if (!IsBetter(cause, attempt)) return;
  attempt.failure_class = cause.failure_class;
  attempt.message = cause.message;
  attempt.cause_worker = cause.worker_id;
  attempt.cause_time = cause.time;
  Touch(attempt);
  if (entry.job.state != JobState::kRecovering) return;
  if (IsFinal(cause.failure_class)) return FailJob(entry, Name(cause.failure_class), cause.message);
  Touch(entry);
  entry.job.message = fmt::format("attempt {}: {}", attempt.number, cause.message);
  AddEvent(entry, "CAUSE_FOUND", entry.job.message);
}

}  // namespace longspan::core
