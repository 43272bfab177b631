#include "server/simulator/simulation.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <queue>
#include <tuple>

#include "proto/support/check.h"
#include "server/scheduler/feasibility.h"

namespace longspan::simulator {
namespace {

constexpr absl::Duration kRunTimeLeftMin = absl::Minutes(1);  // as the server's, for jobs that wait

double ClockSeconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

enum class Phase : int { kComing, kWaiting, kRunning, kStopping, kOver };

struct Job {
  const TraceJob* trace = nullptr;
  JobOutcome* outcome = nullptr;
  Phase phase = Phase::kComing;
  absl::Duration done;      // work, in seconds at the largest size
  absl::Duration run_time;  // that counts for the limit, before this attempt
  int64_t attempts = 0;
  size_t row = 0;  // into the snapshot's jobs or gangs
  // Of this attempt.
  std::vector<scheduler::Placement> ranks;
  absl::Time start;
  absl::Duration setup;  // at its beginning, without work
  double rate = 1;
  int64_t generation = 0;  // events of earlier attempts are void
  // For the next attempt.
  std::vector<scheduler::Placement> reserved;
  absl::Time reserved_until = absl::InfinitePast();
};

// At one moment ends come before submits: what is free is free for all that are there. Passes come last.
enum class Kind : int { kEnd, kStopped, kSubmit, kPass };

struct Event {
  absl::Time time;
  Kind kind = Kind::kPass;
  size_t job = 0;
  int64_t generation = 0;
  bool operator>(const Event& other) const {
    return std::tie(time, kind, job, generation) > std::tie(other.time, other.kind, other.job, other.generation);
  }
};

struct QueueState {
  double weight = 1;
  absl::Duration run_time_default = absl::Hours(24);
  int64_t held = 0;
  int64_t waiting = 0;
};

class Simulation {
 public:
  Simulation(const ClusterSpec& cluster, const std::vector<TraceJob>& trace, const SimulationOptions& options,
             Policy& policy)
      : options_(options), policy_(policy), jobs_(trace.size()) {
    snapshot_.workers = cluster.Workers(snapshot_.kinds);
    for (size_t w = 0; w < snapshot_.workers.size(); ++w) worker_numbers_[snapshot_.workers[w].id] = w;
    for (const auto& [name, rules] : cluster.queues) {
      queues_[name] = {rules.weight, rules.run_time_default};
      snapshot_.queues[name] = {rules.weight, 0, rules.slots_max};
    }
    result_.slots = cluster.SlotCount();
    result_.jobs.resize(trace.size());
    for (size_t i = 0; i < trace.size(); ++i) {
      jobs_[i].trace = &trace[i];
      jobs_[i].outcome = &result_.jobs[i];
      numbers_[trace[i].id] = i;
      queues_[trace[i].queue];
      snapshot_.queues[trace[i].queue];
      events_.push({Start() + trace[i].submit, Kind::kSubmit, i, 0});
    }
    result_.begin = Start() + trace.front().submit;
    result_.last_submit = Start() + trace.back().submit;
    now_ = result_.begin;
    result_.end = result_.begin;
    coming_ = static_cast<int64_t>(trace.size());
  }

  SimulationResult Run() {
    while (!events_.empty()) {
      const absl::Time time = events_.top().time;
      Advance(time);
      bool pass_due = false;
      while (!events_.empty() && events_.top().time == time) {
        const Event event = events_.top();
        events_.pop();
        pass_due |= Handle(event);
      }
      if (pass_due) Pass();
      if (NothingMoves()) break;
      const auto passes = static_cast<int64_t>(result_.passes.size());
      if (options_.passes_max > 0 && passes >= options_.passes_max) break;
    }
    for (const JobOutcome& outcome : result_.jobs) {
      if (outcome.end < absl::InfiniteFuture()) result_.end = std::max(result_.end, outcome.end);
    }
    if (result_.contended_seconds > 0) result_.fairness = fairness_integral_ / result_.contended_seconds;
    return std::move(result_);
  }

 private:
  // Any moment: times in a result are read as differences.
  static absl::Time Start() { return absl::UnixEpoch(); }

  // Jobs that cannot run on this cluster wait for ever. Reservations are over by then.
  bool NothingMoves() {
    if (coming_ > 0 || !snapshot_.gangs.empty()) last_movement_ = now_;
    return now_ - last_movement_ > options_.reservation + absl::Hours(1);
  }

