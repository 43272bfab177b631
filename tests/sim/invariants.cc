#include "tests/sim/invariants.h"

#include <fmt/format.h>

#include <algorithm>

#include "server/core/transitions.h"
#include "tests/sim/job_generator.h"

namespace longspan::sim {
namespace {

using core::JobState;

std::string Describe(const ProcessRow& p) {
  return fmt::format("process {} ({}/{} rank {} in slot {} of {})", p.id, p.job_id, p.attempt, p.rank, p.slot,
                     p.worker);
}

// A transaction of a group may write a job several times: what it leaves.
std::map<JobId, const core::Job*> FinalJobs(const core::Transaction& transaction) {
  std::map<JobId, const core::Job*> jobs;
  for (const core::JobWrite& write : transaction.jobs) jobs[write.job.id] = &write.job;
  return jobs;
}

template <typename Rows>
auto FindById(const Rows& rows, const JobId& id) {
  return std::find_if(rows.begin(), rows.end(), [&](const auto& row) { return row.job.id == id; });
}

}  // namespace

void Invariants::Fail(const char* invariant, std::string text) {
  if (!violation_) violation_ = Violation{invariant, std::move(text)};
}

// ---- processes ----

const core::Rank* Invariants::FindRank(const std::string& job_id, int64_t attempt, int64_t rank) const {
  const auto job = attempts_.find(JobId(job_id));
  if (job == attempts_.end()) return nullptr;
  const auto found = job->second.find(attempt);
  if (found == job->second.end() || rank < 0 || rank >= static_cast<int64_t>(found->second.ranks.size()))
    return nullptr;
  return &found->second.ranks[static_cast<size_t>(rank)];
}

// A process that cannot act while nobody could kill it, because its daemon was frozen, harms nobody: its lease ends it
// before it does anything.
bool Invariants::Counts(const ProcessRow& process) const { return !process.daemon_was_frozen || can_act_(process.id); }

void Invariants::OnSpawn(const ProcessRow& process) {
  processes_changed_ = true;
  const core::Rank* rank = FindRank(process.job_id, process.attempt, process.rank);
  if (rank == nullptr || rank->worker_id.value() != process.worker || rank->slot != process.slot) {
    Fail("stored before dispatched", Describe(process) + " was started and no such rank is durable");
  }
  if (!ever_run_.emplace(process.job_id, process.attempt, process.rank).second) {
    Fail("a rank runs once", Describe(process) + " was started before");
  }
  if (!process.resume_from.empty()) {
    if (!process.resume_is_written) {
      Fail("resumes from what was written", Describe(process) + " resumes from " + process.resume_from);
    }
    if (!checkpoints_[JobId(process.job_id)].contains(process.resume_from)) {
      Fail("resumes from what is recorded", Describe(process) + " resumes from " + process.resume_from);
    }
  }
  processes_.emplace(process.id, process);
}

void Invariants::OnDaemonFrozen(int64_t id) {
  if (const auto found = processes_.find(id); found != processes_.end()) found->second.daemon_was_frozen = true;
}

void Invariants::CheckProcesses() {
  if (!processes_changed_) return;
  processes_changed_ = false;
  ++checks_;
  std::map<std::pair<std::string, int64_t>, const ProcessRow*> slots;
  std::map<std::string, const ProcessRow*> jobs;
  for (const auto& [id, process] : processes_) {
    if (process.slot >= 0) {
      const auto [it, first] = slots.emplace(std::pair(process.worker, process.slot), &process);
      if (!first) Fail("a slot has one process", Describe(*it->second) + " and " + Describe(process));
    }
    if (!Counts(process)) continue;
    const auto [it, first] = jobs.emplace(process.job_id, &process);
    if (!first && it->second->attempt != process.attempt) {
      Fail("attempts do not overlap", Describe(*it->second) + " and " + Describe(process));
    }
    const core::Rank* rank = FindRank(process.job_id, process.attempt, process.rank);
    if (rank != nullptr && rank->released) Fail("a released rank is gone", Describe(process) + " is still there");
  }
}

void Invariants::OnTrainingStep(const std::string& job_id, int64_t attempt, int64_t step,
                                const std::vector<int64_t>& members) {
  std::set<int64_t> ranks;
  for (const int64_t id : members) {
    const auto found = processes_.find(id);
    if (found == processes_.end() || found->second.job_id != job_id || found->second.attempt != attempt) {
      return Fail("a gang is whole", fmt::format("process {} steps with {}/{}", id, job_id, attempt));
    }
    ranks.insert(found->second.rank);
  }
  const auto job = jobs_.find(JobId(job_id));
  const core::Rank* const last = FindRank(job_id, attempt, static_cast<int64_t>(ranks.size()) - 1);
  const core::Rank* const beyond = FindRank(job_id, attempt, static_cast<int64_t>(ranks.size()));
  if (job == jobs_.end() || last == nullptr || beyond != nullptr) {
    Fail("a gang is whole", fmt::format("{}/{} takes step {} with {} ranks", job_id, attempt, step, ranks.size()));
  } else if (job->second.attempt != attempt) {
    Fail("an old attempt takes no step",
         fmt::format("{}/{} takes step {}, and attempt {} is durable", job_id, attempt, step, job->second.attempt));
  }
}

// ---- transactions ----

void Invariants::CheckTransaction(const core::Transaction& transaction) {
  ++checks_;
  CheckEvents(transaction);
  CheckJobs(transaction);
  for (const core::Attempt& attempt : transaction.attempts) CheckAttempt(transaction, attempt);
  CheckOwners(transaction);
  CheckSamples(transaction);
}

void Invariants::CheckEvents(const core::Transaction& transaction) {
  std::map<JobId, std::pair<int64_t, std::optional<JobState>>> newest;  // sequence, state
  for (const auto& [job_id, event] : transaction.events) {
    const auto [it, first] = newest.try_emplace(job_id);
    auto& [sequence, state] = it->second;
    if (const auto job = jobs_.find(job_id); first && job != jobs_.end()) {
      sequence = job->second.last_event;
      state = job->second.state;
    }
    if (event.sequence != sequence + 1) {
      Fail("events have no gap", fmt::format("{}: {} follows {}", job_id, event.sequence, sequence));
    }
    if (state && *state != event.state) {
      if (core::IsTerminal(*state)) {
        Fail("terminal is terminal", fmt::format("{}: {} became {}", job_id, Name(*state), Name(event.state)));
      } else if (!core::IsAllowed(*state, event.state)) {
        Fail("history follows the table", fmt::format("{}: {} became {}", job_id, Name(*state), Name(event.state)));
      }
    }
    sequence = event.sequence;
    state = event.state;
  }
  for (const auto& [job_id, job] : FinalJobs(transaction)) {
    const auto found = newest.find(job_id);
    const auto before = jobs_.find(job_id);
    const std::optional<JobState> told = found != newest.end()   ? found->second.second
                                         : before != jobs_.end() ? std::optional(before->second.state)
                                                                 : std::nullopt;
    if (told != job->state) {
      Fail("history follows the table", fmt::format("{} is {} without an event", job_id, Name(job->state)));
    }
  }
}

// Of an attempt the steps of its samples grow: none is stored twice.
void Invariants::CheckSamples(const core::Transaction& transaction) {
  auto newest = newest_samples_;
  for (const auto& [job_id, sample] : transaction.samples) {
    const auto [it, first] = newest.try_emplace({job_id, sample.attempt, static_cast<int>(sample.phase)}, sample.step);
    if (!first && sample.step <= it->second) {
      Fail("a sample is stored once",
           fmt::format("{}/{} has step {} after {}", job_id, sample.attempt, sample.step, it->second));
    }
    it->second = sample.step;
  }
  samples_after_ = std::move(newest);
}

void Invariants::CheckJobs(const core::Transaction& transaction) {
  for (const core::JobWrite& write : transaction.jobs) {
    const core::Job& job = write.job;
    const auto before = jobs_.find(job.id);
    if (before != jobs_.end() && job.attempt < before->second.attempt) {
      Fail("attempt numbers grow", fmt::format("{} goes back to attempt {}", job.id, job.attempt));
    }
    const bool ends_otherwise = core::IsTerminal(job.state) && job.state != JobState::kCancelled;
    if (cancelled_.contains(job.id) && ends_otherwise) {
      Fail("an acknowledged cancel stays", fmt::format("{} became {}", job.id, Name(job.state)));
    }
    if (job.reason.empty()) Fail("a waiting job says why", fmt::format("{} has no reason", job.id));
  }
}

void Invariants::CheckAttempt(const core::Transaction& transaction, const core::Attempt& attempt) {
  const auto known = attempts_.find(attempt.job_id);
  if (known == attempts_.end() || !known->second.contains(attempt.number)) CheckNewAttempt(transaction, attempt);
  for (const core::Rank& rank : attempt.ranks) {
    if (!rank.released) continue;
    for (const auto& [id, process] : processes_) {
      const bool same =
          process.job_id == attempt.job_id.value() && process.attempt == attempt.number && process.rank == rank.rank;
      if (same && Counts(process)) Fail("a released rank is gone", Describe(process) + " is still there");
    }
  }
}

void Invariants::CheckNewAttempt(const core::Transaction& transaction, const core::Attempt& attempt) {
  const std::map<JobId, const core::Job*> jobs = FinalJobs(transaction);
  const auto job = jobs.find(attempt.job_id);
  if (job == jobs.end() || job->second->attempt < attempt.number) {
    return Fail("attempt numbers grow", fmt::format("{}/{} without its job", attempt.job_id, attempt.number));
  }
  const bool whole = attempt.command == "prepare"
                         ? attempt.ranks.size() == 1
                         : IsWholeGang(*job->second, static_cast<int64_t>(attempt.ranks.size()));
  if (!whole) {
    Fail("a gang is whole", fmt::format("{}/{} has {} ranks", attempt.job_id, attempt.number, attempt.ranks.size()));
  }
  if (paused_.contains(attempt.job_id) || cancelled_.contains(attempt.job_id)) {
    Fail("an acknowledged pause or cancel stays", fmt::format("{}/{} was started", attempt.job_id, attempt.number));
  }
  for (const core::Rank& rank : attempt.ranks) {
    core::Worker worker = workers_[rank.worker_id];
    for (const core::Worker& row : transaction.workers) {
      if (row.id == rank.worker_id) worker = row;
    }
    if (drained_.contains(rank.worker_id) || worker.draining || worker.leaving) {
      Fail("a drained worker gets no ranks",
           fmt::format("{}/{} rank {} on {}", attempt.job_id, attempt.number, rank.rank, rank.worker_id));
    }
  }
  for (const auto& [number, earlier] : attempts_[attempt.job_id]) {
    // As this transaction leaves it.
    const core::Attempt* newest = &earlier;
    for (const core::Attempt& row : transaction.attempts) {
      if (row.job_id == attempt.job_id && row.number == number) newest = &row;
    }
    for (const core::Rank& rank : newest->ranks) {
      if (!rank.released) {
        Fail("the next attempt waits for the last one",
             fmt::format("{}/{} starts, and rank {} of attempt {} is not released", attempt.job_id, attempt.number,
                         rank.rank, number));
      }
    }
  }
}

// In the order of the rows, as the unique index of the real store sees them.
void Invariants::CheckOwners(const core::Transaction& transaction) {
  std::map<std::pair<WorkerId, int64_t>, JobId> owners = owners_;
  for (const core::Attempt& attempt : transaction.attempts) {
    for (const core::Rank& rank : attempt.ranks) {
      if (rank.slot < 0) continue;
      const auto [owner, free] = owners.emplace(std::pair(rank.worker_id, rank.slot), attempt.job_id);
      if (rank.released) {
        if (owner->second == attempt.job_id) owners.erase(owner);
      } else if (!free && owner->second != attempt.job_id) {
        Fail("a slot has one owner", fmt::format("slot {} of {} belongs to {} and {}", rank.slot, rank.worker_id,
                                                 owner->second, attempt.job_id));
      }
    }
  }
  owners_after_ = std::move(owners);
}

void Invariants::OnCommitted(const core::Transaction& transaction) {
  for (const core::JobWrite& write : transaction.jobs) jobs_[write.job.id] = write.job;
  for (const core::Worker& worker : transaction.workers) workers_[worker.id] = worker;
  CheckOwners(transaction);
  owners_ = std::move(owners_after_);
  CheckSamples(transaction);
  newest_samples_ = std::move(samples_after_);
  for (const core::Attempt& attempt : transaction.attempts) attempts_[attempt.job_id][attempt.number] = attempt;
  for (const auto& [job_id, checkpoint] : transaction.checkpoints) checkpoints_[job_id].insert(checkpoint.name);
}

namespace {

bool IsSameRank(const core::Rank& a, const core::Rank& b) {
  return a.state == b.state && a.seen == b.seen && a.released == b.released && a.exited == b.exited;
}

bool IsSameAttempt(const core::Attempt& a, const core::Attempt& b) {
  return a.end_time == b.end_time && a.stop_time == b.stop_time && a.sample_sequence == b.sample_sequence &&
         a.message == b.message &&
         std::equal(a.ranks.begin(), a.ranks.end(), b.ranks.begin(), b.ranks.end(), IsSameRank);
}

}  // namespace

// As in `state`, and not as it was known before.
bool Invariants::IsStored(const core::Attempt& attempt, const core::StoredState& state) {
  const std::map<int64_t, core::Attempt>& known = attempts_[attempt.job_id];
  const auto before = known.find(attempt.number);
  if (before != known.end() && IsSameAttempt(before->second, attempt)) return false;
  const auto row = FindById(state.jobs, attempt.job_id);
  if (row == state.jobs.end()) return false;
  return std::any_of(row->attempts.begin(), row->attempts.end(), [&](const core::Attempt& stored) {
    return stored.number == attempt.number && IsSameAttempt(stored, attempt);
  });
}

void Invariants::OnLoaded(const core::StoredState& state) {
  ++checks_;
  if (uncertain_) {
    const core::Transaction uncertain = *std::exchange(uncertain_, std::nullopt);
    // It shows in the version of any job it wrote, and in any attempt: all of it is there, or nothing.
    bool there = false;
    for (const core::Attempt& attempt : uncertain.attempts) there |= IsStored(attempt, state);
    for (const auto& [job_id, job] : FinalJobs(uncertain)) {
      const auto row = FindById(state.jobs, job_id);
      there |= row != state.jobs.end() && row->job.version == job->version;
    }
    if (there) OnCommitted(uncertain);
  }
  if (state.jobs.size() != jobs_.size()) {
    Fail("what was committed is loaded", fmt::format("{} jobs were, {} are there", jobs_.size(), state.jobs.size()));
  }
  for (const auto& [job_id, job] : jobs_) {
    const auto row = FindById(state.jobs, job_id);
    if (row == state.jobs.end()) return Fail("what was committed is loaded", job_id.value() + " is gone");
    if (row->job.version != job.version || row->job.state != job.state || row->job.last_event != job.last_event ||
        row->attempts.size() != attempts_[job_id].size() || row->checkpoints.size() != checkpoints_[job_id].size()) {
      Fail("what was committed is loaded",
           fmt::format("{} is at version {} in {} instead of {} in {}", job_id, row->job.version, Name(row->job.state),
                       job.version, Name(job.state)));
    }
  }
  for (const auto& [request_id, job_id] : acknowledged_) {
    if (FindById(state.jobs, job_id) == state.jobs.end()) {
      Fail("an acknowledged submit exists", fmt::format("{} as {}", request_id, job_id));
    }
  }
}

// ---- the server's words ----

void Invariants::OnAcknowledged(const v1::RankAcknowledgement& acknowledgement) {
  for (const std::string& name : acknowledgement.checkpoints()) OnToldRecorded(acknowledgement.job_id(), name);
  if (!acknowledgement.exit()) return;
  const core::Rank* rank = FindRank(acknowledgement.job_id(), acknowledgement.attempt(), acknowledgement.rank());
  if (rank == nullptr || !rank->exited) {
    Fail("told is stored", fmt::format("the end of {}/{} rank {} was acknowledged", acknowledgement.job_id(),
                                       acknowledgement.attempt(), acknowledgement.rank()));
  }
}

void Invariants::OnToldRecorded(const std::string& job_id, const std::string& checkpoint) {
  if (!checkpoints_[JobId(job_id)].contains(checkpoint)) {
    Fail("told is stored", fmt::format("checkpoint {} of {}", checkpoint, job_id));
  }
}

void Invariants::OnSubmitAcknowledged(const std::string& request_id, const JobId& job_id) {
  const auto [it, first] = acknowledged_.emplace(request_id, job_id);
  if (it->second != job_id) {
    Fail("one request is one job", fmt::format("{} became {} and {}", request_id, it->second, job_id));
  }
  if (!jobs_.contains(job_id)) Fail("an acknowledged submit exists", fmt::format("{} as {}", request_id, job_id));
}

void Invariants::OnSubmitRefused(const std::string& request_id, bool disk_full) {
  const auto known = std::find_if(jobs_.begin(), jobs_.end(),
                                  [&](const auto& entry) { return entry.second.request_id == request_id; });
  if (known != jobs_.end()) {
    Fail("only what is new is refused", fmt::format("{}, and it is {}", request_id, known->first));
  } else if (!disk_full) {
    Fail("only what is new is refused", fmt::format("{}, and there is room", request_id));
  }
}

void Invariants::CheckWaiting(const core::Core& core) {
  ++checks_;
  std::set<int64_t> positions;
  for (const auto& [job_id, job] : jobs_) {
    if (!core::IsWaiting(job.state)) continue;
    const absl::StatusOr<core::JobView> view = core.ViewJob(job_id);
    if (!view.ok() || view->queue_position < 1 || view->job.reason.empty() || view->job.message.empty()) {
      Fail("a waiting job says why", fmt::format("{} waits without a position or a reason", job_id));
    } else if (!positions.insert(view->queue_position).second) {
      Fail("a waiting job says why", fmt::format("position {} is taken twice", view->queue_position));
    }
  }
  if (!positions.empty() && *positions.rbegin() != static_cast<int64_t>(positions.size())) {
    Fail("a waiting job says why",
         fmt::format("{} jobs wait, the last is at {}", positions.size(), *positions.rbegin()));
  }
}

namespace {

std::string Describe(const core::Job& job, bool with_reason) {
  std::string text = fmt::format(
      "{} {} {} slots {} state {} phase {} attempt {} version {} prepared {} failed {} stalled {} retry {} run {} "
      "since "
      "{} event {} sample {} best {} {}",
      job.id, job.request_id, job.priority, fmt::join(job.gang_sizes, ","), Name(job.state), Name(job.phase),
      job.attempt, job.version, job.prepared, job.failed_attempts, job.stalled_attempts,
      absl::FormatTime(job.retry_time), absl::FormatDuration(job.run_time), absl::FormatTime(job.running_since),
      job.last_event, job.last_sample, job.best_step[1], job.best_step[2]);
  return with_reason ? text + " " + job.reason + ": " + job.message : text;
}

std::string Describe(const std::vector<core::Attempt>& attempts) {
  std::string text;
  for (const core::Attempt& a : attempts) {
    text += fmt::format("{} {} {} {} {} {} {} {} {} {};", a.number, a.command, absl::FormatTime(a.end_time),
                        Name(a.failure_class), a.message, a.resumed_from, a.store_address,
                        absl::FormatTime(a.stop_time), a.progressed, a.sample_sequence);
    for (const core::Rank& r : a.ranks) {
      text += fmt::format(" {} {} {} {} {} {} {} {} {} {}", r.rank, r.worker_id, r.slot, r.incarnation_id,
                          Name(r.state), r.seen, r.released, r.exited, r.exit_code, r.signal);
    }
  }
  return text;
}

template <typename Rows>
std::string Names(const Rows& rows) {
  std::string text;
  for (const auto& row : rows) text += row.name + " ";
  return text;
}

// A fingerprint ends with the start of its server.
std::string WithoutStart(const std::string& fingerprint) { return fingerprint.substr(0, fingerprint.rfind('-')); }

std::string Describe(const core::Worker& worker) {
  return fmt::format("{} {} {} {} {} {} {}", worker.id, worker.incarnation_id, worker.draining, worker.leaving,
                     worker.placements, worker.slots.size(), worker.retired_incarnations.size());
}

}  // namespace

void Invariants::CompareWithStore(const core::Core& core, const core::StoredState& state,
                                  const core::CoreOptions& options, absl::Time now) {
  ++checks_;
  const auto compare = [this](const std::string& memory, const std::string& stored) {
    if (memory != stored) Fail("memory is what is stored", "in memory: " + memory + "\n    stored: " + stored);
  };
  core::Core reborn(options);
  reborn.Step(core::Restarted{state}, now);
  for (const core::StoredState::JobRows& rows : state.jobs) {
    const absl::StatusOr<core::JobView> view = core.ViewJob(rows.job.id);
    if (!view.ok()) return Fail("memory is what is stored", rows.job.id.value() + " is stored only");
    // The scheduler's words are not stored.
    const bool told_by_scheduler = view->queue_position > 0;
    compare(Describe(view->job, !told_by_scheduler), Describe(rows.job, !told_by_scheduler));
    std::vector<core::Attempt> attempts = rows.attempts;
    attempts.erase(attempts.begin(), attempts.end() - static_cast<std::ptrdiff_t>(view->attempts.size()));
    compare(Describe(view->attempts), Describe(attempts));
    const auto checkpoints = core.ListCheckpoints(rows.job.id);
    compare(Names(*checkpoints),
            Names(std::vector<core::Checkpoint>(rows.checkpoints.rbegin(), rows.checkpoints.rend())));
    compare(fmt::format("{} {}", view->evaluations.size(), view->artifacts.size()),
            fmt::format("{} {}", rows.evaluations.size(), rows.artifacts.size()));
  }
  for (const core::Worker& worker : state.workers) {
    const std::optional<core::WorkerView> view = core.ViewWorker(worker.id);
    if (!view) return Fail("memory is what is stored", worker.id.value() + " is stored only");
    compare(Describe(view->worker), Describe(worker));
    compare(WithoutStart(core.Desired(worker.id).fingerprint), WithoutStart(reborn.Desired(worker.id).fingerprint));
  }
}

}  // namespace longspan::sim
