// What happens because time passes: leases, deadlines, backoff, the scheduler's pass. And the start from the store.
#include <fmt/format.h>

#include <algorithm>

#include "proto/support/check.h"
#include "server/core/core_state.h"

namespace longspan::core {

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
      }
      if (busy) busy_.insert(rows.job.id);
      entry.attempts.emplace(attempt.number, attempt);
    }
    IndexJob(entry);
  }
  pass_due_ = true;
}

void Core::State::On(const Tick& event) {
  ExpireLeases();
  const std::set<JobId> busy = busy_;
  for (const JobId& job_id : busy) CheckDeadlines(jobs_.at(job_id));
  CheckBackoffs();
  if (pass_due_) RunScheduler();
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

scheduler::Snapshot Core::State::TakeSnapshot() const {
  scheduler::Snapshot snapshot;
  for (const auto& [worker_id, entry] : workers_) {
    const Worker& worker = entry.worker;
    scheduler::WorkerSlots slots;
    slots.id = worker_id;
    slots.up = worker.up;
    slots.expected = !worker.up && worker.lease_end != kNever;
    slots.draining = worker.draining || worker.leaving;
    slots.slot_count = static_cast<int64_t>(worker.slots.size());
    std::set<int64_t> taken;
    for (const auto& [job_id, number, rank_number] : entry.ranks) {
      const int64_t slot = jobs_.at(job_id).attempts.at(number).ranks.at(rank_number).slot;
      if (slot < 0) {
        ++slots.slotless_ranks;
      } else {
        taken.insert(slot);
      }
    }
    for (const Slot& slot : worker.slots) {
      if (!taken.contains(slot.index)) slots.free_slots.push_back(slot.index);
    }
    std::sort(slots.free_slots.begin(), slots.free_slots.end());
    snapshot.workers.push_back(std::move(slots));
  }
  for (const JobId& job_id : waiting_) {
    const JobEntry& entry = jobs_.at(job_id);
    scheduler::WaitingJob job;
    job.id = job_id;
    job.priority = entry.job.priority;
    job.submit_time = entry.job.submit_time;
    job.slots = entry.job.prepared ? entry.job.slots : 0;
    job.not_before = entry.job.retry_time;
    job.old_ranks_remain = HasUnreleasedRanks(entry);
    for (auto it = entry.attempts.rbegin(); it != entry.attempts.rend(); ++it) {
      const Attempt& attempt = it->second;
      if (attempt.end_time + options_.avoid_worker <= now_) break;
      if (!attempt.cause_worker.empty()) job.avoid.push_back(attempt.cause_worker);
    }
    snapshot.jobs.push_back(std::move(job));
  }
  return snapshot;
}

void Core::State::RunScheduler() {
  pass_due_ = false;
  last_pass_ = now_;
  ++counters_.scheduler_passes;
  const scheduler::Plan plan = scheduler::Schedule(TakeSnapshot(), now_);
  for (const scheduler::Start& start : plan.starts) StartAttempt(jobs_.at(start.job_id), start.ranks);
  for (const scheduler::Wait& wait : plan.waits) RecordWait(wait);
  pass_due_ = false;  // starts take slots; they free none
}

// An event when the reason becomes another one, so that a watcher sees why nothing happens. That no worker is there, or
// that the job waits for itself, is said by the view alone: it is often over in a moment.
void Core::State::RecordWait(const scheduler::Wait& wait) {
  JobEntry& entry = jobs_.at(wait.job_id);
  if (entry.wait.reason != wait.reason || entry.wait.position != wait.position || entry.wait.message != wait.message) {
    changed_jobs_.insert(wait.job_id);
  }
  entry.wait = wait;
  const bool lasting = wait.reason == scheduler::kGangExceedsCluster || wait.reason == scheduler::kGangDoesNotFit ||
                       wait.reason == scheduler::kBehindInQueue;
  if (!lasting || entry.announced_wait == wait.reason) return;
  entry.announced_wait = wait.reason;
  AddEvent(entry, wait.reason, wait.message);
}

absl::Time Core::State::NextDeadline() const {
  if (pass_due_) return now_;
  absl::Time next = kNever;
  for (const auto& [worker_id, entry] : workers_) {
    next = std::min({next, entry.worker.lease_end, entry.worker.release_time});
  }
  for (const JobId& job_id : busy_) {
    const JobEntry& entry = jobs_.at(job_id);
    const Attempt& attempt = entry.attempts.rbegin()->second;
    if (!IsLive(attempt)) continue;
    next = std::min({next, RunTimeDeadline(entry.job), StopDeadline(entry, attempt)});
    if (entry.job.state == JobState::kStarting) next = std::min(next, StartDeadline(attempt));
  }
  for (const JobId& job_id : waiting_) {
    const absl::Time retry_time = jobs_.at(job_id).job.retry_time;
    if (retry_time > last_pass_) next = std::min(next, retry_time);
  }
  return next;
}

}  // namespace longspan::core
