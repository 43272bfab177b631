// What happens because time passes: leases, deadlines, backoff. And the start from the store.
#include <fmt/format.h>

#include <algorithm>

#include "proto/support/check.h"
#include "server/core/core_state.h"

namespace longspan::core {
namespace {

constexpr int kForgottenMax = 100;          // jobs in one step
constexpr int64_t kAttemptsLostMax = 1000;  // that a job may have begun after a backup

}  // namespace

// Every worker gets a fresh grace: its ranks are adopted when it reports, and lost when it does not. Nothing is killed
// and no attempt number is used up.
void Core::State::On(const Restarted& event) {
  restart_time_ = now_;
  for (const Worker& worker : event.state.workers) {
    WorkerEntry& entry = workers_[worker.id];
    entry.worker = worker;
    entry.worker.up = false;
    entry.worker.sequence = 0;
    entry.worker.lease_end = now_ + options_.restart_grace;
    entry.worker.release_time = now_ + options_.restart_grace;
  }
  for (const Queue& queue : event.state.queues) queues_[queue.name].queue = queue;
  for (const StoredState::JobRows& rows : event.state.jobs) {
    JobEntry& entry = jobs_[rows.job.id];
    entry.job = rows.job;
    entry.checkpoints = rows.checkpoints;
    entry.evaluations = rows.evaluations;
    entry.artifacts = rows.artifacts;
    entry.progress = rows.newest_sample;
    entry.watch.last_progress = now_;
    for (const Attempt& attempt : rows.attempts) {
      bool busy = IsLive(attempt);
      for (const Rank& rank : attempt.ranks) {
        if (rank.released) continue;
        busy = true;
        workers_.at(rank.worker_id).ranks.emplace(rows.job.id, attempt.number, rank.rank);
        if (rank.slot >= 0) ++QueueOf(rows.job).slots_held;
      }
      if (busy) busy_.insert(rows.job.id);
      entry.attempts.emplace(attempt.number, attempt);
    }
    IndexJob(entry);
  }
  if (event.from_backup) {
    for (auto& [job_id, entry] : jobs_) {
      if (!IsTerminal(entry.job.state)) GiveUpAttempt(entry);
    }
  }
  pass_due_ = true;
  FindDeadline();
}

void Core::State::GiveUpAttempt(JobEntry& entry) {
  Touch(entry);
  Attempt* attempt = NewestAttempt(entry);
  if (attempt != nullptr && IsLive(*attempt)) {
    Cause cause;
    cause.message = "the database was restored from a backup";
    cause.time = now_;
    cause.counts = false;
    FailAttempt(entry, *attempt, cause);
  }
  entry.job.attempt += kAttemptsLostMax;
}

void Core::State::On(const Tick& event) {
  ExpireLeases();
  const std::set<JobId> busy = busy_;
  for (const JobId& job_id : busy) CheckDeadlines(jobs_.at(job_id));
  CheckBackoffs();
  ForgetFinished();
  if (WantsPasses() && now_ - last_pass_ >= options_.schedule_interval) pass_due_ = true;
  if (pass_due_) RunScheduler();
  FindDeadline();
}

void Core::State::ExpireLeases() {
  for (auto& [worker_id, entry] : workers_) {
    Worker& worker = entry.worker;
    if (now_ >= worker.lease_end) {
      worker.lease_end = kNever;
      if (worker.up) pass_due_ = true;
      worker.up = false;
      Touch(entry);
      const std::set<RankKey> held = entry.ranks;
      for (const auto& [job_id, number, rank_number] : held) {
        JobEntry& job = jobs_.at(job_id);
        Attempt& attempt = job.attempts.at(number);
        if (!IsLive(attempt)) continue;
        Cause cause;
        cause.message = fmt::format("rank {} was lost: worker {} has not reported for {:.0f} s", rank_number, worker_id,
                                    absl::ToDoubleSeconds(now_ - std::max(worker.last_seen, restart_time_)));
        cause.worker_id = worker_id;
        cause.time = now_;
        cause.stalls = false;
        FailAttempt(job, attempt, cause);
      }
    }
    if (now_ >= worker.release_time) {
      worker.release_time = kNever;
      const std::set<RankKey> held = entry.ranks;
      for (const auto& [job_id, number, rank_number] : held) {
        JobEntry& job = jobs_.at(job_id);
        Attempt& attempt = job.attempts.at(number);
        ReleaseRank(job, attempt, attempt.ranks.at(rank_number));
        Settle(job);
      }
    }
  }
}

absl::Time Core::State::StartDeadline(const Attempt& attempt) const {
  return std::max(attempt.start_time, restart_time_) + options_.start_deadline;
}

absl::Time Core::State::StopDeadline(const JobEntry& entry, const Attempt& attempt) const {
  if (attempt.stop_time == kNever) return kNever;
  const bool cancelling = entry.job.state == JobState::kCancelling;
  return std::max(attempt.stop_time, restart_time_) + (cancelling ? options_.kill_grace : options_.checkpoint_grace);
}

absl::Time Core::State::RunTimeDeadline(const Job& job) const {
  if (job.state != JobState::kRunning) return kNever;
  return job.running_since + std::max(absl::ZeroDuration(), job.max_run_time - job.run_time);
}

void Core::State::CheckDeadlines(JobEntry& entry) {
  Attempt& attempt = *NewestAttempt(entry);
  if (!IsLive(attempt)) return;
  if (now_ >= RunTimeDeadline(entry.job)) {
    EndAttempt(entry, attempt);
    attempt.failure_class = FailureClass::kUser;
    attempt.message =
        fmt::format("the job has run for limits.max_run_time, {}", absl::FormatDuration(entry.job.max_run_time));
    return FailJob(entry, "RUN_TIME_EXCEEDED", attempt.message);
  }
  if (now_ >= StopDeadline(entry, attempt)) {
    EndAttempt(entry, attempt);
    attempt.message = "did not stop within its grace and was killed";
    AddEvent(entry, "STOP_OVERDUE", fmt::format("attempt {} {}", attempt.number, attempt.message));
    return Settle(entry);
  }
  if (entry.job.state == JobState::kStarting && now_ >= StartDeadline(attempt)) {
    const auto late = std::find_if(attempt.ranks.begin(), attempt.ranks.end(),
                                   [](const Rank& rank) { return rank.state < RankState::kRunning; });
    CHECK(late != attempt.ranks.end());
    Cause cause;
    cause.message = fmt::format("rank {} on {} was not up within {}", late->rank, late->worker_id,
                                absl::FormatDuration(options_.start_deadline));
    cause.worker_id = late->worker_id;
    cause.time = now_;
    FailAttempt(entry, attempt, cause);
  }
}

void Core::State::CheckBackoffs() {
  for (const JobId& job_id : waiting_) {
    const absl::Time retry_time = jobs_.at(job_id).job.retry_time;
    if (retry_time > last_pass_ && retry_time <= now_) pass_due_ = true;
  }
}

absl::Time Core::State::ForgetTime() const {
  if (finished_.empty()) return kNever;
  const bool too_many = static_cast<int64_t>(finished_.size()) > options_.keep_finished_max;
  return too_many ? now_ : finished_.begin()->first + options_.keep_finished;
}

// The oldest first, a few in a step, so that no commit becomes long. One whose ranks linger keeps those behind it.
void Core::State::ForgetFinished() {
  for (int i = 0; i < kForgottenMax && ForgetTime() <= now_; ++i) {
    const JobId job_id = finished_.begin()->second;
    if (HasUnreleasedRanks(jobs_.at(job_id)) || touched_jobs_.contains(job_id)) return;
    Forget(job_id);
  }
}

absl::Time Core::State::DeadlineOf(const JobEntry& entry) const {
  absl::Time next = kNever;
  if (busy_.contains(entry.job.id)) {
    const Attempt& attempt = entry.attempts.rbegin()->second;
    if (IsLive(attempt)) {
      next = std::min(RunTimeDeadline(entry.job), StopDeadline(entry, attempt));
      if (entry.job.state == JobState::kStarting) next = std::min(next, StartDeadline(attempt));
    }
  }
  if (waiting_.contains(entry.job.id) && entry.job.retry_time > last_pass_) next = std::min(next, entry.job.retry_time);
  return next;
}

void Core::State::FindDeadline() {
  deadline_ = kNever;
  elastic_busy_ = false;
  for (const auto& [worker_id, entry] : workers_) deadline_ = std::min(deadline_, DeadlineOf(entry.worker));
  for (const JobId& job_id : waiting_) deadline_ = std::min(deadline_, DeadlineOf(jobs_.at(job_id)));
  for (const JobId& job_id : busy_) {
    const JobEntry& entry = jobs_.at(job_id);
    deadline_ = std::min(deadline_, DeadlineOf(entry));
    elastic_busy_ = elastic_busy_ || IsElastic(entry);
  }
}

void Core::State::LowerDeadline() {
  const auto lower = [this](const JobId& job_id) {
    const auto found = jobs_.find(job_id);
    if (found == jobs_.end()) return;
    deadline_ = std::min(deadline_, DeadlineOf(found->second));
    elastic_busy_ = elastic_busy_ || IsElastic(found->second);
  };
  for (const auto& [job_id, before] : touched_jobs_) lower(job_id);
  for (const auto& [key, ranks_changed] : touched_attempts_) lower(key.first);
}

absl::Time Core::State::NextDeadline() const {
  if (pass_due_) return now_;
  const absl::Time pass = !waiting_.empty() || elastic_busy_ ? last_pass_ + options_.schedule_interval : kNever;
  return std::min({deadline_, ForgetTime(), pass});
}

}  // namespace longspan::core
