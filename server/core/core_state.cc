#include "server/core/core_state.h"

#include <iterator>

#include "proto/support/check.h"

namespace longspan::core {
namespace {

template <typename T>
void AppendTo(std::vector<T>& to, std::vector<T>&& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

bool Transaction::empty() const {
  return jobs.empty() && attempts.empty() && events.empty() && samples.empty() && checkpoints.empty() &&
         evaluations.empty() && artifacts.empty() && workers.empty() && queues.empty() && deleted_jobs.empty();
}

void Transaction::Append(Transaction&& later) {
  AppendTo(jobs, std::move(later.jobs));
  AppendTo(attempts, std::move(later.attempts));
  AppendTo(events, std::move(later.events));
  AppendTo(samples, std::move(later.samples));
  AppendTo(checkpoints, std::move(later.checkpoints));
  AppendTo(evaluations, std::move(later.evaluations));
  AppendTo(artifacts, std::move(later.artifacts));
  AppendTo(workers, std::move(later.workers));
  AppendTo(queues, std::move(later.queues));
  AppendTo(deleted_jobs, std::move(later.deleted_jobs));
}

Core::State::State(CoreOptions options)
    : options_([&] {
        options.scheduler.stop_time = options.checkpoint_grace;
        return std::move(options);
      }()) {
  CHECK(options_.slot_reuse_after > options_.lease) << "slots may be reused only after the lease has run out";
  CHECK(options_.restart_grace >= options_.slot_reuse_after) << "a restart must not shorten a lease";
  CHECK(options_.scheduler.reservation > options_.scheduler.stop_time)
      << "slots are kept longer than others take to stop";
}

Effects Core::State::Step(const Event& event, absl::Time now) {
  CHECK(std::holds_alternative<Restarted>(event) != started_) << "Restarted comes first, and once";
  CHECK(!started_ || now >= now_) << "time went back";
  now_ = now;
  started_ = true;
  std::visit([this](const auto& e) { On(e); }, event);
  LowerDeadline();
  return TakeEffects();
}

void Core::State::Touch(JobEntry& entry) {
  const auto [it, first] = touched_jobs_.try_emplace(entry.job.id, Before{entry.job.version, entry.job.state});
  if (first) ++entry.job.version;
  changed_jobs_.insert(entry.job.id);
}
void Core::State::Touch(const Attempt& attempt) { touched_attempts_[{attempt.job_id, attempt.number}] = true; }
void Core::State::TouchRow(const Attempt& attempt) {
  touched_attempts_.try_emplace({attempt.job_id, attempt.number}, false);
}
void Core::State::Touch(const WorkerEntry& entry) { touched_workers_.insert(entry.worker.id); }

void Core::State::DesiredChanged(const WorkerId& worker_id) {
  workers_.at(worker_id).fingerprint.reset();
  changed_workers_.insert(worker_id);
}
void Core::State::DesiredChanged(const Attempt& attempt) {
  for (const Rank& rank : attempt.ranks) DesiredChanged(rank.worker_id);
}

void Core::State::AddEvent(JobEntry& entry, std::string reason, std::string message) {
  Touch(entry);
  JobEvent event;
  event.sequence = ++entry.job.last_event;
  event.time = now_;
  event.state = entry.job.state;
  event.reason = std::move(reason);
  event.message = std::move(message);
  event.attempt = entry.job.attempt;
  effects_.transaction.events.push_back({entry.job.id, std::move(event)});
}

void Core::State::MoveTo(JobEntry& entry, JobState to, std::string reason, std::string message) {
  Job& job = entry.job;
  CHECK(IsAllowed(job.state, to)) << job.id << " from " << Name(job.state) << " to " << Name(to);
  Touch(entry);
  ++counters_.transitions[static_cast<int>(job.state)][static_cast<int>(to)];
  if (job.state == JobState::kRunning) {
    job.run_time += now_ - job.running_since;
    job.running_since = kNever;
  }
  QueueOf(job).waiting += static_cast<int64_t>(IsWaiting(to)) - static_cast<int64_t>(IsWaiting(job.state));
  job.state = to;
  if (!IsWaiting(to) && to != JobState::kPreempting) {
    job.reserved.clear();
    job.reserved_until = absl::InfinitePast();
  }
  if (to == JobState::kRunning) job.running_since = now_;
  if (IsTerminal(to)) {
    job.end_time = now_;
    finished_.emplace(now_, job.id);
  }
  job.reason = reason;
  job.message = message;
  if (IsWaiting(to) || to == JobState::kPaused || IsTerminal(to)) job.phase = Phase::kUnspecified;
  entry.wait = {};
  entry.announced_wait.clear();
  if (IsWaiting(to)) {
    waiting_.insert(job.id);
  } else {
    waiting_.erase(job.id);
  }
  pass_due_ = true;
  AddEvent(entry, std::move(reason), std::move(message));
}

Effects Core::State::TakeEffects() {
  Transaction& transaction = effects_.transaction;
  for (const auto& [job_id, before] : touched_jobs_) {
    transaction.jobs.push_back({jobs_.at(job_id).job, before.version, before.state});
  }
  for (const auto& key : started_attempts_) touched_attempts_.erase(key);
  for (const auto& [key, ranks_changed] : touched_attempts_) {
    transaction.attempts.emplace_back(jobs_.at(key.first).attempts.at(key.second), ranks_changed);
  }
  for (const auto& [job_id, number] : started_attempts_) {
    transaction.attempts.push_back(jobs_.at(job_id).attempts.at(number));
  }
  for (const WorkerId& worker_id : touched_workers_) transaction.workers.push_back(workers_.at(worker_id).worker);
  for (const std::string& name : touched_queues_) transaction.queues.push_back(queues_.at(name).queue);
  effects_.changed_workers.assign(changed_workers_.begin(), changed_workers_.end());
  effects_.changed_jobs.assign(changed_jobs_.begin(), changed_jobs_.end());
  effects_.tick_soon = pass_due_;
  touched_jobs_.clear();
  touched_attempts_.clear();
  started_attempts_.clear();
  touched_workers_.clear();
  touched_queues_.clear();
  changed_workers_.clear();
  changed_jobs_.clear();
  return std::exchange(effects_, {});
}

}  // namespace longspan::core
