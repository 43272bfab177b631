#include "tests/sim/simulated_cluster.h"

#include <algorithm>
#include <cmath>

namespace longspan::sim {
namespace {

using absl::Seconds;

constexpr absl::Duration kMoment = absl::Milliseconds(10);
constexpr int64_t kEventsOfAMomentMax = 1000;

}  // namespace

// Not all faults at once: what one kind hides another shows. Each kind is on in about half of the seeds.
SimulationOptions OptionsOf(uint64_t seed) {
  Random random(seed ^ 0xA5A5A5A5ull);
  SimulationOptions options;
  options.seed = seed;
  options.sqlite = seed % 20 == 7;
  options.workers = static_cast<int>(random.Integer(1, 4));
  options.slots_per_worker = static_cast<int>(random.Integer(1, 3));
  options.jobs = static_cast<int>(random.Integer(2, 6));
  if (random.Chance(0.15)) options.stalled_attempts_max = 3;
  options.clock_drift = random.Chance(0.5) ? 0.02 : 0.0005;
  Faults& faults = options.faults;
  const auto probability = [&](double chance, double most) {
    return random.Chance(chance) ? most * random.Real() : 0.0;
  };
  const auto every = [&](double chance, double low, double high) {
    return random.Chance(chance) ? Seconds(low + (high - low) * random.Real()) : absl::InfiniteDuration();
  };
  faults.message_lost = probability(0.7, 0.2);
  faults.message_doubled = probability(0.7, 0.2);
  faults.message_delayed = probability(0.7, 0.2);
  faults.cut_every = every(0.6, 8, 40);
  faults.daemon_crash_every = every(0.6, 8, 40);
  faults.daemon_leave_every = every(0.3, 15, 60);
  faults.freeze_every = every(0.4, 10, 40);
  faults.clock_jump_every = every(0.3, 10, 40);
  faults.server_crash_every = every(0.5, 10, 40);
  faults.server_crash_before_commit = probability(0.4, 0.006);
  faults.server_crash_after_commit = probability(0.4, 0.006);
  faults.server_crash_in_commit = options.sqlite ? probability(0.7, 0.02) : 0;
  faults.power_cut = options.sqlite ? 0.5 : 0;
  faults.commit_fails = probability(0.3, 0.01);
  faults.disk_full_every = every(0.3, 10, 60);
  faults.command_every = every(0.7, 1, 8);
  faults.rank_crashes = probability(0.6, 0.02);
  faults.rank_hangs = probability(0.5, 0.01);
  faults.spawn_fails = probability(0.3, 0.1);
  faults.slow_start = probability(0.3, 0.1);
  faults.slow_stop = probability(0.4, 0.5);
  faults.slow_checkpoint = probability(0.4, 0.2);
  faults.peers_cut = probability(0.3, 0.01);
  return options;
}

SimulatedCluster::SimulatedCluster(const SimulationOptions& options)
    : world_(options),
      network_(&world_),
      trainers_(&world_, &invariants_),
      server_(&world_, &invariants_),
      client_(&world_, &network_, &server_, &trainers_, &invariants_) {
  invariants_.WatchProcesses([this](int64_t id) { return trainers_.CanAct(id); });
  int64_t slots = 0;
  for (int number = 1; number <= options.workers; ++number) {
    const int64_t here = world_.random.Integer(1, options.slots_per_worker);
    slots += here;
    workers_.push_back(
        std::make_unique<SimulatedWorker>(&world_, &network_, &server_, &trainers_, &invariants_, number, here));
  }
  client_.Configure(ConfiguredQueue(slots));
  for (int number = 0; number < options.jobs; ++number) {
    const JobPlan plan = MakeJob(world_, number, slots);
    world_.timeline.After(world_.random.Between(absl::ZeroDuration(), options.faulty * 0.7),
                          [this, plan] { client_.Submit(plan); });
  }
  ArrangeFaults();
  world_.timeline.After(options.faulty, [this] { EndFaults(); });
}

// ---- faults ----

void SimulatedCluster::Every(absl::Duration mean, std::function<void()> fault) {
  if (mean == absl::InfiniteDuration()) return;
  const absl::Duration wait = mean * -std::log(1 - world_.random.Real());
  world_.timeline.After(wait, [this, mean, fault = std::move(fault)] {
    if (!world_.faulty) return;
    fault();
    Every(mean, fault);
  });
}

SimulatedWorker& SimulatedCluster::AnyWorker() {
  return *workers_[static_cast<size_t>(world_.random.Integer(0, static_cast<int64_t>(workers_.size()) - 1))];
}

void SimulatedCluster::ArrangeFaults() {
  const Faults& faults = world_.options.faults;
  Every(faults.cut_every, [this] { CutSomebody(); });
  Every(faults.daemon_crash_every, [this] { AnyWorker().Crash(); });
  Every(faults.daemon_leave_every, [this] { AnyWorker().Leave(); });
  Every(faults.freeze_every, [this] { FreezeSomebody(); });
  Every(faults.clock_jump_every,
        [this] { AnyWorker().JumpWallClock(world_.random.Between(-absl::Hours(2), absl::Hours(2))); });
  Every(faults.server_crash_every, [this] { server_.Crash(); });
  Every(faults.disk_full_every, [this] {
    server_.SetDiskFull(true);
    world_.timeline.After(world_.random.Between(Seconds(1), Seconds(30)), [this] { server_.SetDiskFull(false); });
  });
  Every(faults.command_every, [this] { client_.DoSomething(world_.options.workers); });
}

void SimulatedCluster::CutSomebody() {
  const bool a_client = world_.random.Chance(0.1);
  const Network::End end = a_client ? Network::kClient : AnyWorker().number();
  const absl::Time until = world_.timeline.now() + world_.random.Between(Seconds(1), Seconds(30));
  const int64_t which = world_.random.Integer(0, 2);
  world_.Say("network: {} {} until {:.1f}", end == Network::kClient ? "the client" : fmt::format("w{}", end),
             which == 0   ? "is cut off"
             : which == 1 ? "cannot send"
                          : "cannot hear",
             absl::ToDoubleSeconds(until - Timeline::Start()));
  if (which != 2) network_.Cut(end, Network::kServer, until);
  if (which != 1) network_.Cut(Network::kServer, end, until);
}

void SimulatedCluster::FreezeSomebody() {
  SimulatedWorker* const worker = &AnyWorker();
  worker->Freeze(world_.random.Chance(0.5));
  world_.timeline.After(world_.random.Between(Seconds(0.5), Seconds(30)), [worker] { worker->Thaw(); });
}

void SimulatedCluster::EndFaults() {
  world_.Say("---- the faults end ----");
  world_.faulty = false;
  world_.faults = Faults();
  network_.Heal();
  server_.SetDiskFull(false);
  server_.StartNow();
  for (const auto& worker : workers_) worker->Thaw();
  CalmDown();
}

// Somebody resumes what is paused and undrains what is drained, also by a late command.
void SimulatedCluster::CalmDown() {
  if (server_.core() != nullptr) client_.Calm(*server_.core());
  world_.timeline.After(Seconds(2), [this] { CalmDown(); });
}

// ---- the run ----

bool SimulatedCluster::AllEnded() const {
  if (world_.faulty || server_.core() == nullptr || !client_.AllAnswered()) return false;
  return std::all_of(invariants_.jobs().begin(), invariants_.jobs().end(),
                     [](const auto& entry) { return core::IsTerminal(entry.second.state); });
}

void SimulatedCluster::Run() {
  const absl::Time end = Timeline::Start() + world_.options.faulty + world_.options.calm_max;
  while (!invariants_.violation() && !AllEnded() && world_.timeline.Next() < end) {
    world_.timeline.Run();
    invariants_.CheckProcesses();
    ++events_;
    CheckTimeGoesOn();
  }
  if (!invariants_.violation()) CheckEnds();
  if (const auto& violation = invariants_.violation()) {
    world_.Say("VIOLATION of \"{}\": {}", violation->invariant, violation->text);
  }
}

// Much may happen at once, but not without end: a deadline that stays in the past wakes its owner again and again.
void SimulatedCluster::CheckTimeGoesOn() {
  const absl::Time now = world_.timeline.now();
  if (now >= moment_ + kMoment) {
    moment_ = now;
    events_before_moment_ = events_;
  }
  if (events_ - events_before_moment_ <= kEventsOfAMomentMax) return;
  std::string who;
  for (const auto& worker : workers_) {
    if (worker->WakesBefore(now + absl::Microseconds(10)))
      who += fmt::format("; {} wants to be woken at once", worker->name());
  }
  invariants_.Fail("time goes on", fmt::format("{} things happened within {}{}", events_ - events_before_moment_,
                                               absl::FormatDuration(kMoment), who));
}

void SimulatedCluster::CheckEnds() {
  const auto& jobs = invariants_.jobs();
  for (const auto& [request_id, submitted] : client_.submitted()) {
    const auto found = jobs.find(submitted.job_id);
    if (found == jobs.end()) {
      invariants_.Fail("every job ends", request_id + " was never answered");
      continue;
    }
    const core::Job& job = found->second;
    if (!core::IsTerminal(job.state)) {
      invariants_.Fail("every job ends", fmt::format("{} is {}: {}", job.id, Name(job.state), job.message));
    } else if (!MayEndAs(submitted.plan, job, submitted.cancel_sent, world_.options)) {
      invariants_.Fail("every job ends rightly",
                       fmt::format("{} is {} ({}: {})", job.id, Name(job.state), job.reason, job.message));
    }
  }
  if (jobs.size() != client_.submitted().size()) {
    invariants_.Fail("one request is one job",
                     fmt::format("{} requests made {} jobs", client_.submitted().size(), jobs.size()));
  }
  if (!world_.options.sqlite) return;
  server_.store().Kill(true);
  if (const std::string damage = server_.store().Damage(); !damage.empty()) {
    invariants_.Fail("the database is sound", damage);
  }
  // Once more, for History: everything is there.
  const absl::Status opened = server_.store().Open();
  const absl::StatusOr<core::StoredState> stored = opened.ok() ? server_.store().Load() : opened;
  if (stored.ok()) {
    invariants_.OnLoaded(*stored);
  } else {
    invariants_.Fail("what was committed is loaded", stored.status().ToString());
  }
}

std::string SimulatedCluster::History() {
  std::string text;
  for (const auto& [job_id, job] : invariants_.jobs()) {
    const absl::StatusOr<std::vector<core::JobEvent>> events = server_.store().Events(job_id);
    if (!events.ok()) return events.status().ToString();
    for (const core::JobEvent& event : *events) {
      text += fmt::format("{} {} {:.3f} {} {} {}\n", job_id, event.sequence,
                          absl::ToDoubleSeconds(event.time - Timeline::Start()), Name(event.state), event.reason,
                          event.message);
    }
  }
  return text;
}

SimulatedCluster::Totals SimulatedCluster::totals() const {
  Totals totals;
  for (const auto& [job_id, job] : invariants_.jobs()) {
    ++totals.jobs;
    totals.attempts += job.attempt;
  }
  totals.steps = trainers_.steps_taken();
  totals.commits = server_.commits();
  totals.server_starts = server_.starts();
  totals.events = events_;
  totals.checks = invariants_.checks();
  totals.virtual_seconds = world_.timeline.seconds();
  return totals;
}

}  // namespace longspan::sim