  // ---- time ----

  void Advance(absl::Time to) {
    const double seconds = absl::ToDoubleSeconds(to - now_);
    const double before_last =
        absl::ToDoubleSeconds(std::min(to, result_.last_submit) - std::min(now_, result_.last_submit));
    result_.held_slot_seconds += static_cast<double>(held_) * before_last;
    result_.held_whole += static_cast<double>(held_) * seconds;
    if (seconds > 0) {
      AdvanceFairness(seconds);
      AdvanceUse(to - now_);
    }
    now_ = to;
  }

  void AdvanceFairness(double seconds) {
    double sum = 0, squares = 0, count = 0;
    for (const auto& [name, queue] : queues_) {
      if (queue.waiting == 0) continue;
      const double share = static_cast<double>(queue.held) / queue.weight;
      sum += share;
      squares += share * share;
      ++count;
    }
    if (count < 2 || squares == 0) return;
    fairness_integral_ += seconds * sum * sum / (count * squares);
    result_.contended_seconds += seconds;
  }

  // As server/core/queues.cc.
  void AdvanceUse(absl::Duration passed) {
    const double half_life = absl::ToDoubleSeconds(options_.usage_half_life);
    const double decay = std::exp2(-absl::ToDoubleSeconds(passed) / half_life);
    for (auto& [name, rules] : snapshot_.queues) {
      const double held = static_cast<double>(queues_.at(name).held);
      rules.used_slot_seconds = rules.used_slot_seconds * decay + held * half_life / std::log(2.0) * (1 - decay);
    }
  }

  // True when a pass is due.
  bool Handle(const Event& event) {
    Job& job = jobs_[event.job];
    switch (event.kind) {
      case Kind::kSubmit:
        --coming_;
        AddWaiting(event.job);
        return true;
      case Kind::kEnd:
        if (event.generation != job.generation) return false;
        End(event.job);
        return true;
      case Kind::kStopped:
        if (event.generation != job.generation) return false;
        Stopped(event.job);
        return true;
      case Kind::kPass:
        return event.time == next_pass_;
    }
    return false;
  }

  // ---- a job's life ----

  absl::Duration LimitLeft(const Job& job) const { return job.trace->limit - job.run_time; }

  // As the server's RunTimeLeft, `ran` into this attempt.
  absl::Duration RunTimeLeft(const Job& job, absl::Duration ran) const {
    const bool limited = job.trace->limit < absl::InfiniteDuration();
    const absl::Duration run_time = job.run_time + ran;
    const absl::Duration allowed = limited ? job.trace->limit : queues_.at(job.trace->queue).run_time_default;
    const absl::Duration left = allowed - run_time;
    const absl::Duration done = job.done + Work(job, ran);
    const bool known = options_.estimate_by_progress && run_time >= options_.progress_after && done > absl::Seconds(1);
    if (!known) return left;
    const absl::Duration to_do = std::max(absl::ZeroDuration(), job.trace->planned_run_time - done);
    const absl::Duration by_progress = run_time * absl::FDivDuration(to_do, done);
    return limited ? std::min(left, by_progress) : by_progress;
  }

  // Done `ran` into this attempt.
  absl::Duration Work(const Job& job, absl::Duration ran) const {
    return std::max(absl::ZeroDuration(), ran - job.setup) * job.rate;
  }

  void AddWaiting(size_t number) {
    Job& job = jobs_[number];
    job.phase = Phase::kWaiting;
    job.row = snapshot_.jobs.size();
    scheduler::WaitingJob& row = snapshot_.jobs.emplace_back();
    row.id = job.trace->id;
    row.queue = job.trace->queue;
    row.priority = job.trace->priority;
    row.submit_time = Start() + job.trace->submit;
    row.sizes = job.trace->sizes;
    row.estimate = std::max(RunTimeLeft(job, absl::ZeroDuration()), kRunTimeLeftMin);
    row.requirements = job.trace->requirements;
    row.reserved = job.reserved;
    row.reserved_until = job.reserved_until;
    ++queues_[row.queue].waiting;
  }

