#include "tests/sim/simulated_server.h"

#include <algorithm>

#include "proto/support/brings_news.h"
#include "proto/support/check.h"
#include "server/rpc/messages.h"

namespace longspan::sim {
namespace {

constexpr absl::Duration kGroup = absl::Milliseconds(4);  // what comes within it is one commit
constexpr absl::Duration kCallAgainFenced = absl::Milliseconds(500);
constexpr double kSampled = 0.01;  // of the turns: memory against store

void SetDuration(absl::Duration duration, google::protobuf::Duration* message) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  message->set_seconds(seconds);
  message->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

rpc::DurableCore::Options DurableSettings(const SimulationOptions& options) {
  rpc::DurableCore::Options durable;
  durable.core = CoreSettings(options);
  durable.tick = absl::InfiniteDuration();  // deadlines alone: one that is missing shows
  return durable;
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
      store_(world->options.sqlite ? MakeSqliteStore(&world->random) : MakeMemoryStore()),
      watched_(world, invariants, store_.get(),
               [this](const char* when, bool power_cut) { death_ = Death{when, power_cut}; }) {
  Start();
}

// ---- life ----

void SimulatedServer::Start() {
  ++life_;
  ++starts_;
  world_->Say("server: starts");
  durable_ = std::make_unique<rpc::DurableCore>(DurableSettings(world_->options), Hooks(), &watched_, &observer_);
  absl::Status status = store_->Open();
  if (status.ok()) status = durable_->Load();
  if (!status.ok()) {
    world_->Say("server: cannot start: {}", status.ToString());
    if (absl::IsDataLoss(status)) invariants_->Fail("what was committed is loaded", status.ToString());
    return Die({"at its start", false});
  }
  watched_.Loaded();
  ScheduleTurn(world_->timeline.now() + kGroup);
}

rpc::DurableCore::Hooks SimulatedServer::Hooks() {
  rpc::DurableCore::Hooks hooks;
  hooks.now = [this] { return world_->timeline.now(); };
  hooks.on_lost = [this](const absl::Status& cause) {
    world_->Say("server: cannot store: {}", cause.ToString());
    if (absl::IsInternal(cause) && !death_) death_ = Death{"because the store failed", false};
  };
  hooks.on_back = [this] {
    watched_.Loaded();
    world_->Say("server: the store works again");
    std::vector<WorkerId> workers;
    workers.reserve(held_.size());
    for (const auto& [worker_id, held] : held_) workers.push_back(worker_id);
    for (const WorkerId& worker_id : workers) EndHeldIfChanged(worker_id);
  };
  return hooks;
}

void SimulatedServer::StartNow() {
  if (durable_ == nullptr) Start();
}

void SimulatedServer::Crash() {
  if (durable_ != nullptr) Die({"at some time", world_->random.Chance(world_->faults.power_cut)});
}

void SimulatedServer::Die(const Death& death) {
  world_->Say("server: dies {}{}", death.when, death.power_cut ? ", and its power with it" : "");
  ++life_;
  durable_.reset();
  death_.reset();
  queue_.clear();
  held_.clear();
  turn_at_ = absl::InfiniteFuture();
  store_->Kill(death.power_cut);
  const absl::Duration most = world_->options.server_away_max;
  const bool soon = world_->random.Chance(0.7);
  const absl::Duration away =
      world_->random.Between(absl::Seconds(0.2), soon ? std::min(most, absl::Seconds(3)) : most);
  world_->timeline.After(away, [this] { StartNow(); });
}

void SimulatedServer::SetDiskFull(bool full) {
  world_->Say("server: the disk {}", full ? "is full" : "has room again");
  watched_.SetFull(full);
}

// ---- the coordinator's loop ----

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
  if (durable_ == nullptr) return;
  const auto answer = [this, respond = std::move(respond)](absl::StatusOr<core::Reply> reply, const core::Core*) {
    if (!death_ && !invariants_->violation()) respond(std::move(reply));
  };
  queue_.push_back(rpc::DurableCore::Sending{std::move(event), answer});
  ScheduleTurn(world_->timeline.now() + kGroup);
}

void SimulatedServer::Turn() {
  const rpc::DurableCore::Changed changed = durable_->Turn(std::exchange(queue_, {}), /*idle=*/true);
  if (death_) return Die(*death_);
  for (const WorkerId& worker_id : changed.workers) EndHeldIfChanged(worker_id);
  if (durable_->core() != nullptr) CheckTurn();
  const absl::Time next = durable_->NextTurn();
  ScheduleTurn(next == absl::InfinitePast() ? world_->timeline.now() + kGroup : next);
}

void SimulatedServer::CheckTurn() {
  if (durable_->NextTurn() != absl::InfinitePast()) invariants_->CheckWaiting(*core());
  if (world_->random.Chance(kSampled)) Sample();
}

void SimulatedServer::Sample() {
  const absl::StatusOr<core::StoredState> stored = store_->Load();
  if (!stored.ok()) return;  // the next turn sees it too
  invariants_->CompareWithStore(*core(), *stored, CoreSettings(world_->options), world_->timeline.now());
}

// ---- Synchronize, as fleet_service.cc has it ----

void SimulatedServer::Synchronize(const std::string& request_bytes, Respond respond) {
  if (durable_ == nullptr) return;
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
  if (!brings_news && !fenced && rpc::IsUpToDate(*core(), acted_on)) {
    return Hold(acted_on, std::move(answer), std::move(respond));
  }
  AnswerWithDesired(acted_on, std::move(answer), respond);
}

void SimulatedServer::AnswerWithDesired(const rpc::ActedOn& acted_on, v1::SynchronizeResponse answer,
                                        const Respond& respond) {
  rpc::SetDesired(*core(), acted_on, &answer);
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
  if (core() == nullptr) return held.respond(false, "UNAVAILABLE");
  AnswerWithDesired(held.acted_on, held.answer, held.respond);
}

void SimulatedServer::EndHeldIfChanged(const WorkerId& worker_id) {
  const auto found = held_.find(worker_id);
  if (found == held_.end()) return;
  if (core() != nullptr && rpc::IsUpToDate(*core(), found->second.acted_on)) return;
  EndHeld(worker_id, 0);
}

}  // namespace longspan::sim
