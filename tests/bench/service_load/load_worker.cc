#include "tests/bench/service_load/load_worker.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "proto/support/brings_news.h"
#include "tests/bench/service_load/connection.h"

namespace longspan::load {
namespace {

// A report leaves as soon as a step was made: how often that is says the fleet.
worker::SupervisorOptions SupervisorSettings() {
  worker::SupervisorOptions options;
  options.progress_interval = absl::Milliseconds(10);
  return options;
}

worker::SynchronizeScheduleOptions ScheduleSettings(uint64_t seed) {
  worker::SynchronizeScheduleOptions options;
  options.seed = seed;
  return options;
}

int64_t StepsOf(const v1::DesiredRank& desired) {
  return nlohmann::json::parse(desired.spec_json()).at("training").at("steps").get<int64_t>();
}

// As many numbers as a trainer sends.
lines::Progress ProgressOf(int64_t step, int64_t steps) {
  const double x = static_cast<double>(step);
  return {"train",
          step,
          steps,
          {{"loss", 3.0 / (1 + x)},
           {"grad_norm", 1.0 / (1 + x)},
           {"learning_rate", 2e-5},
           {"tokens_total", 65536 * x},
           {"tokens_per_second", 11250.5},
           {"model_flops_total", 2.9e15 * x},
           {"nonfinite_steps", 0},
           {"memory_peak_bytes", 7.1e10},
           {"seconds_data", 0.01},
           {"seconds_forward", 1.71},
           {"seconds_backward", 3.62},
           {"seconds_allreduce", 0.08},
           {"seconds_optimizer", 0.02}}};
}

}  // namespace

LoadWorker::LoadWorker(std::string name, int64_t slots, uint64_t seed, const std::string& address, SendCall send)
    : name_(std::move(name)),
      slots_(slots),
      send_(std::move(send)),
      stub_(v1::FleetService::NewStub(Connect(address))),
      supervisor_(SupervisorSettings()),
      schedule_(ScheduleSettings(seed)) {}

void LoadWorker::Step(const StepsAtOnce& steps, absl::Time now) {
  std::vector<worker::RankKey> training;
  training.reserve(ranks_.size());
  for (const auto& [key, rank] : ranks_) training.push_back(key);
  for (const worker::RankKey& key : training) {
    Rank& rank = ranks_.at(key);
    for (int64_t i = 0; i < steps.Of(key.job_id) && rank.step < rank.steps; ++i) {
      ++rank.step;
      Say(key, lines::Reached{rank.step}, now);
      if (key.rank == 0) Say(key, ProgressOf(rank.step, rank.steps), now);
    }
    if (rank.step < rank.steps) continue;
    Say(key, lines::Done{}, now);
    End(key, {lines::kExitDone, 0, ""}, now);
  }
}

void LoadWorker::TakeAnswer(const SynchronizeCall& call, absl::Time now) {
  if (!call.status.ok()) return schedule_.OnFailure(call.request.sequence(), now);
  ++answers_;
  const absl::Duration again =
      absl::Seconds(call.response.call_again().seconds()) + absl::Nanoseconds(call.response.call_again().nanos());
  if (schedule_.OnAnswer(call.request.sequence(), again, now)) {
    Apply(supervisor_.OnAnswer(call.response, call.sent, now), now);
  }
}

void LoadWorker::Turn(absl::Time now) {
  Apply(supervisor_.OnTick(now), now);
  if (NextReport() <= now) SendReport(now);
}

absl::Time LoadWorker::NextTurn() const { return std::min(supervisor_.Deadline(), NextReport()); }

absl::Time LoadWorker::NextReport() const {
  return schedule_.NextCall(supervisor_.ChangeDue(), supervisor_.ProgressDue());
}

void LoadWorker::Apply(const worker::Effects& effects, absl::Time now) {
  for (const worker::Effect& effect : effects) {
    if (const auto* spawn = std::get_if<worker::SpawnRank>(&effect)) {
      Spawn(*spawn, now);
    } else if (const auto* send = std::get_if<worker::SendLine>(&effect)) {
      if (!std::holds_alternative<lines::Stop>(send->line) || !ranks_.contains(send->key)) continue;
      Say(send->key, lines::Done{true}, now);
      End(send->key, {lines::kExitStopped, 0, ""}, now);
    } else if (const auto* signal = std::get_if<worker::SignalRank>(&effect)) {
      if (ranks_.contains(signal->key)) End(signal->key, {-1, signal->signal, ""}, now);
    }
  }
}

void LoadWorker::Spawn(const worker::SpawnRank& spawn, absl::Time now) {
  const worker::RankKey& key = spawn.key;
  ranks_[key] = {spawn.desired, 0, 0};
  Say(key, lines::Hello{lines::kProtocolVersion, 1, key.rank, "load"}, now);
  if (spawn.desired.command() == "prepare") {
    Say(key, lines::Phase{"prepare"}, now);
    Say(key, lines::Artifact{"dataset", "dataset", ""}, now);
    Say(key, lines::Done{}, now);
    return End(key, {lines::kExitDone, 0, ""}, now);
  }
  ranks_[key].steps = StepsOf(spawn.desired);
  if (key.rank == 0) Say(key, lines::Rendezvous{name_ + ":29500"}, now);
  Say(key, lines::Phase{"train"}, now);
}

void LoadWorker::Say(const worker::RankKey& key, const lines::FromTrainer& line, absl::Time now) {
  Apply(supervisor_.OnLine(key, line, now, now), now);
}

void LoadWorker::End(const worker::RankKey& key, const worker::ProcessEnd& end, absl::Time now) {
  ranks_.erase(key);
  Apply(supervisor_.OnExit(key, end, now), now);
}

void LoadWorker::SendReport(absl::Time now) {
  auto call = std::make_unique<SynchronizeCall>();
  call->sent = now;
  v1::SynchronizeRequest& request = call->request;
  request.set_worker_id(name_);
  request.set_incarnation_id(name_ + "-1");
  request.set_advertise_address(name_);
  request.set_version("load");
  for (int64_t i = 0; i < slots_; ++i) {
    v1::Slot* slot = request.add_slots();
    slot->set_index(i);
    slot->set_device("cpu");
    slot->set_memory_bytes(int64_t{64} << 30);
  }
  supervisor_.FillReport(now, &request);
  call->brings_news = BringsNews(request);
  request.set_sequence(schedule_.OnSent(call->brings_news, now));
  call->context.set_deadline(std::chrono::system_clock::now() +
                             absl::ToChronoMilliseconds(worker::SynchronizeScheduleOptions().call_deadline));
  send_(this, std::move(call));
}

}  // namespace longspan::load