  template <typename Row>
  void RemoveRow(std::vector<Row>& rows, size_t row) {
    if (row + 1 < rows.size()) {
      rows[row] = std::move(rows.back());
      jobs_[numbers_.at(rows[row].id)].row = row;
    }
    rows.pop_back();
  }

  void StartJob(size_t number, const std::vector<scheduler::Placement>& ranks) {
    Job& job = jobs_[number];
    CHECK(job.phase == Phase::kWaiting);
    const auto size = static_cast<int64_t>(ranks.size());
    CHECK(std::find(job.trace->sizes.begin(), job.trace->sizes.end(), size) != job.trace->sizes.end());
    RemoveRow(snapshot_.jobs, job.row);
    --queues_[job.trace->queue].waiting;
    job.phase = Phase::kRunning;
    job.ranks = ranks;
    job.start = now_;
    job.outcome->start = std::min(job.outcome->start, now_);
    job.setup = job.attempts++ == 0 ? absl::ZeroDuration() : options_.restart_time;
    job.rate = std::pow(static_cast<double>(size) / static_cast<double>(job.trace->LargestSize()),
                        options_.scaling_efficiency);
    job.reserved.clear();
    Mark(job, true);
    AddGang(number);
    // Rounded up, so that the work is done at the end and not a nanosecond later.
    const absl::Duration to_end =
        absl::Ceil(job.setup + (job.trace->run_time - job.done) / job.rate, absl::Milliseconds(1));
    events_.push({now_ + std::min(to_end, LimitLeft(job)), Kind::kEnd, number, job.generation});
  }

  void AddGang(size_t number) {
    Job& job = jobs_[number];
    job.row = snapshot_.gangs.size();
    scheduler::RunningGang& gang = snapshot_.gangs.emplace_back();
    gang.id = job.trace->id;
    gang.queue = job.trace->queue;
    gang.priority = job.trace->priority;
    gang.ranks = job.ranks;
    gang.start_time = now_;
    gang.protected_until = now_ + options_.min_run_time;
    gang.sizes = job.trace->sizes;
    gang.requirements = job.trace->requirements;
  }

  void Mark(const Job& job, bool taken) {
    const auto size = static_cast<int64_t>(job.ranks.size());
    for (const scheduler::Placement& rank : job.ranks) {
      const scheduler::WorkerSlots& worker = snapshot_.workers[worker_numbers_.at(rank.worker_id)];
      scheduler::WorkerSlot& slot = snapshot_.workers[worker_numbers_.at(rank.worker_id)].slots.at(rank.slot);
      CHECK(slot.taken != taken);
      CHECK(!taken || (scheduler::HasLabels(job.trace->requirements, worker) &&
                       scheduler::HasDevice(job.trace->requirements, snapshot_.kinds[slot.kind]) &&
                       scheduler::HasMemory(job.trace->requirements, snapshot_.kinds[slot.kind])));
      slot.taken = taken;
    }
    held_ += taken ? size : -size;
    queues_[job.trace->queue].held += taken ? size : -size;
  }

  void LeaveSlots(Job& job) {
    RemoveRow(snapshot_.gangs, job.row);
    Mark(job, false);
    ++job.generation;
  }

  void Account(const Job& job, absl::Duration kept) {
    const auto slots = static_cast<double>(job.ranks.size());
    const double held = absl::ToDoubleSeconds(now_ - job.start) * slots;
    const double useful = absl::ToDoubleSeconds(kept / job.rate) * slots;
    result_.useful_slot_seconds += useful;
    result_.lost_slot_seconds += std::max(0.0, held - useful);
  }

  void End(size_t number) {
    Job& job = jobs_[number];
    const absl::Duration ran = now_ - job.start;
    const absl::Duration work = std::min(Work(job, ran), job.trace->run_time - job.done);
    Account(job, work);
    job.outcome->ended_by_limit = job.done + work + absl::Milliseconds(10) < job.trace->run_time;
    job.outcome->end = now_;
    LeaveSlots(job);
    job.phase = Phase::kOver;
  }

