// The scheduler's pass: what it is told, and what its plan changes.
#include <fmt/format.h>

#include <algorithm>

#include "server/core/core_state.h"

namespace longspan::core {
namespace {

// A job that took longer than anybody said needs at least a little longer.
constexpr absl::Duration kRunTimeLeftMin = absl::Minutes(1);

bool HasSlots(const Attempt& attempt) {
  return std::any_of(attempt.ranks.begin(), attempt.ranks.end(),
                     [](const Rank& rank) { return !rank.released && rank.slot >= 0; });
}

int32_t KindOf(const Slot& slot, std::vector<scheduler::SlotKind>& kinds) {
  const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const scheduler::SlotKind& kind) {
    return kind.device == slot.device && kind.memory_bytes == slot.memory_bytes;
  });
  if (same == kinds.end()) {
    kinds.push_back({slot.device, slot.memory_bytes});
    return static_cast<int32_t>(kinds.size()) - 1;
  }
  return static_cast<int32_t>(same - kinds.begin());
}

}  // namespace

// Time alone may change a plan: protection ends, estimates move, a gang has run long enough to grow.
bool Core::State::WantsPasses() const {
  if (!waiting_.empty()) return true;
  return std::any_of(busy_.begin(), busy_.end(), [&](const JobId& job_id) { return IsElastic(jobs_.at(job_id)); });
}

scheduler::WorkerSlots Core::State::SlotsOf(const WorkerEntry& entry, std::vector<scheduler::SlotKind>& kinds) const {
  const Worker& worker = entry.worker;
  scheduler::WorkerSlots slots;
  slots.id = worker.id;
  slots.up = worker.up;
  slots.expected = !worker.up && worker.lease_end != kNever;
  slots.draining = worker.draining || worker.leaving;
  slots.labels = worker.labels;
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
    slots.slots.push_back({slot.index, KindOf(slot, kinds), taken.contains(slot.index)});
  }
  std::sort(slots.slots.begin(), slots.slots.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  return slots;
}

// By the average of its steps so far, evaluations and all; else by its limit; else as jobs of its queue are said to
// take.
absl::Duration Core::State::RunTimeLeft(const JobEntry& entry) const {
  const Job& job = entry.job;
  absl::Duration run_time = job.run_time;
  if (job.running_since != kNever) run_time += now_ - job.running_since;
  const bool limited = job.max_run_time < absl::InfiniteDuration();
  const absl::Duration left = (limited ? job.max_run_time : QueueRules(job.queue).run_time_default) - run_time;
  const int64_t done = job.best_step[static_cast<int>(Phase::kTrain)];
  const bool steps_known = entry.progress && entry.progress->phase == Phase::kTrain && entry.progress->steps > 0;
  if (!steps_known || done < 1) return left;
  const absl::Duration by_progress = run_time / done * std::max<int64_t>(0, entry.progress->steps - done);
  return limited ? std::min(left, by_progress) : by_progress;
}

scheduler::WaitingJob Core::State::WaitingJobOf(const JobEntry& entry) const {
  scheduler::WaitingJob job;
  job.id = entry.job.id;
  job.queue = entry.job.queue;
  job.priority = entry.job.priority;
  job.submit_time = entry.job.submit_time;
  if (entry.job.prepared) job.sizes = entry.job.gang_sizes;
  job.estimate = std::max(RunTimeLeft(entry), kRunTimeLeftMin);
  job.requirements = entry.job.requirements;
  job.not_before = entry.job.retry_time;
  job.old_ranks_remain = HasUnreleasedRanks(entry);
  job.reserved = entry.job.reserved;
  job.reserved_until = entry.job.reserved_until;
  for (auto it = entry.attempts.rbegin(); it != entry.attempts.rend(); ++it) {
    const Attempt& attempt = it->second;
    if (attempt.end_time + options_.avoid_worker <= now_) break;
    if (!attempt.cause_worker.empty()) job.avoid.push_back(attempt.cause_worker);
  }
  return job;
}

// Nothing for a job whose ranks hold no slot.
std::optional<scheduler::RunningGang> Core::State::GangOf(const JobEntry& entry) const {
  const Attempt& attempt = entry.attempts.rbegin()->second;
  if (!HasSlots(attempt)) return std::nullopt;
  scheduler::RunningGang gang;
  gang.id = entry.job.id;
  gang.queue = entry.job.queue;
  gang.priority = entry.job.priority;
  for (const Rank& rank : attempt.ranks) {
    if (!rank.released && rank.slot >= 0) gang.ranks.push_back({rank.worker_id, rank.slot});
  }
  gang.start_time = attempt.start_time;
  gang.protected_until = attempt.start_time + options_.min_run_time;
  gang.sizes = entry.job.gang_sizes;
  gang.requirements = entry.job.requirements;
  const bool runs = entry.job.state == JobState::kStarting || entry.job.state == JobState::kRunning;
  // A rank of a live attempt that is gone has done its work: the others are about to end as well.
  const bool finishes =
      runs && std::any_of(attempt.ranks.begin(), attempt.ranks.end(), [](const Rank& rank) { return rank.exited; });
  gang.stopping = !IsLive(attempt) || !runs || finishes;
  gang.ending = finishes || IsTerminal(entry.job.state) || entry.job.state == JobState::kCancelling ||
                entry.job.state == JobState::kPausing;
  if (!gang.stopping) {
    gang.expected_end = now_ + RunTimeLeft(entry);
  } else if (IsLive(attempt) && !finishes) {
    gang.expected_end = std::min(StopDeadline(entry, attempt), now_ + options_.checkpoint_grace);
  } else {
    gang.expected_end = now_ + options_.kill_grace;
  }
  return gang;
}

