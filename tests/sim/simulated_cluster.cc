#include "tests/sim/simulated_cluster.h"

#include <fmt/format.h>

#include <algorithm>

#include "proto/support/check.h"

namespace longspan::sim {
namespace {

using core::RankState;

constexpr absl::Duration kTimeStep = absl::Milliseconds(100);
constexpr int64_t kCheckpointEvery = 5;

core::CoreOptions ServerOptions() {
  core::CoreOptions options;
  options.jobs_folder = "/jobs";
  options.lease = absl::Seconds(10);
  options.slot_reuse_after = absl::Seconds(13);
  options.restart_grace = absl::Seconds(15);
  options.kill_grace = absl::Seconds(3);
  options.checkpoint_grace = absl::Seconds(10);
  options.start_deadline = absl::Seconds(20);
  options.backoff_max = absl::Seconds(5);
  options.avoid_worker = absl::Seconds(30);
  options.first_progress_deadline = absl::Seconds(15);
  options.progress_deadline_min = absl::Seconds(10);
  // Faults are frequent here; giving up has its own tests.
  options.stalled_attempts_max = 1'000'000;
  return options;
}

}  // namespace

SimulatedCluster::SimulatedCluster(SimulationOptions options)
    : options_(options), random_(options.seed), faults_end_(now_ + options.faulty) {
  StartServer();
  for (int i = 0; i < options_.workers; ++i) {
    const WorkerId id(fmt::format("w{}", i));
    Node& node = nodes_.try_emplace(id, testing::FakeWorker(id, options_.slots_per_worker)).first->second;
    node.clock_rate = 0.98 + 0.04 * static_cast<double>(i) / options_.workers;
  }
}

bool SimulatedCluster::Chance(double probability) {
  return static_cast<double>(random_() >> 11) * 0x1.0p-53 < probability;
}

absl::Duration SimulatedCluster::Between(absl::Duration low, absl::Duration high) {
  return low + (high - low) * (static_cast<double>(random_() >> 11) * 0x1.0p-53);
}

template <typename Message>
void SimulatedCluster::Send(std::multimap<absl::Time, Message>& network, const Message& message) {
  const absl::Time fast = now_ + Between(absl::Milliseconds(1), absl::Milliseconds(50));
  if (!faulty_) {
    network.emplace(fast, message);
    return;
  }
  if (Chance(0.1)) return;
  network.emplace(Chance(0.1) ? now_ + Between(absl::Seconds(0.1), absl::Seconds(4)) : fast, message);
  if (Chance(0.1)) network.emplace(now_ + Between(absl::Seconds(0.1), absl::Seconds(8)), message);
}

// ---- server ----

void SimulatedCluster::StartServer() {
  core_ = std::make_unique<core::Core>(ServerOptions());
  store_.Commit(core_->Step(core::Restarted{store_.Load()}, now_).transaction);
}

void SimulatedCluster::CrashServer() {
  core_.reset();
  server_back_ = now_ + (Chance(0.7) ? Between(absl::Seconds(0.2), absl::Seconds(3))
                                     : Between(absl::Seconds(3), absl::Seconds(25)));
}

std::optional<core::Effects> SimulatedCluster::Step(const core::Event& event) {
  if (core_ == nullptr) return std::nullopt;
  core::Effects effects = core_->Step(event, now_);
  // Killed before the commit: nothing of it ever was. After it: it is true, and nobody was told.
  if (faulty_ && !effects.transaction.empty() && Chance(0.002)) {
    if (Chance(0.5)) store_.Commit(effects.transaction);
    CrashServer();
    return std::nullopt;
  }
  store_.Commit(effects.transaction);
  if (effects.tick_soon) Step(core::Tick{});
  if (core_ == nullptr) return std::nullopt;
  return effects;
}

void SimulatedCluster::Receive(const Request& request) {
  const std::optional<core::Effects> effects = Step(request.report);
  if (!effects) return;
  Answer answer;
  answer.worker = request.worker;
  answer.life = request.life;
  answer.sequence = request.report.sequence;
  answer.reply = std::get<core::ReportReply>(effects->reply);
  if (answer.reply.status.ok()) answer.desired = core_->Desired(request.worker);
  if (nodes_.at(request.worker).unreachable_until <= now_) Send(answers_, answer);
}

void SimulatedCluster::Command(const core::Event& event) { Step(event); }

// ---- workers ----

void SimulatedCluster::Call(Node& node) {
  node.call_sent = now_;
  node.call_open = true;
  Request request{node.worker.id(), node.life, node.worker.MakeReport(now_)};
  if (node.unreachable_until <= now_) Send(requests_, request);
}

void SimulatedCluster::Receive(const Answer& answer) {
  Node& node = nodes_.at(answer.worker);
  // Only the answer to the newest call of this process counts.
  if (node.life != answer.life || !node.call_open || node.worker.sequence() != answer.sequence) return;
  node.call_open = false;
  node.next_call = now_ + absl::Milliseconds(500);
  if (!answer.reply.status.ok()) return;
  node.lease_end = node.call_sent + ServerOptions().lease * node.clock_rate;
  node.worker.Apply(answer.reply, answer.desired, now_);
  for (auto& [key, rank] : node.worker.ranks()) {
    const auto [it, is_new] = node.processes.try_emplace(key);
    if (!is_new) continue;
    it->second.up_at = now_ + Between(absl::Seconds(0.2), absl::Seconds(1.5));
    it->second.next_at = it->second.up_at;
    if (rank.desired.resume_from.empty()) continue;
    const auto& written = written_checkpoints_[rank.desired.job_id];
    CHECK(written.contains(rank.desired.resume_from))
        << "seed " << options_.seed << ": resumes from what was never written";
    it->second.step = written.at(rank.desired.resume_from);
  }
  ForgetEndedProcesses(node);
}

void SimulatedCluster::ForgetEndedProcesses(Node& node) {
  std::erase_if(node.processes, [&](const auto& entry) {
    const auto it = node.worker.ranks().find(entry.first);
    return it == node.worker.ranks().end() || it->second.report.exit;
  });
}

void SimulatedCluster::RestartDaemon(Node& node) {
  node.worker.Restart();
  node.processes.clear();
  ++node.life;
  node.call_open = false;
  node.next_call = now_ + Between(absl::Seconds(0), absl::Seconds(5));
  node.lease_end = absl::InfinitePast();
}

void SimulatedCluster::StepNode(Node& node) {
  if (now_ >= node.lease_end && !node.processes.empty()) {
    node.worker.KillAll(now_);
    ForgetEndedProcesses(node);
  }
  std::vector<Key> keys;
  for (const auto& [key, process] : node.processes) keys.push_back(key);
  for (const Key& key : keys) StepProcess(node, key, node.processes.at(key));
  ForgetEndedProcesses(node);
  const bool timed_out = node.call_open && now_ >= node.call_sent + absl::Seconds(2);
  if (timed_out || (!node.call_open && now_ >= node.next_call)) Call(node);
}

void SimulatedCluster::End(Node& node, const Key& key, int exit_code, int signal) {
  core::RankExit exit;
  exit.exit_code = signal != 0 ? -1 : exit_code;
  exit.signal = signal;
  exit.stopped = exit_code == 40;
  node.worker.Exit(key, exit, now_);
}

void SimulatedCluster::StepProcess(Node& node, const Key& key, Process& process) {
  testing::FakeWorker::FakeRank& rank = node.worker.ranks().at(key);
  if (rank.report.exit || now_ < process.up_at) return;
  if (rank.report.state == RankState::kStarting) rank.report.state = RankState::kRunning;
  if (rank.desired.rank == 0) rank.report.store_address = node.worker.id().value() + ":1";
  if (process.hanging) return;
  if (faulty_ && Chance(0.002)) return End(node, key, 0, 11);
  if (faulty_ && Chance(0.0005)) {
    process.hanging = true;
    return;
  }
  if (now_ < process.next_at) return;
  if (process.failing) return End(node, key, 30, 0);
  process.next_at = now_ + Between(absl::Milliseconds(100), absl::Milliseconds(500));
  if (rank.desired.command == "prepare") {
    node.worker.AddSample(key, core::Phase::kPrepare, ++process.step, now_);
    if (process.step >= 3) End(node, key, 0, 0);
    return;
  }
  if (rank.desired.rank == 0) {
    StepTrainer(node, key, process);
  } else {
    FollowRank(node, key, process);
  }
}

// Rank 0 speaks for the gang: it steps while all ranks are there.
void SimulatedCluster::StepTrainer(Node& node, const Key& key, Process& process) {
  testing::FakeWorker::FakeRank& rank = node.worker.ranks().at(key);
  const JobId& job_id = rank.desired.job_id;
  if (!GangIsWhole(key, rank.desired.world_size)) {
    // They may still come up; a peer that was there and is gone breaks the connection.
    if (process.step > 0 && Chance(0.3)) process.failing = true;
    return;
  }
  const auto save = [&] {
    const std::string name = fmt::format("step-{}.attempt-{}", process.step, rank.desired.attempt);
    if (written_checkpoints_[job_id].emplace(name, process.step).second)
      node.worker.AddCheckpoint(key, name, process.step);
  };
  if (rank.desired.action == core::DesiredRank::Action::kStop) {
    save();
    return End(node, key, 40, 0);
  }
  if (process.step < options_.steps) {
    node.worker.AddSample(key, core::Phase::kTrain, ++process.step, now_);
    if (process.step % kCheckpointEvery == 0) save();
    return;
  }
  rank.report.artifacts = {{"adapter", rank.desired.folder + "/adapter", ""}};
  End(node, key, 0, 0);
}

// Another rank ends as rank 0 of its attempt did, or fails when that has vanished.
void SimulatedCluster::FollowRank(Node& node, const Key& key, Process& process) {
  testing::FakeWorker::FakeRank& rank = node.worker.ranks().at(key);
  if (rank.desired.store_address.empty()) return;
  const Key leader(rank.desired.job_id, rank.desired.attempt, 0);
  for (auto& [id, other] : nodes_) {
    const auto it = other.worker.ranks().find(leader);
    if (it == other.worker.ranks().end()) continue;
    if (!it->second.report.exit) return;
    const int code = it->second.report.exit->exit_code;
    if (code == 0 || code == 40) return End(node, key, code, 0);
    process.failing = true;
    return;
  }
  // Its exit is acknowledged and forgotten; what it saved tells how it ended. Failing is always allowed.
  process.failing = true;
}

bool SimulatedCluster::GangIsWhole(const Key& key, int64_t world_size) const {
  int64_t there = 0;
  for (const auto& [id, node] : nodes_) {
    for (const auto& [other, process] : node.processes) {
      const bool same = std::get<0>(other) == std::get<0>(key) && std::get<1>(other) == std::get<1>(key);
      if (same && now_ >= process.up_at && !process.hanging && !process.failing) ++there;
    }
  }
  return there == world_size;
}

// ---- faults and checks ----

void SimulatedCluster::InjectFaults() {
  if (core_ != nullptr && Chance(0.002)) CrashServer();
  for (auto& [id, node] : nodes_) {
    if (Chance(0.001)) RestartDaemon(node);
    if (Chance(0.001)) node.unreachable_until = now_ + Between(absl::Seconds(1), absl::Seconds(30));
    if (Chance(0.001)) Command(core::DrainRequested{id});
    if (Chance(0.005)) Command(core::UndrainRequested{id});
  }
  for (const JobId& job_id : jobs_) {
    if (Chance(0.001)) Command(core::PauseRequested{job_id});
    if (Chance(0.01)) Command(core::ResumeRequested{job_id});
    if (Chance(0.0001)) {
      const std::optional<core::Effects> effects = Step(core::CancelRequested{job_id});
      // Without an answer nobody knows whether it was cancelled; both ends are right then.
      if (!effects || std::get<core::CommandReply>(effects->reply).status.ok()) cancelled_.insert(job_id);
    }
  }
  if (static_cast<int>(jobs_.size()) < options_.jobs && Chance(0.02)) {
    core::Job job;
    job.name = fmt::format("j{}", jobs_.size());
    job.id = JobId("job-" + job.name);
    job.request_id = job.name;
    job.gang_sizes = {
        1 + static_cast<int64_t>(random_() % static_cast<uint64_t>(options_.workers * options_.slots_per_worker))};
    job.max_attempts = 1'000'000;
    job.priority = static_cast<int64_t>(random_() % 3) * 10;
    // Clients retry under the same request id until they get an answer.
    const std::optional<core::Effects> effects = Step(core::JobSubmitted{job});
    if (effects) jobs_.push_back(std::get<core::SubmitReply>(effects->reply).job_id);
  }
}

void SimulatedCluster::EndFaults() {
  faulty_ = false;
  if (core_ == nullptr) StartServer();
  for (auto& [id, node] : nodes_) {
    node.unreachable_until = absl::InfinitePast();
    Command(core::UndrainRequested{id});
    for (auto& [key, process] : node.processes) (void)process;
  }
}

void SimulatedCluster::CheckInvariants() const {
  std::map<JobId, int64_t> attempts;
  for (const auto& [id, node] : nodes_) {
    std::map<int64_t, Key> slots;
    for (const auto& [key, process] : node.processes) {
      const testing::FakeWorker::FakeRank& rank = const_cast<Node&>(node).worker.ranks().at(key);
      if (rank.report.exit) continue;
      const auto [it, first] = attempts.emplace(std::get<0>(key), std::get<1>(key));
      CHECK(first || it->second == std::get<1>(key))
          << "seed " << options_.seed << ": " << std::get<0>(key) << " runs two attempts at once";
      if (rank.desired.slot < 0) continue;
      CHECK(slots.emplace(rank.desired.slot, key).second)
          << "seed " << options_.seed << ": slot " << rank.desired.slot << " of " << id << " runs two processes";
    }
  }
}

bool SimulatedCluster::AllTerminal() const {
  if (core_ == nullptr) return false;
  return std::all_of(jobs_.begin(), jobs_.end(), [&](const JobId& id) { return core::IsTerminal(View(id).job.state); });
}

void SimulatedCluster::Run() {
  while (now_ < faults_end_ + options_.calm_max) {
    now_ += kTimeStep;
    if (core_ == nullptr && now_ >= server_back_) StartServer();
    if (faulty_ && now_ >= faults_end_) EndFaults();
    if (faulty_) InjectFaults();
    while (!requests_.empty() && requests_.begin()->first <= now_) {
      const Request request = requests_.begin()->second;
      requests_.erase(requests_.begin());
      Receive(request);
    }
    while (!answers_.empty() && answers_.begin()->first <= now_) {
      const Answer answer = answers_.begin()->second;
      answers_.erase(answers_.begin());
      Receive(answer);
    }
    for (auto& [id, node] : nodes_) StepNode(node);
    if (core_ != nullptr && core_->NextDeadline() <= now_) Step(core::Tick{});
    CheckInvariants();
    if (faulty_) continue;
    for (const JobId& job_id : jobs_) {
      if (View(job_id).job.state == core::JobState::kPaused) Command(core::ResumeRequested{job_id});
    }
    if (AllTerminal()) return;
  }
}

std::string SimulatedCluster::History() const {
  std::string text;
  for (const JobId& job_id : jobs_) {
    for (const core::JobEvent& event : store_.Events(job_id)) {
      text += fmt::format("{} {} {:.1f} {} {} {}\n", job_id, event.sequence,
                          absl::ToDoubleSeconds(event.time - absl::FromUnixSeconds(1'000'000)), core::Name(event.state),
                          event.reason, event.message);
    }
  }
  return text;
}

}  // namespace longspan::sim
