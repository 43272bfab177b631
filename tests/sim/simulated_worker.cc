#include "tests/sim/simulated_worker.h"

#include <csignal>

#include "proto/support/brings_news.h"
#include "proto/support/check.h"
#include "tests/sim/simulated_server.h"

namespace longspan::sim {
namespace {

constexpr absl::Duration kLeaveGrace = absl::Seconds(8);
constexpr absl::Duration kLeaveReportMax = absl::Seconds(3);
constexpr absl::Duration kKillTakesMax = absl::Milliseconds(100);

worker::SupervisorOptions SupervisorSettings() {
  worker::SupervisorOptions options;
  options.kill_grace = absl::Seconds(2);
  return options;
}

worker::SynchronizeScheduleOptions ScheduleSettings(uint64_t seed) {
  worker::SynchronizeScheduleOptions options;
  options.call_deadline = absl::Seconds(4);
  options.backoff_max = absl::Seconds(2);
  options.seed = seed;
  return options;
}

}  // namespace

SimulatedWorker::SimulatedWorker(World* world, Network* network, SimulatedServer* server, Trainers* trainers,
                                 Invariants* invariants, int number, int64_t slots)
    : world_(world),
      network_(network),
      server_(server),
      trainers_(trainers),
      invariants_(invariants),
      number_(number),
      name_(fmt::format("w{}", number)),
      slots_(slots),
      rate_(1 + world->options.clock_drift * (2 * world->random.Real() - 1)),
      wall_offset_(world->random.Between(-absl::Seconds(3), absl::Seconds(3))) {
  Start();
}

// ---- its clock ----

absl::Time SimulatedWorker::Local() const {
  return absl::UnixEpoch() + absl::Hours(number_) + (world_->timeline.now() - Timeline::Start()) * rate_;
}

absl::Time SimulatedWorker::ToGlobal(absl::Time local) const {
  if (local == absl::InfiniteFuture() || local == absl::InfinitePast()) return local;
  // Rounded up: when it comes the time has come.
  return Timeline::Start() + (local - absl::UnixEpoch() - absl::Hours(number_)) / rate_ + absl::Nanoseconds(10);
}

// ---- its life ----

void SimulatedWorker::Start() {
  daemon_ = std::make_unique<DaemonProcess>(
      DaemonProcess{worker::Supervisor(SupervisorSettings()),
                    worker::SynchronizeSchedule(ScheduleSettings(world_->random.Next())),
                    fmt::format("{}-{}", name_, ++life_),
                    {},
                    {},
                    {}});
  world_->Say("{}: daemon {} starts", name_, daemon_->incarnation);
  Loop();
}

void SimulatedWorker::Restart(absl::Duration after) {
  world_->timeline.After(after, [this] {
    if (daemon_ == nullptr) Start();
  });
}

void SimulatedWorker::Crash() {
  if (daemon_ == nullptr) return;
  world_->Say("{}: the daemon crashes", name_);
  daemon_.reset();
  frozen_ = false;
  inbox_.clear();
  trainers_->KillAllOf(number_);
  Restart(world_->random.Chance(0.7) ? world_->random.Between(absl::ZeroDuration(), absl::Seconds(5))
                                     : world_->random.Between(absl::Seconds(5), absl::Seconds(30)));
}

void SimulatedWorker::Leave() {
  if (daemon_ == nullptr || daemon_->leave_deadline != absl::InfiniteFuture()) return;
  Turn([this] {
    world_->Say("{}: told to leave", name_);
    const absl::Time now = Local();
    daemon_->leave_deadline = now + kLeaveGrace + SupervisorSettings().kill_grace + kLeaveReportMax;
    Apply(daemon_->supervisor.BeginLeaving(kLeaveGrace, now));
  });
}

bool SimulatedWorker::Left(absl::Time now) const {
  const DaemonProcess& d = *daemon_;
  if (d.leave_deadline == absl::InfiniteFuture()) return false;
  return now >= d.leave_deadline || (d.running.empty() && d.supervisor.Idle() && d.leaving_answered);
}

void SimulatedWorker::JumpWallClock(absl::Duration by) {
  world_->Say("{}: its wall clock is set by {}", name_, absl::FormatDuration(by));
  wall_offset_ += by;
}

void SimulatedWorker::Freeze(bool machine) {
  if (daemon_ == nullptr || frozen_) return;
  world_->Say("{}: {}", name_, machine ? "the machine sleeps" : "the daemon is frozen");
  frozen_ = true;
  trainers_->FreezeAllOf(number_, machine);
}

void SimulatedWorker::Thaw() {
  if (!frozen_) return;
  world_->Say("{}: goes on", name_);
  frozen_ = false;
  thawed_at_ = Local();
  trainers_->ThawAllOf(number_);
  Loop();  // leases before news
  while (!frozen_ && daemon_ != nullptr && !inbox_.empty()) {
    const std::function<void()> work = std::move(inbox_.front());
    inbox_.pop_front();
    Turn(work);
  }
}

// ---- its loop ----

void SimulatedWorker::Turn(std::function<void()> work) {
  if (daemon_ == nullptr) return;
  if (frozen_) {
    inbox_.push_back(std::move(work));
    return;
  }
  Apply(daemon_->supervisor.OnTick(Local()));
  work();
  Loop();
}

void SimulatedWorker::Loop() {
  if (daemon_ == nullptr || frozen_) return;
  const absl::Time now = Local();
  Apply(daemon_->supervisor.OnTick(now));
  if (Left(now)) {
    world_->Say("{}: the daemon has left", name_);
    daemon_.reset();
    trainers_->KillAllOf(number_);
    return Restart(world_->random.Between(absl::Seconds(1), absl::Seconds(20)));
  }
  DaemonProcess& d = *daemon_;
  if (d.running.empty() && d.leave_deadline != absl::InfiniteFuture()) {
    d.leave_deadline = std::min(d.leave_deadline, now + kLeaveReportMax);
  }
  const auto next_report = [&d] { return d.schedule.NextCall(d.supervisor.ChangeDue(), d.supervisor.ProgressDue()); };
  if (next_report() <= now) SendReport(now);
  const absl::Time next = ToGlobal(std::min({d.supervisor.Deadline(), next_report(), d.leave_deadline}));
  if (next == absl::InfiniteFuture() || next >= d.wake_at) return;
  d.wake_at = std::max(next, world_->timeline.now() + absl::Microseconds(1));
  world_->timeline.At(d.wake_at, [this, life = life_, at = d.wake_at] {
    if (daemon_ == nullptr || life != life_ || daemon_->wake_at != at) return;
    daemon_->wake_at = absl::InfiniteFuture();
    Loop();
  });
}

void SimulatedWorker::SendReport(absl::Time now) {
  DaemonProcess& d = *daemon_;
  v1::SynchronizeRequest request;
  request.set_worker_id(name_);
  request.set_incarnation_id(d.incarnation);
  request.set_advertise_address(name_);
  for (int64_t i = 0; i < slots_; ++i) {
    v1::Slot* slot = request.add_slots();
    slot->set_index(i);
    slot->set_device("cpu");
    slot->set_memory_bytes(1 << 30);
  }
  d.supervisor.FillReport(now, &request);
  const int64_t sequence = d.schedule.OnSent(BringsNews(request), now);
  request.set_sequence(sequence);
  d.calls.emplace(sequence, now);
  if (request.leaving()) d.leaving_calls.emplace(sequence, true);
  const int64_t life = life_;
  network_->Send(number_, Network::kServer, [this, life, sequence, bytes = request.SerializeAsString()] {
    server_->Synchronize(bytes, [this, life, sequence](bool ok, std::string answer) {
      network_->Send(Network::kServer, number_, [this, life, sequence, ok, answer = std::move(answer)] {
        if (life == life_) Turn([=, this] { OnAnswer(life, sequence, ok, answer); });
      });
    });
  });
  const absl::Time deadline = ToGlobal(now + ScheduleSettings(0).call_deadline);
  world_->timeline.At(deadline, [this, life, sequence] {
    if (life == life_ && daemon_ != nullptr && daemon_->calls.contains(sequence)) {
      Turn([=, this] { OnAnswer(life, sequence, false, "deadline"); });
    }
  });
}

void SimulatedWorker::OnAnswer(int64_t life, int64_t sequence, bool ok, const std::string& bytes) {
  if (life != life_) return;  // of a daemon before, found in the inbox when the machine went on
  DaemonProcess& d = *daemon_;
  const auto call = d.calls.extract(sequence);
  if (call.empty()) return;  // a call ends once
  const absl::Time now = Local();
  if (!ok) return d.schedule.OnFailure(sequence, now);
  v1::SynchronizeResponse answer;
  CHECK(answer.ParseFromString(bytes));
  const absl::Duration again =
      absl::Seconds(answer.call_again().seconds()) + absl::Nanoseconds(answer.call_again().nanos());
  for (const v1::RankAcknowledgement& acknowledgement : answer.acknowledged()) {
    invariants_->OnAcknowledged(acknowledgement);
  }
  if (!d.schedule.OnAnswer(sequence, again, now)) return;
  d.leaving_answered |= d.leaving_calls.contains(sequence);
  NoteLease(answer, call.mapped());
  Apply(d.supervisor.OnAnswer(answer, call.mapped(), now));
}

void SimulatedWorker::NoteLease(const v1::SynchronizeResponse& answer, absl::Time sent) {
  if (!answer.has_lease()) return;
  const absl::Duration lease = absl::Seconds(answer.lease().seconds()) + absl::Nanoseconds(answer.lease().nanos());
  daemon_->lease_until = std::max(daemon_->lease_until, sent + lease);
  CheckLeaseAt(daemon_->lease_until + SupervisorSettings().kill_grace + kKillTakesMax);
}

void SimulatedWorker::CheckLeaseAt(absl::Time local) {
  world_->timeline.At(ToGlobal(local), [this, life = life_, until = daemon_->lease_until] {
    if (life != life_ || daemon_ == nullptr || daemon_->lease_until != until) return;
    const absl::Time awake_since = frozen_ ? Local() : thawed_at_;
    const absl::Time due = std::max(until, awake_since) + SupervisorSettings().kill_grace + kKillTakesMax;
    if (due > Local()) return CheckLeaseAt(due);
    for (const auto& [key, id] : daemon_->running) {
      invariants_->Fail("a lease ends its ranks",
                        fmt::format("process {} ({}) of {} lives {} after the lease", id, worker::ToString(key), name_,
                                    absl::FormatDuration(Local() - until)));
    }
  });
}

// ---- effects ----

void SimulatedWorker::Apply(const worker::Effects& effects) {
  for (const worker::Effect& effect : effects) {
    if (const auto* spawn = std::get_if<worker::SpawnRank>(&effect)) {
      Spawn(*spawn);
    } else if (const auto* send = std::get_if<worker::SendLine>(&effect)) {
      const auto found = daemon_->running.find(send->key);
      if (found != daemon_->running.end()) trainers_->Send(found->second, send->line);
    } else if (const auto* signal = std::get_if<worker::SignalRank>(&effect)) {
      const auto found = daemon_->running.find(signal->key);
      if (found != daemon_->running.end()) trainers_->Signal(found->second, signal->signal);
    } else if (const auto* note = std::get_if<worker::Note>(&effect)) {
      world_->Say("{}: {}", name_, note->text);
    }
  }
}

void SimulatedWorker::Spawn(const worker::SpawnRank& spawn) {
  if (world_->random.Chance(world_->faults.spawn_fails)) {
    return Apply(daemon_->supervisor.OnSpawnFailed(spawn.key, "no memory for a process", Local()));
  }
  daemon_->running[spawn.key] = trainers_->Spawn(number_, name_, this, spawn);
}

void SimulatedWorker::OnLine(const worker::RankKey& key, lines::FromTrainer line) {
  Turn([this, key, line = std::move(line)] { Apply(daemon_->supervisor.OnLine(key, line, Local(), Wall())); });
}

void SimulatedWorker::OnProcessEnd(ProcessId id, const worker::RankKey& key, worker::ProcessEnd end) {
  Turn([this, id, key, end = std::move(end)] {
    const auto found = daemon_->running.find(key);
    if (found == daemon_->running.end() || found->second != id) return;
    daemon_->running.erase(found);
    Apply(daemon_->supervisor.OnExit(key, end, Local()));
  });
}

}  // namespace longspan::sim
