// Views for others, by value.
#include <fmt/format.h>

#include <algorithm>

#include "server/core/core_state.h"

namespace longspan::core {
namespace {

constexpr size_t kAttemptsShownMax = 50;

}  // namespace

Core::Core(CoreOptions options) : state_(std::make_unique<State>(std::move(options))) {}
Core::~Core() = default;

Effects Core::Step(const Event& event, absl::Time now) { return state_->Step(event, now); }
absl::Time Core::NextDeadline() const { return state_->NextDeadline(); }
const Counters& Core::counters() const { return state_->counters_; }

DesiredRanks Core::Desired(const WorkerId& worker_id) const {
  const auto it = state_->workers_.find(worker_id);
  if (it == state_->workers_.end()) return {};
  return state_->Desired(it->second);
}

std::string Core::DesiredFingerprint(const WorkerId& worker_id) const {
  const auto it = state_->workers_.find(worker_id);
  return it == state_->workers_.end() ? std::string() : state_->Fingerprint(it->second);
}

absl::StatusOr<JobId> Core::ResolveJob(const std::string& id_or_name) const {
  if (state_->jobs_.contains(JobId(id_or_name))) return JobId(id_or_name);
  std::vector<JobId> named;
  for (const auto& [order, job_id] : state_->submission_order_) {
    if (state_->jobs_.at(job_id).job.name == id_or_name) named.push_back(job_id);
  }
  if (named.size() == 1) return named.front();
  if (named.empty()) return absl::NotFoundError(fmt::format("there is no job with the id or name {}", id_or_name));
  return absl::FailedPreconditionError(
      fmt::format("{} jobs are named {}, the newest is {}; give an id", named.size(), id_or_name, named.back()));
}

std::map<std::string, int64_t> Core::WaitingByReason() const {
  std::map<std::string, int64_t> counts;
  for (const JobId& job_id : state_->waiting_) {
    const State::JobEntry& entry = state_->jobs_.at(job_id);
    ++counts[entry.wait.position > 0 ? entry.wait.reason : entry.job.reason];
  }
  return counts;
}

namespace {

void DropEndedReservation(absl::Time now, Job& job) {
  if (job.reserved_until > now) return;
  job.reserved.clear();
  job.reserved_until = absl::InfinitePast();
}

// What the scheduler says replaces "waits for slots"; the failure that a job recovers from is kept in front.
void DescribeWait(const scheduler::Wait& wait, JobView& view) {
  if (wait.position == 0 || !IsWaiting(view.job.state)) return;
  view.queue_position = wait.position;
  view.expected_start = wait.expected_start;
  if (view.job.state == JobState::kRecovering) {
    view.job.message = wait.message + "; " + view.job.message;
  } else {
    view.job.message = wait.message;
  }
  view.job.reason = wait.reason;
}

}  // namespace

absl::StatusOr<JobView> Core::ViewJob(const JobId& job_id) const {
  const auto it = state_->jobs_.find(job_id);
  if (it == state_->jobs_.end()) return absl::NotFoundError(fmt::format("there is no job {}", job_id));
  const State::JobEntry& entry = it->second;
  JobView view;
  view.job = entry.job;
  DropEndedReservation(state_->now_, view.job);
  DescribeWait(entry.wait, view);
  view.progress = entry.progress;
  if (!entry.checkpoints.empty()) view.latest_checkpoint = entry.checkpoints.back();
  view.evaluations = entry.evaluations;
  view.artifacts = entry.artifacts;
  for (auto a = entry.attempts.rbegin(); a != entry.attempts.rend() && view.attempts.size() < kAttemptsShownMax; ++a) {
    view.attempts.push_back(a->second);
  }
  std::reverse(view.attempts.begin(), view.attempts.end());
  return view;
}

std::vector<JobView> Core::ListJobs(const JobId& before, size_t limit,
                                    const std::function<bool(const Job&)>& matches) const {
  const auto& order = state_->submission_order_;
  auto end = order.end();
  if (!before.empty()) {
    const auto it = state_->jobs_.find(before);
    end = it == state_->jobs_.end() ? order.begin() : order.find(it->second.order);
  }
  std::vector<JobView> views;
  for (auto i = std::make_reverse_iterator(end); i != order.rend() && views.size() < limit; ++i) {
    const State::JobEntry& entry = state_->jobs_.at(i->second);
    if (!matches(entry.job)) continue;
    JobView view;
    view.job = entry.job;
    DropEndedReservation(state_->now_, view.job);
    DescribeWait(entry.wait, view);
    view.progress = entry.progress;
    if (!entry.checkpoints.empty()) view.latest_checkpoint = entry.checkpoints.back();
    views.push_back(std::move(view));
  }
  return views;
}

absl::StatusOr<std::vector<Checkpoint>> Core::ListCheckpoints(const JobId& job_id) const {
  const auto it = state_->jobs_.find(job_id);
  if (it == state_->jobs_.end()) return absl::NotFoundError(fmt::format("there is no job {}", job_id));
  return std::vector<Checkpoint>(it->second.checkpoints.rbegin(), it->second.checkpoints.rend());
}

std::optional<JobId> Core::FindRequest(const std::string& request_id) const {
  const auto it = state_->by_request_.find(request_id);
  if (it == state_->by_request_.end()) return std::nullopt;
  return it->second;
}

std::optional<WorkerView> Core::ViewWorker(const WorkerId& worker_id) const {
  const auto it = state_->workers_.find(worker_id);
  if (it == state_->workers_.end()) return std::nullopt;
  const State::WorkerEntry& entry = it->second;
  WorkerView view;
  view.worker = entry.worker;
  std::map<int64_t, JobId> holders;
  for (const auto& [job_id, number, rank] : entry.ranks) {
    holders[state_->jobs_.at(job_id).attempts.at(number).ranks.at(rank).slot] = job_id;
  }
  for (const Slot& slot : view.worker.slots) {
    const auto holder = holders.find(slot.index);
    view.slot_jobs.push_back(holder == holders.end() ? JobId() : holder->second);
  }
  return view;
}

std::vector<WorkerView> Core::ListWorkers() const {
  std::vector<WorkerView> views;
  for (const auto& [worker_id, entry] : state_->workers_) views.push_back(*ViewWorker(worker_id));
  return views;
}

std::vector<SlotKind> Core::ListSlotKinds() const {
  std::optional<std::vector<SlotKind>>& kinds = state_->slot_kinds_;
  if (kinds) return *kinds;
  kinds.emplace();
  std::set<std::pair<std::string, int64_t>> seen;
  for (const auto& [worker_id, entry] : state_->workers_) {
    for (const Slot& slot : entry.worker.slots) {
      if (seen.emplace(slot.device, slot.memory_bytes).second) kinds->push_back({worker_id, slot});
    }
  }
  return *kinds;
}

std::array<int64_t, 12> Core::JobsByState() const {
  std::array<int64_t, 12> counts{};
  for (const auto& [job_id, entry] : state_->jobs_) ++counts[static_cast<size_t>(entry.job.state)];
  return counts;
}

}  // namespace longspan::core