scheduler::Snapshot Core::State::TakeSnapshot() {
  scheduler::Snapshot snapshot;
  for (const auto& [worker_id, entry] : workers_) snapshot.workers.push_back(SlotsOf(entry, snapshot.kinds));
  for (const JobId& job_id : waiting_) snapshot.jobs.push_back(WaitingJobOf(jobs_.at(job_id)));
  for (const JobId& job_id : busy_) {
    if (std::optional<scheduler::RunningGang> gang = GangOf(jobs_.at(job_id))) {
      snapshot.gangs.push_back(std::move(*gang));
    }
  }
  for (const auto& [name, entry] : queues_) {
    const Queue queue = WithUse(entry, options_.scheduler.usage_half_life, now_);
    snapshot.queues[name] = {queue.weight, queue.used_slot_seconds, queue.slots_max};
  }
  return snapshot;
}

void Core::State::ReserveSlots(JobEntry& entry, const std::vector<scheduler::Placement>& slots) {
  Touch(entry);
  entry.job.reserved = slots;
  entry.job.reserved_until = now_ + options_.scheduler.reservation;
}

void Core::State::StopForAnother(const scheduler::Stop& stop) {
  JobEntry& entry = jobs_.at(stop.job_id);
  const size_t size = NewestAttempt(entry)->ranks.size();
  if (stop.why == scheduler::Stop::Why::kPreempted) {
    ++counters_.preemptions;
    ++entry.job.preemptions;
    return AskToStop(entry, JobState::kPreempting, kPreemptRequested,
                     fmt::format("{} of priority {} needs its slots; its ranks save a checkpoint and stop",
                                 stop.beneficiary, jobs_.at(stop.beneficiary).job.priority));
  }
  ++counters_.resizes;
  ReserveSlots(entry, stop.keep);
  const bool grows = stop.why == scheduler::Stop::Why::kGrows;
  AskToStop(entry, JobState::kPreempting, kResizeRequested,
            fmt::format("goes on with {} slots instead of {}{}; its ranks save a checkpoint and stop", stop.keep.size(),
                        size, grows ? "" : ", the others are for " + stop.beneficiary.value()));
}

void Core::State::RunScheduler() {
  pass_due_ = false;
  last_pass_ = now_;
  ++counters_.scheduler_passes;
  const scheduler::Plan plan = scheduler::Schedule(TakeSnapshot(), now_, options_.scheduler);
  for (const scheduler::Start& start : plan.starts) StartAttempt(jobs_.at(start.job_id), start.ranks);
  for (const scheduler::Reserve& reserve : plan.reserves) ReserveSlots(jobs_.at(reserve.job_id), reserve.slots);
  pass_due_ = false;  // starts take slots; they free none
  for (const scheduler::Stop& stop : plan.stops) StopForAnother(stop);
  for (const scheduler::Wait& wait : plan.waits) RecordWait(wait);
}

// An event when the reason becomes another one, so that a watcher sees why nothing happens. That no worker is there, or
// that the job waits for itself, is said by the view alone: it is often over in a moment.
void Core::State::RecordWait(const scheduler::Wait& wait) {
  JobEntry& entry = jobs_.at(wait.job_id);
  if (entry.wait.reason != wait.reason || entry.wait.position != wait.position || entry.wait.message != wait.message) {
    changed_jobs_.insert(wait.job_id);
  }
  entry.wait = wait;
  const bool passing = wait.reason == scheduler::kNoWorkers || wait.reason == scheduler::kWorkersPreparing ||
                       wait.reason == scheduler::kBackingOff || wait.reason == scheduler::kRanksStopping;
  // Between these two it may go to and fro with every pass.
  const auto waits_for_slots = [](const std::string& reason) {
    return reason == scheduler::kGangDoesNotFit || reason == scheduler::kBehindInQueue;
  };
  const bool announced =
      entry.announced_wait == wait.reason || (waits_for_slots(entry.announced_wait) && waits_for_slots(wait.reason));
  if (passing || announced) return;
  entry.announced_wait = wait.reason;
  AddEvent(entry, wait.reason, wait.message);
}

}  // namespace longspan::core