  void AskToStop(const scheduler::Stop& stop) {
    Job& job = jobs_[numbers_.at(stop.job_id)];
    CHECK(job.phase == Phase::kRunning);
    const bool preempted = stop.why == scheduler::Stop::Why::kPreempted;
    ++(preempted ? job.outcome->preemptions : job.outcome->resizes);
    job.phase = Phase::kStopping;
    job.reserved = stop.keep;
    job.reserved_until = stop.keep.empty() ? absl::InfinitePast() : now_ + options_.reservation;
    scheduler::RunningGang& gang = snapshot_.gangs[job.row];
    gang.stopping = true;
    gang.expected_end = now_ + options_.stop_time;
    stop_asked_[stop.job_id] = now_;
    events_.push({now_ + options_.stop_time, Kind::kStopped, numbers_.at(stop.job_id), job.generation});
  }

  // Its end may have come first.
  void Stopped(size_t number) {
    Job& job = jobs_[number];
    const absl::Duration ran = stop_asked_.at(job.trace->id) - job.start;
    absl::Duration kept = Work(job, ran);
    if (options_.checkpoint_interval > absl::ZeroDuration()) {
      kept = Work(job, absl::Floor(std::max(absl::ZeroDuration(), ran), options_.checkpoint_interval));
    }
    Account(job, kept);
    job.done += kept;
    job.run_time += now_ - job.start;
    LeaveSlots(job);
    AddWaiting(number);
  }

  // ---- passes ----

  void Refresh() {
    for (scheduler::RunningGang& gang : snapshot_.gangs) {
      if (gang.stopping) continue;
      const Job& job = jobs_[numbers_.at(gang.id)];
      gang.expected_end = now_ + RunTimeLeft(job, now_ - job.start);
    }
  }

  void Pass() {
    Refresh();
    PassTime time;
    time.waiting = static_cast<int64_t>(snapshot_.jobs.size());
    time.gangs = static_cast<int64_t>(snapshot_.gangs.size());
    const double wall = ClockSeconds(CLOCK_MONOTONIC);
    const double cpu = ClockSeconds(CLOCK_THREAD_CPUTIME_ID);
    Decision decision = policy_.Pass(snapshot_, now_);
    time.cpu_seconds = ClockSeconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
    time.wall_seconds = ClockSeconds(CLOCK_MONOTONIC) - wall;
    result_.passes.push_back(time);
    result_.work_max.TakeMax(decision.plan.work);
    result_.work_total.Add(decision.plan.work);
    Apply(decision.plan);
    if (decision.again < absl::InfiniteFuture() && (next_pass_ <= now_ || decision.again < next_pass_)) {
      CHECK(decision.again > now_);
      next_pass_ = decision.again;
      events_.push({next_pass_, Kind::kPass, 0, 0});
    }
  }

  void Apply(const scheduler::Plan& plan) {
    for (const scheduler::Start& start : plan.starts) StartJob(numbers_.at(start.job_id), start.ranks);
    for (const scheduler::Reserve& reserve : plan.reserves) {
      Job& job = jobs_[numbers_.at(reserve.job_id)];
      CHECK(job.phase == Phase::kWaiting);
      job.reserved = reserve.slots;
      job.reserved_until = now_ + options_.reservation;
      snapshot_.jobs[job.row].reserved = job.reserved;
      snapshot_.jobs[job.row].reserved_until = job.reserved_until;
    }
    for (const scheduler::Stop& stop : plan.stops) AskToStop(stop);
    for (const scheduler::Wait& wait : plan.waits) {
      JobOutcome& outcome = *jobs_[numbers_.at(wait.job_id)].outcome;
      if (outcome.start == absl::InfiniteFuture()) outcome.wait_reason = wait.reason;
    }
  }

  const SimulationOptions& options_;
  Policy& policy_;
  std::vector<Job> jobs_;
  std::map<JobId, size_t> numbers_;
  std::map<WorkerId, size_t> worker_numbers_;
  std::map<std::string, QueueState> queues_;
  std::map<JobId, absl::Time> stop_asked_;
  scheduler::Snapshot snapshot_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  absl::Time now_;
  absl::Time next_pass_ = absl::InfinitePast();
  absl::Time last_movement_ = absl::UnixEpoch();
  int64_t coming_ = 0;  // not submitted yet
  int64_t held_ = 0;
  double fairness_integral_ = 0;
  SimulationResult result_;
};

}  // namespace

SimulationResult Simulate(const ClusterSpec& cluster, const std::vector<TraceJob>& trace,
                          const SimulationOptions& options, Policy& policy) {
  return Simulation(cluster, trace, options, policy).Run();
}

}  // namespace longspan::simulator
