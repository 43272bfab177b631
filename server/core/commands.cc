// What users and operators ask for.
#include <fmt/format.h>

#include "proto/support/check.h"
#include "server/core/core_state.h"

namespace longspan::core {

void Core::State::IndexJob(JobEntry& entry) {
  entry.order = submissions_++;
  submission_order_.emplace(entry.order, entry.job.id);
  by_request_[entry.job.request_id] = entry.job.id;
  if (IsTerminal(entry.job.state)) finished_.emplace(entry.job.end_time, entry.job.id);
  if (!IsWaiting(entry.job.state)) return;
  waiting_.insert(entry.job.id);
  ++QueueOf(entry.job).waiting;
}

void Core::State::On(const JobSubmitted& event) {
  SubmitReply reply;
  if (event.job.request_id.empty()) {
    reply.status = absl::InvalidArgumentError("request_id is empty; choose one, so that a retry is safe");
  } else if (const auto known = by_request_.find(event.job.request_id); known != by_request_.end()) {
    reply.job_id = known->second;
    reply.already_submitted = true;
    if (jobs_.at(known->second).job.content_hash != event.job.content_hash) {
      reply.status = absl::AlreadyExistsError(fmt::format(
          "request id {} was used for {} with another content; choose a new one", event.job.request_id, known->second));
    }
  } else if (const QueueEntry& queue = QueueOf(event.job);
             queue.queue.waiting_max > 0 && queue.waiting >= queue.queue.waiting_max) {
    reply.status = absl::ResourceExhaustedError(fmt::format(
        "queue {} has {} waiting jobs, as many as it may; submit to another queue, or when some have started",
        event.job.queue, queue.waiting));
  } else {
    const auto [it, inserted] = jobs_.try_emplace(event.job.id);
    CHECK(inserted && !event.job.id.empty()) << "job id " << event.job.id << " is not fresh";
    JobEntry& entry = it->second;
    entry.job = event.job;
    Job& job = entry.job;
    job.folder = options_.jobs_folder + "/" + job.id.value();
    job.submit_time = now_;
    job.state = JobState::kQueued;
    job.version = 0;
    IndexJob(entry);
    ++counters_.transitions[0][static_cast<int>(JobState::kQueued)];
    job.reason = "SUBMITTED";
    job.message = "waits for a worker to prepare its data";
    AddEvent(entry, "JOB_SUBMITTED",
             fmt::format("{} was submitted to queue {} with priority {}", job.name, job.queue, job.priority));
    pass_due_ = true;
    reply.job_id = job.id;
  }
  effects_.reply = std::move(reply);
}

Core::State::JobEntry* Core::State::FindJobOrReply(const JobId& job_id) {
  const auto it = jobs_.find(job_id);
  if (it != jobs_.end()) {
    effects_.reply = CommandReply{};
    return &it->second;
  }
  effects_.reply = CommandReply{absl::NotFoundError(fmt::format("there is no job {}", job_id))};
  return nullptr;
}

void Core::State::AskToStop(JobEntry& entry, JobState to, std::string reason, std::string message) {
  Attempt* attempt = NewestAttempt(entry);
  const bool was_starting = entry.job.state == JobState::kStarting;
  if (attempt != nullptr && IsLive(*attempt)) {
    attempt->stop_time = now_;
    Touch(*attempt);
    DesiredChanged(*attempt);
  }
  MoveTo(entry, to, std::move(reason), std::move(message));
  // Before every rank is up there is nothing to save.
  if (was_starting) EndAttempt(entry, *attempt);
  Settle(entry);
}

void Core::State::On(const CancelRequested& event) {
  JobEntry* entry = FindJobOrReply(event.job_id);
  if (entry == nullptr) return;
  switch (entry->job.state) {
    case JobState::kQueued:
    case JobState::kPaused:
      return MoveTo(*entry, JobState::kCancelled, "CANCELLED", "cancelled while it waited");
    case JobState::kStarting:
    case JobState::kRunning:
    case JobState::kPreempting:
    case JobState::kPausing:
    case JobState::kRecovering:
      if (entry->job.state == JobState::kRecovering && !HasUnreleasedRanks(*entry)) {
        return MoveTo(*entry, JobState::kCancelled, "CANCELLED", "cancelled while it waited");
      }
      return AskToStop(*entry, JobState::kCancelling, "CANCEL_REQUESTED", "its ranks are stopping");
    case JobState::kCancelling:
    case JobState::kCancelled:
      return;
    case JobState::kSucceeded:
    case JobState::kFailed:
      effects_.reply = CommandReply{absl::FailedPreconditionError(
          fmt::format("{} is {} already; there is nothing to cancel", event.job_id, Name(entry->job.state)))};
      return;
  }
}

void Core::State::On(const PauseRequested& event) {
  JobEntry* entry = FindJobOrReply(event.job_id);
  if (entry == nullptr) return;
  switch (entry->job.state) {
    case JobState::kQueued:
      return MoveTo(*entry, JobState::kPaused, "PAUSED", "paused while it waited");
    case JobState::kStarting:
    case JobState::kRunning:
    case JobState::kPreempting:
    case JobState::kRecovering:
      if (entry->job.state == JobState::kRecovering && !HasUnreleasedRanks(*entry)) {
        return MoveTo(*entry, JobState::kPaused, "PAUSED", "paused while it waited");
      }
      return AskToStop(*entry, JobState::kPausing, "PAUSE_REQUESTED", "its ranks save a checkpoint and stop");
    case JobState::kPausing:
    case JobState::kPaused:
      return;
    case JobState::kCancelling:
    case JobState::kSucceeded:
    case JobState::kFailed:
    case JobState::kCancelled:
      effects_.reply = CommandReply{absl::FailedPreconditionError(
          fmt::format("{} is {}; it cannot be paused", event.job_id, Name(entry->job.state)))};
      return;
  }
}

void Core::State::On(const ResumeRequested& event) {
  JobEntry* entry = FindJobOrReply(event.job_id);
  if (entry == nullptr) return;
  switch (entry->job.state) {
    case JobState::kPaused:
      return MoveTo(*entry, JobState::kQueued, "RESUMED", "waits for slots");
    case JobState::kQueued:
    case JobState::kStarting:
    case JobState::kRunning:
    case JobState::kRecovering:
      return;
    case JobState::kPreempting:
    case JobState::kPausing:
    case JobState::kCancelling:
    case JobState::kSucceeded:
    case JobState::kFailed:
    case JobState::kCancelled:
      effects_.reply = CommandReply{absl::FailedPreconditionError(
          fmt::format("{} is {}; only a paused job can be resumed", event.job_id, Name(entry->job.state)))};
      return;
  }
}

void Core::State::SetDraining(const WorkerId& worker_id, bool draining) {
  const auto it = workers_.find(worker_id);
  if (it == workers_.end()) {
    effects_.reply = CommandReply{absl::NotFoundError(fmt::format("there is no worker {}", worker_id))};
    return;
  }
  effects_.reply = CommandReply{};
  if (it->second.worker.draining == draining) return;
  it->second.worker.draining = draining;
  Touch(it->second);
  pass_due_ = true;
}

void Core::State::MoveRanksAway(const WorkerEntry& entry) {
  std::set<JobId> jobs;
  for (const auto& [job_id, number, rank] : entry.ranks) jobs.insert(job_id);
  for (const JobId& job_id : jobs) {
    JobEntry& job = jobs_.at(job_id);
    if (job.job.state != JobState::kStarting && job.job.state != JobState::kRunning) continue;
    AskToStop(job, JobState::kPreempting, kMoveRequested,
              fmt::format("worker {} is drained; its ranks save a checkpoint and go on elsewhere", entry.worker.id));
  }
}

void Core::State::On(const UpdateRequested& event) {
  JobEntry* entry = FindJobOrReply(event.job_id);
  if (entry == nullptr) return;
  Job& job = entry->job;
  if (!IsWaiting(job.state)) {
    effects_.reply = CommandReply{absl::FailedPreconditionError(
        fmt::format("{} is {}; only a waiting job can be changed", event.job_id, Name(job.state)))};
    return;
  }
  std::map<std::string, std::string> labels = job.labels;
  for (const auto& [key, value] : event.labels) {
    if (value.empty()) {
      labels.erase(key);
    } else {
      labels[key] = value;
    }
  }
  if (labels.size() > kLabelsMax) {
    effects_.reply = CommandReply{absl::InvalidArgumentError(
        fmt::format("{} would have {} labels; a job may have {}", event.job_id, labels.size(), kLabelsMax))};
    return;
  }
  const bool changes_priority = event.priority && *event.priority != job.priority;
  if (!changes_priority && labels == job.labels) return;
  Touch(*entry);
  changed_jobs_.insert(job.id);
  job.labels = std::move(labels);
  if (changes_priority) {
    const int64_t before = std::exchange(job.priority, *event.priority);
    AddEvent(*entry, "PRIORITY_CHANGED", fmt::format("priority {} instead of {}", job.priority, before));
    pass_due_ = true;
  }
}

void Core::State::On(const DeleteRequested& event) {
  JobEntry* entry = FindJobOrReply(event.job_id);
  if (entry == nullptr) return;
  if (IsTerminal(entry->job.state) && !HasUnreleasedRanks(*entry)) return Forget(event.job_id);
  effects_.reply = CommandReply{absl::FailedPreconditionError(
      IsTerminal(entry->job.state)
          ? fmt::format("{} has ended, but its ranks have not all stopped; try again in a moment", event.job_id)
          : fmt::format("{} is {}; cancel it first, only a job that has ended can be deleted", event.job_id,
                        Name(entry->job.state)))};
}

void Core::State::Forget(const JobId& job_id) {
  const auto it = jobs_.find(job_id);
  const Job& job = it->second.job;
  finished_.erase({job.end_time, job_id});
  by_request_.erase(job.request_id);
  submission_order_.erase(it->second.order);
  effects_.transaction.deleted_jobs.push_back(job_id);
  changed_jobs_.insert(job_id);
  jobs_.erase(it);
}

void Core::State::On(const DrainRequested& event) {
  SetDraining(event.worker_id, true);
  if (const auto it = workers_.find(event.worker_id); event.move && it != workers_.end()) MoveRanksAway(it->second);
}
void Core::State::On(const UndrainRequested& event) { SetDraining(event.worker_id, false); }

}  // namespace longspan::core
