#include "tests/sim/simulated_server.h"

#include <algorithm>

#include "proto/support/check.h"
#include "server/rpc/messages.h"

namespace longspan::sim {
namespace {

constexpr absl::Duration kGroup = absl::Milliseconds(4);  // what comes within it is one commit
constexpr absl::Duration kTickDistanceMin = absl::Milliseconds(10);
constexpr absl::Duration kReloadAfter = absl::Seconds(1);
constexpr absl::Duration kCallAgainFenced = absl::Milliseconds(500);
constexpr double kSampled = 0.01;  // of the turns: memory against store

// As in fleet_service.cc.
bool BringsNews(const v1::SynchronizeRequest& request) {
  return std::any_of(request.ranks().begin(), request.ranks().end(), [](const v1::RankReport& rank) {
    return rank.samples_size() > 0 || rank.checkpoints_size() > 0 || rank.has_exit();
  });
}

void SetDuration(absl::Duration duration, google::protobuf::Duration* message) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  message->set_seconds(seconds);
  message->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

}  // namespace

core::CoreOptions CoreSettings(const SimulationOptions& options) {
  core::CoreOptions core;
  core.jobs_folder = "/jobs";
  core.lease = options.lease;
  core.slot_reuse_after =
      options.lease + absl::Seconds(3);  // a worker's kill grace, and what clocks drift, lie between
  core.restart_grace = options.lease + absl::Seconds(5);
  core.kill_grace = absl::Seconds(3);
  core.checkpoint_grace = absl::Seconds(10);
  core.start_deadline = absl::Seconds(20);
  core.backoff_max = absl::Seconds(5);
  core.avoid_worker = absl::Seconds(30);
  core.first_progress_deadline = absl::Seconds(15);
  core.progress_deadline_min = absl::Seconds(10);
  core.stalled_attempts_max = options.stalled_attempts_max;
  core.min_run_time = absl::Seconds(4);
  core.schedule_interval = absl::Seconds(2);
  core.scheduler.reservation = absl::Seconds(20);
  core.scheduler.resize_interval = absl::Seconds(4);
  core.scheduler.usage_half_life = absl::Seconds(60);
  return core;
}

SimulatedServer::SimulatedServer(World* world, Invariants* invariants)
    : world_(world),
      invariants_(invariants),
      store_(world->options.sqlite ? MakeSqliteStore(&world->random) : MakeMemoryStore()) {
  Start();
}

// ---- life ----

void SimulatedServer::Start() {
  ++life_;
  ++starts_;
  running_ = true;
  world_->Say("server: starts");
  absl::Status status = store_->Open();
  if (status.ok()) status = Reload();
  if (!status.ok()) {
    world_->Say("server: cannot start: {}", status.ToString());
    if (absl::IsDataLoss(status)) invariants_->Fail("what was committed is loaded", status.ToString());
    Die("at its start", false);
  }
}

void SimulatedServer::StartNow() {
  if (!running_) Start();
}

absl::Status SimulatedServer::Reload() {
  absl::StatusOr<core::StoredState> stored = store_->Load();
  if (!stored.ok()) return stored.status();
  invariants_->OnLoaded(*stored);
  auto core = std::make_unique<core::Core>(CoreSettings(world_->options));
  const core::Effects effects = core->Step(core::Restarted{*std::move(stored)}, world_->timeline.now());
  invariants_->CheckTransaction(effects.transaction);
  if (absl::Status committed = store_->Commit(effects.transaction); !committed.ok()) return committed;
  invariants_->OnCommitted(effects.transaction);
  core_ = std::move(core);
  tick_soon_ = true;
  ScheduleTurn(world_->timeline.now() + kGroup);
  return absl::OkStatus();
}

void SimulatedServer::Crash() {
  if (running_) Die("at some time", world_->random.Chance(world_->faults.power_cut));
}

void SimulatedServer::Die(const char* when, bool power_cut) {
  world_->Say("server: dies {}{}", when, power_cut ? ", and its power with it" : "");
  running_ = false;
  ++life_;
  core_.reset();
  queue_.clear();
  held_.clear();
  turn_at_ = absl::InfiniteFuture();
  store_->Kill(power_cut);
  const absl::Duration most = world_->options.server_away_max;
  const bool soon = world_->random.Chance(0.7);
  const absl::Duration away =
      world_->random.Between(absl::Seconds(0.2), soon ? std::min(most, absl::Seconds(3)) : most);
  world_->timeline.After(away, [this] { StartNow(); });
}

void SimulatedServer::SetDiskFull(bool full) {
  world_->Say("server: the disk {}", full ? "is full" : "has room again");
  store_->SetFull(full);
}

void SimulatedServer::LoseCore(const absl::Status& cause) {
  world_->Say("server: cannot store: {}", cause.ToString());
  core_.reset();
  tick_soon_ = false;
  ReloadLater();
}

void SimulatedServer::ReloadLater() {
  world_->timeline.After(kReloadAfter, [this, life = life_] {
    if (life != life_ || core_ != nullptr) return;
    if (const absl::Status status = Reload(); !status.ok()) {
      world_->Say("server: cannot load: {}", status.ToString());
      ReloadLater();
      return;
    }
    world_->Say("server: the store works again");
    std::vector<WorkerId> workers;
    for (const auto& [worker_id, held] : held_) workers.push_back(worker_id);
    for (const WorkerId& worker_id : workers) EndHeldIfChanged(worker_id);
  });
}

// ---- the coordinator's turn ----

void SimulatedServer::ScheduleTurn(absl::Time at) {
  if (at >= turn_at_) return;
  turn_at_ = at;
  world_->timeline.At(at, [this, life = life_, at] {
    if (life != life_ || turn_at_ != at) return;
    turn_at_ = absl::InfiniteFuture();
    Turn();
  });
}

void SimulatedServer::Command(core::Event event, RespondReply respond) {
  if (!running_) return;
  queue_.push_back({std::move(event), std::move(respond)});
  ScheduleTurn(world_->timeline.now() + kGroup);
}

bool SimulatedServer::Commit(const core::Transaction& transaction, absl::Status* failed) {
  if (transaction.empty()) return true;
  invariants_->CheckTransaction(transaction);
  if (invariants_->violation()) return false;
  Random& random = world_->random;
  const Faults& faults = world_->faults;
  if (random.Chance(faults.server_crash_before_commit)) {
    Die("before a commit", random.Chance(faults.power_cut));
    return false;
  }
  if (random.Chance(faults.commit_fails)) store_->FailNextCommit();
  if (random.Chance(faults.server_crash_in_commit)) store_->DieInNextCommit();
  const absl::Status committed = store_->Commit(transaction);
  if (store_->died()) {
    invariants_->OnCommitUncertain(transaction);
    Die("in a commit", random.Chance(faults.power_cut));
    return false;
  }
  if (!committed.ok() && absl::IsInternal(committed)) {
    invariants_->OnCommitUncertain(transaction);
    Die("because the store failed", false);
    return false;
  }
  if (!committed.ok()) {
    LoseCore(committed);
    *failed = committed;
    return false;
  }
  ++commits_;
  invariants_->OnCommitted(transaction);
  if (random.Chance(faults.server_crash_after_commit)) {
    Die("after a commit, before its answers", random.Chance(faults.power_cut));
    return false;
  }
  return true;
}

void SimulatedServer::Turn() {
  std::vector<Waiting> items = std::exchange(queue_, {});
  const absl::Time now = world_->timeline.now();
  if (core_ == nullptr) {
    for (const Waiting& item : items) item.respond(absl::UnavailableError("the server cannot store anything now"));
    return;
  }
  core::Transaction transaction;
  std::vector<core::Reply> replies;
  std::vector<WorkerId> changed;
  const auto step = [&](const core::Event& event) {
    core::Effects effects = core_->Step(event, now);
    for (const auto& [job_id, event_row] : effects.transaction.events) {
      world_->Say("server: {} {} {}: {}", job_id, Name(event_row.state), event_row.reason, event_row.message);
    }
    transaction.Append(std::move(effects.transaction));
    changed.insert(changed.end(), effects.changed_workers.begin(), effects.changed_workers.end());
    tick_soon_ = tick_soon_ || effects.tick_soon;
    return std::move(effects.reply);
  };
  for (const Waiting& item : items) replies.push_back(step(item.event));
  if (tick_soon_ || (now >= core_->NextDeadline() && now >= last_tick_ + kTickDistanceMin)) {
    tick_soon_ = false;
    step(core::Tick{});
    last_tick_ = now;
  }
  absl::Status failed;
  const int64_t life = life_;
  if (!Commit(transaction, &failed)) {
    if (!failed.ok()) {
      for (const Waiting& item : items) item.respond(failed);
    }
    return;
  }
  for (size_t i = 0; i < items.size() && life == life_; ++i) items[i].respond(std::move(replies[i]));
  std::sort(changed.begin(), changed.end());
  changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
  for (const WorkerId& worker_id : changed) EndHeldIfChanged(worker_id);
  AfterTurn();
}

void SimulatedServer::AfterTurn() {
  if (!tick_soon_) invariants_->CheckWaiting(*core_);
  if (world_->random.Chance(kSampled)) Sample();
  const absl::Time next = std::max(core_->NextDeadline(), last_tick_ + kTickDistanceMin);
  if (tick_soon_) return ScheduleTurn(world_->timeline.now() + kGroup);
  if (next < absl::InfiniteFuture()) ScheduleTurn(next);
}

void SimulatedServer::Sample() {
  const absl::StatusOr<core::StoredState> stored = store_->Load();
  if (!stored.ok()) return;  // the next turn sees it too
  invariants_->CompareWithStore(*core_, *stored, CoreSettings(world_->options), world_->timeline.now());
}

// ---- Synchronize, as fleet_service.cc has it ----

void SimulatedServer::Synchronize(const std::string& request_bytes, Respond respond) {
  if (!running_) return;
  v1::SynchronizeRequest request;
  CHECK(request.ParseFromString(request_bytes));
  absl::StatusOr<core::WorkerReport> report = rpc::FromMessage(request);
  if (!report.ok()) return respond(false, report.status().ToString());
  EndHeld(report->worker_id, 0);
  const rpc::ActedOn acted_on = rpc::ActedOnOf(request);
  const bool brings_news = BringsNews(request);
  Command(*std::move(report), [this, acted_on, brings_news, respond](absl::StatusOr<core::Reply> reply) {
    if (!reply.ok()) return respond(false, reply.status().ToString());
    const auto& report_reply = std::get<core::ReportReply>(*reply);
    if (!report_reply.status.ok()) return respond(false, report_reply.status.ToString());
    Reported(acted_on, brings_news, report_reply, respond);
  });
}

void SimulatedServer::Reported(const rpc::ActedOn& acted_on, bool brings_news, const core::ReportReply& reply,
                               Respond respond) {
  v1::SynchronizeResponse answer;
  bool fenced = false;
  for (const core::RankAcknowledgement& acknowledgement : reply.acknowledged) {
    *answer.add_acknowledged() = rpc::ToMessage(acknowledgement);
    fenced |= acknowledgement.fenced;
  }
  SetDuration(CoreSettings(world_->options).lease, answer.mutable_lease());
  if (!reply.greeting.empty()) {
    answer.set_desired_fingerprint(reply.greeting);
    return respond(true, answer.SerializeAsString());
  }
  if (fenced) SetDuration(kCallAgainFenced, answer.mutable_call_again());
  if (!brings_news && !fenced && rpc::IsUpToDate(*core_, acted_on)) {
    return Hold(acted_on, std::move(answer), std::move(respond));
  }
  AnswerWithDesired(acted_on, std::move(answer), respond);
}

void SimulatedServer::AnswerWithDesired(const rpc::ActedOn& acted_on, v1::SynchronizeResponse answer,
                                        const Respond& respond) {
  rpc::SetDesired(*core_, acted_on, &answer);
  respond(true, answer.SerializeAsString());
}

void SimulatedServer::Hold(const rpc::ActedOn& acted_on, v1::SynchronizeResponse answer, Respond respond) {
  EndHeld(acted_on.worker_id, 0);
  const uint64_t number = ++last_number_;
  held_[acted_on.worker_id] = {std::move(respond), number, acted_on, std::move(answer)};
  const absl::Duration hold = CoreSettings(world_->options).lease / 4;
  world_->timeline.After(hold, [this, life = life_, worker_id = acted_on.worker_id, number] {
    if (life == life_) EndHeld(worker_id, number);
  });
}

void SimulatedServer::EndHeld(const WorkerId& worker_id, uint64_t number) {
  const auto found = held_.find(worker_id);
  if (found == held_.end() || (number != 0 && found->second.number != number)) return;
  const Held held = std::move(found->second);
  held_.erase(found);
  if (core_ == nullptr) return held.respond(false, "UNAVAILABLE");
  AnswerWithDesired(held.acted_on, held.answer, held.respond);
}

void SimulatedServer::EndHeldIfChanged(const WorkerId& worker_id) {
  const auto found = held_.find(worker_id);
  if (found == held_.end()) return;
  if (core_ != nullptr && rpc::IsUpToDate(*core_, found->second.acted_on)) return;
  EndHeld(worker_id, 0);
}

}  // namespace longspan::sim
