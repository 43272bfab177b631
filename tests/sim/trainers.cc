#include "tests/sim/trainers.h"

#include <csignal>

namespace longspan::sim {
namespace {

using absl::Milliseconds;
using absl::Seconds;

std::string Name(const worker::RankKey& key) { return worker::ToString(key); }

}  // namespace

Trainers::Process* Trainers::Find(ProcessId id) {
  const auto found = processes_.find(id);
  return found == processes_.end() ? nullptr : &found->second;
}

bool Trainers::IsWritten(const std::string& job_id, const std::string& checkpoint) const {
  const auto found = written_.find(job_id);
  return found != written_.end() && found->second.contains(checkpoint);
}

bool Trainers::CanAct(ProcessId id) const {
  const auto found = processes_.find(id);
  if (found == processes_.end()) return false;
  const Process& p = found->second;
  return !p.ending && !p.stopped && !p.deaf && !p.frozen;
}

// ---- life ----

ProcessId Trainers::Spawn(int worker, const std::string& worker_name, Daemon* daemon, const worker::SpawnRank& spawn) {
  const ProcessId id = ++last_id_;
  Process& p = processes_[id];
  p.id = id;
  p.key = spawn.key;
  p.desired = spawn.desired;
  p.worker = worker;
  p.worker_name = worker_name;
  p.daemon = daemon;
  world_->Say("{}: process {} is {} ({}, slot {}{})", worker_name, id, Name(p.key), p.desired.command(),
              p.desired.slot(), p.desired.resume_from().empty() ? "" : ", from " + p.desired.resume_from());
  invariants_->OnSpawn({id, p.key.job_id, p.key.attempt, p.key.rank, worker_name, p.desired.slot(),
                        p.desired.world_size(), p.desired.command(), p.desired.resume_from(),
                        p.desired.resume_from().empty() || IsWritten(p.key.job_id, p.desired.resume_from())});
  absl::Duration start = world_->random.Between(Milliseconds(100), Seconds(1.2));
  if (world_->random.Chance(world_->faults.slow_start)) start = world_->random.Between(Seconds(5), Seconds(40));
  world_->timeline.After(start, [this, id] { ComeUp(id); });
  return id;
}

void Trainers::ComeUp(ProcessId id) {
  Process* p = Find(id);
  if (p == nullptr || p->ending) return;
  if (p->stopped || p->frozen || p->deaf) {  // loading takes longer then
    world_->timeline.After(Seconds(1), [this, id] { ComeUp(id); });
    return;
  }
  p->up = true;
  Say(*p, lines::Hello{lines::kProtocolVersion, id, p->key.rank, "sim"});
  if (p->stop_asked) return EndSoon(*p, Milliseconds(10), lines::kExitStopped, {lines::Done{true}});
  if (p->desired.command() == "prepare") {
    Say(*p, lines::Phase{"prepare"});
    world_->timeline.After(Milliseconds(200), [this, id] { Prepare(id); });
    return;
  }
  if (p->key.rank == 0) {
    Gang gang;
    gang.address = fmt::format("{}:{}", p->worker_name, id);
    gang.world_size = p->desired.world_size();
    if (!p->desired.resume_from().empty()) gang.step = written_[p->key.job_id][p->desired.resume_from()];
    Say(*p, lines::Rendezvous{gang.address});
    const std::string address = gang.address;
    Join(*p, gangs_.emplace(address, gang).first->second);
  } else {
    Connect(*p);
  }
}

void Trainers::Prepare(ProcessId id) {
  Process* p = Find(id);
  if (p == nullptr || p->ending) return;
  const auto again = [&] { world_->timeline.After(Milliseconds(300), [this, id] { Prepare(id); }); };
  if (!Runs(*p)) return again();
  if (p->stop_asked) return EndSoon(*p, Milliseconds(10), lines::kExitStopped, {lines::Done{true}});
  Misbehave(*p);
  if (!Runs(*p)) return again();
  const int64_t units = PlanOf(*p).prepare_units;
  Say(*p, lines::Progress{"prepare", ++p->units, units, {}});
  if (p->units < units) return again();
  Say(*p, lines::Artifact{"dataset", "dataset", ""});
  EndSoon(*p, Milliseconds(10), lines::kExitDone, {lines::Done{}});
}

void Trainers::Connect(Process& p) {
  if (p.key.rank == 0 || !p.gang.empty() || p.rendezvous.empty() || !Runs(p)) return;
  const auto gang = gangs_.find(p.rendezvous);
  if (gang == gangs_.end() || gang->second.broken) {
    return Fail(p, world_->random.Between(Milliseconds(100), Seconds(2)), "infrastructure",
                "cannot connect to " + p.rendezvous, lines::kExitInfrastructure);
  }
  Join(p, gang->second);
}

void Trainers::Join(Process& p, Gang& gang) {
  p.gang = gang.address;
  gang.members.insert(p.id);
  if (static_cast<int64_t>(gang.members.size()) < gang.world_size) return;
  gang.training = true;
  for (const ProcessId id : gang.members) Say(processes_.at(id), lines::Phase{"train"});
  ScheduleStep(gang);
}

void Trainers::WatchLease(ProcessId id) {
  Process* p = Find(id);
  if (p == nullptr || p->ending) return;
  if (world_->timeline.now() < p->lease_until) {
    world_->timeline.At(p->lease_until, [this, id] { WatchLease(id); });
    return;
  }
  if (p->stopped || p->deaf || p->frozen) return;  // Continue looks again
  Fail(*p, absl::ZeroDuration(), "infrastructure", "the lease of this rank ran out", lines::kExitInfrastructure);
}

// ---- what its daemon does to it ----

void Trainers::Send(ProcessId id, const lines::ToTrainer& line) {
  Process* p = Find(id);
  if (p == nullptr) return;
  if (const auto* lease = std::get_if<lines::Lease>(&line)) {
    const bool first = p->lease_until == absl::InfiniteFuture();
    p->lease_until = world_->timeline.now() + Seconds(lease->remaining_seconds);
    if (first) WatchLease(id);
  } else if (const auto* rendezvous = std::get_if<lines::Rendezvous>(&line)) {
    p->rendezvous = rendezvous->address;
    Connect(*p);
  } else if (std::holds_alternative<lines::Stop>(line)) {
    AskToStop(*p);
  } else if (const auto* recorded = std::get_if<lines::CheckpointRecorded>(&line)) {
    invariants_->OnToldRecorded(p->key.job_id, recorded->name);
  }
}

void Trainers::AskToStop(Process& p) {
  if (p.stop_asked) return;
  p.stop_asked = true;
  if (!Runs(p)) return;
  const auto gang = gangs_.find(p.gang);
  if (gang != gangs_.end() && gang->second.training) return;  // at the next step, all of them
  if (p.desired.command() == "prepare") return;               // likewise
  EndSoon(p, Milliseconds(50), lines::kExitStopped, {lines::Done{true}});
}

void Trainers::Signal(ProcessId id, int signal) {
  Process* p = Find(id);
  if (p == nullptr) return;
  if (signal == SIGKILL) {
    world_->timeline.After(world_->random.Between(absl::ZeroDuration(), Milliseconds(30)),
                           [this, id] { End(id, -1, SIGKILL); });
    return;
  }
  if (p->stopped) {
    p->stopped = false;
    WatchLease(id);
    if ((p = Find(id)) == nullptr || p->ending) return;
  }
  if (!p->deaf) AskToStop(*p);
}

void Trainers::KillAllOf(int worker) {
  std::vector<ProcessId> ids;
  for (const auto& [id, p] : processes_) {
    if (p.worker == worker) ids.push_back(id);
  }
  for (const ProcessId id : ids) {
    processes_.at(id).daemon = nullptr;  // nobody hears of it
    End(id, -1, SIGKILL);
  }
}

void Trainers::FreezeAllOf(int worker, bool machine) {
  for (auto& [id, p] : processes_) {
    if (p.worker != worker) continue;
    p.frozen = machine;
    invariants_->OnDaemonFrozen(id);
  }
}

void Trainers::ThawAllOf(int worker) {
  std::vector<ProcessId> woken;
  for (auto& [id, p] : processes_) {
    if (p.worker == worker && std::exchange(p.frozen, false)) woken.push_back(id);
  }
  invariants_->ProcessesChanged();
  for (const ProcessId id : woken) {
    WatchLease(id);
    if (Process* p = Find(id)) Connect(*p);
  }
}

// ---- faults of its own ----

void Trainers::Misbehave(Process& p) {
  Random& random = world_->random;
  if (random.Chance(world_->faults.rank_crashes)) {
    world_->Say("{}: {} crashes", p.worker_name, Name(p.key));
    p.ending = true;
    world_->timeline.After(absl::ZeroDuration(), [this, id = p.id] { End(id, -1, SIGSEGV); });
  } else if (random.Chance(world_->faults.rank_hangs)) {
    (random.Chance(0.5) ? p.stopped : p.deaf) = true;
    world_->Say("{}: {} {}", p.worker_name, Name(p.key), p.deaf ? "hangs and is deaf" : "is stopped");
    if (!p.stopped || !random.Chance(0.3)) return;
    world_->timeline.After(random.Between(Seconds(1), Seconds(30)), [this, id = p.id] {  // SIGCONT
      Process* woken = Find(id);
      if (woken == nullptr) return;
      woken->stopped = false;
      invariants_->ProcessesChanged();
      WatchLease(id);
      if (Process* p = Find(id)) Connect(*p);
    });
  }
}

// ---- gangs ----

Trainers::Process* Trainers::Leader(Gang& gang) {
  for (const ProcessId id : gang.members) {
    Process* p = Find(id);
    if (p != nullptr && p->key.rank == 0) return p;
  }
  return nullptr;
}

bool Trainers::AllRun(const Gang& gang) {
  for (const ProcessId id : gang.members) {
    const Process* p = Find(id);
    if (p == nullptr || !Runs(*p)) return false;
  }
  return true;
}

void Trainers::ScheduleStep(Gang& gang) {
  const Process* leader = Leader(gang);
  if (leader == nullptr) return;
  const absl::Duration time = PlanOf(*leader).step_time * (0.8 + 0.4 * world_->random.Real());
  world_->timeline.After(time, [this, address = gang.address] { Step(address); });
}

void Trainers::Step(const std::string& address) {
  const auto found = gangs_.find(address);
  if (found == gangs_.end() || found->second.broken || found->second.writing) return;
  Gang& gang = found->second;
  if (!AllRun(gang)) return ScheduleStep(gang);  // one of them hangs: they wait in the collective
  for (const ProcessId id : gang.members) Misbehave(processes_.at(id));
  if (world_->random.Chance(world_->faults.peers_cut)) return BreakGang(gang);
  if (!AllRun(gang)) return ScheduleStep(gang);

  Process& leader = *Leader(gang);
  const JobPlan& plan = PlanOf(leader);
  for (const ProcessId id : gang.members) {
    if (processes_.at(id).stop_asked) return WriteCheckpoint(gang, true);
  }
  if (gang.step < plan.steps) {
    ++gang.step;
    ++steps_taken_;
    std::vector<ProcessId> members(gang.members.begin(), gang.members.end());
    invariants_->OnTrainingStep(leader.key.job_id, leader.key.attempt, gang.step, members);
    if (gang.step == plan.user_error_at) {
      return Fail(leader, Milliseconds(5), "user", "the corpus has no text in line 7", lines::kExitUserData);
    }
    if (gang.step == plan.resource_error_at) {
      return Fail(processes_.at(*gang.members.rbegin()), Milliseconds(5), "resource", "out of memory",
                  lines::kExitResource);
    }
    Say(leader, lines::Progress{"train", gang.step, plan.steps, {{"loss", 1.0 / static_cast<double>(gang.step)}}});
    if (gang.step % plan.checkpoint_every == 0) return WriteCheckpoint(gang, false);
    return ScheduleStep(gang);
  }
  FinishGang(gang);
}

void Trainers::WriteCheckpoint(Gang& gang, bool then_stop) {
  Random& random = world_->random;
  absl::Duration time = random.Between(Milliseconds(5), Milliseconds(150));
  if (random.Chance(world_->faults.slow_checkpoint)) time = random.Between(Seconds(2), Seconds(15));
  if (then_stop && random.Chance(world_->faults.slow_stop)) time = random.Between(Seconds(2), Seconds(30));
  Process& leader = *Leader(gang);
  if (time > Seconds(1)) Say(leader, lines::Expect{"checkpoint", absl::ToDoubleSeconds(time) + 1});
  const std::string name = fmt::format("step-{:03}.attempt-{}", gang.step, leader.key.attempt);
  gang.writing = true;
  world_->timeline.After(time, [this, address = gang.address, name, step = gang.step, then_stop] {
    CheckpointWritten(address, name, step, then_stop);
  });
}

void Trainers::CheckpointWritten(const std::string& address, const std::string& name, int64_t step, bool then_stop) {
  const auto found = gangs_.find(address);
  if (found == gangs_.end() || found->second.broken) return;
  Gang& gang = found->second;
  if (!AllRun(gang)) {  // its writer or a shard of it hangs
    world_->timeline.After(Milliseconds(500), [=, this] { CheckpointWritten(address, name, step, then_stop); });
    return;
  }
  gang.writing = false;
  Process& leader = *Leader(gang);
  written_[leader.key.job_id].emplace(name, step);
  lines::Checkpoint line;
  line.name = name;
  line.step = step;
  line.manifest_sha256 = "sha-" + name;
  line.size_bytes = 1;
  Say(leader, line);
  if (then_stop) return StopGang(gang);
  ScheduleStep(gang);
}

void Trainers::StopGang(Gang& gang) {
  for (const ProcessId id : gang.members) {
    EndSoon(processes_.at(id), world_->random.Between(Milliseconds(1), Milliseconds(100)), lines::kExitStopped,
            {lines::Done{true}});
  }
}

void Trainers::FinishGang(Gang& gang) {
  Process& leader = *Leader(gang);
  lines::Evaluation evaluation;
  evaluation.model = "extended";
  evaluation.length = 8192;
  evaluation.protocol = "windows";
  evaluation.step = gang.step;
  evaluation.perplexity = 2;
  Say(leader, evaluation);
  Say(leader, lines::Artifact{"adapter", "adapter", ""});
  for (const ProcessId id : gang.members) {
    EndSoon(processes_.at(id), world_->random.Between(Milliseconds(1), Milliseconds(100)), lines::kExitDone,
            {lines::Done{}});
  }
}

// Every member that is left notices in its own time.
void Trainers::BreakGang(Gang& gang) {
  if (gang.broken) return;
  gang.broken = true;
  for (const ProcessId id : gang.members) {
    Process* p = Find(id);
    if (p == nullptr || p->ending) continue;
    const absl::Duration delay = world_->random.Between(Milliseconds(20), Seconds(3));
    world_->timeline.After(delay, [this, id] {
      Process* left = Find(id);
      if (left == nullptr || !Runs(*left)) return;
      Fail(*left, absl::ZeroDuration(), "infrastructure", "connection closed by peer", lines::kExitInfrastructure);
    });
  }
}

// ---- ends ----

void Trainers::Say(Process& p, lines::FromTrainer line) {
  if (p.daemon != nullptr) p.daemon->OnLine(p.key, std::move(line));
}

void Trainers::EndSoon(Process& p, absl::Duration delay, int exit_code, std::vector<lines::FromTrainer> last_words) {
  if (p.ending) return;
  p.ending = true;
  world_->timeline.After(delay, [this, id = p.id, exit_code, last_words = std::move(last_words)] {
    Process* ending = Find(id);
    if (ending == nullptr) return;
    for (const lines::FromTrainer& line : last_words) Say(*ending, line);
    End(id, exit_code, 0);
  });
}

void Trainers::Fail(Process& p, absl::Duration delay, const char* failure_class, const std::string& message,
                    int exit_code) {
  EndSoon(p, delay, exit_code, {lines::Failed{failure_class, message}});
}

void Trainers::End(ProcessId id, int exit_code, int signal) {
  Process* p = Find(id);
  if (p == nullptr) return;
  world_->Say("{}: process {}, {}, ends with {} {}", p->worker_name, id, Name(p->key), signal ? "signal" : "code",
              signal ? signal : exit_code);
  invariants_->OnProcessGone(id);
  const auto gang = gangs_.find(p->gang);
  const bool well = signal == 0 && (exit_code == lines::kExitDone || exit_code == lines::kExitStopped);
  if (gang != gangs_.end()) {
    gang->second.members.erase(id);
    // Those that stop or are done together are not surprised.
    bool others_end_too = well;
    for (const ProcessId other : gang->second.members) others_end_too &= processes_.at(other).ending;
    if (!others_end_too) BreakGang(gang->second);
    if (gang->second.members.empty()) gangs_.erase(gang);
  }
  Daemon* const daemon = p->daemon;
  const worker::RankKey key = p->key;
  processes_.erase(id);
  if (daemon != nullptr) daemon->OnProcessEnd(id, key, {signal != 0 ? -1 : exit_code, signal, ""});
}

}  // namespace longspan::sim
