// A whole service on one virtual clock and one seed: the real core and scheduler, workers that keep the daemon's
// contract, processes that train, crash and hang, and a network that loses, doubles and delays. Nothing here sleeps or
// reads a clock.
//
// What must hold at every moment is CHECKed with the seed in the message: a slot runs one process; a job's processes
// are all of one attempt; an attempt resumes only from a checkpoint that is recorded and was really written.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "server/core/core.h"
#include "tests/server/fakes/fake_worker.h"
#include "tests/server/fakes/memory_store.h"

namespace longspan::sim {

struct SimulationOptions {
  uint64_t seed = 0;
  int workers = 3;
  int slots_per_worker = 2;
  int jobs = 5;
  int64_t steps = 20;                           // of each job
  absl::Duration faulty = absl::Seconds(90);    // faults happen this long
  absl::Duration calm_max = absl::Minutes(20);  // and then everything must end within
};

class SimulatedCluster {
 public:
  explicit SimulatedCluster(SimulationOptions options);

  // Returns when every job is terminal, or calm_max has passed.
  void Run();

  core::JobView View(const JobId& job_id) const { return *core_->ViewJob(job_id); }
  const std::vector<JobId>& jobs() const { return jobs_; }
  bool WasCancelled(const JobId& job_id) const { return cancelled_.contains(job_id); }
  const testing::MemoryStore& store() const { return store_; }
  // Everything that happened to all jobs, one line an event.
  std::string History() const;

 private:
  using Key = testing::FakeWorker::Key;

  struct Process {  // beside FakeWorker::FakeRank
    absl::Time up_at;
    absl::Time next_at;  // next step, or the end that is decided
    int64_t step = 0;
    bool hanging = false;
    bool failing = false;  // a peer is gone
  };
  struct Node {
    explicit Node(testing::FakeWorker w) : worker(std::move(w)) {}
    testing::FakeWorker worker;
    int life = 1;           // of the daemon
    double clock_rate = 1;  // of its monotonic clock
    absl::Time lease_end = absl::InfinitePast();
    absl::Time call_sent;
    bool call_open = false;
    absl::Time next_call;
    absl::Time unreachable_until = absl::InfinitePast();
    std::map<Key, Process> processes;
  };
  struct Request {
    WorkerId worker;
    int life;
    core::WorkerReport report;
  };
  struct Answer {
    WorkerId worker;
    int life;
    int64_t sequence;
    absl::Time sent;
    core::ReportReply reply;
    core::DesiredRanks desired;
  };

  // Server.
  void StartServer();
  void CrashServer();
  // Nothing when the server crashed before the answer.
  std::optional<core::Effects> Step(const core::Event& event);
  void Receive(const Request& request);
  void Command(const core::Event& event);

  // Workers and their processes.
  void StepNode(Node& node);
  void Call(Node& node);
  void Receive(const Answer& answer);
  void RestartDaemon(Node& node);
  void StepProcess(Node& node, const Key& key, Process& process);
  void StepTrainer(Node& node, const Key& key, Process& process);
  void FollowRank(Node& node, const Key& key, Process& process);
  void End(Node& node, const Key& key, int exit_code, int signal);
  bool GangIsWhole(const Key& key, int64_t world_size) const;
  void ForgetEndedProcesses(Node& node);

  // Faults and the checks.
  void InjectFaults();
  void EndFaults();
  void CheckInvariants() const;
  bool AllTerminal() const;

  bool Chance(double probability);
  absl::Duration Between(absl::Duration low, absl::Duration high);
  template <typename Message>
  void Send(std::multimap<absl::Time, Message>& network, const Message& message);

  const SimulationOptions options_;
  std::mt19937_64 random_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  absl::Time faults_end_;
  bool faulty_ = true;
  std::unique_ptr<core::Core> core_;  // null while the server is down
  absl::Time server_back_;
  testing::MemoryStore store_;
  std::map<WorkerId, Node> nodes_;
  std::multimap<absl::Time, Request> requests_;
  std::multimap<absl::Time, Answer> answers_;
  std::vector<JobId> jobs_;
  std::set<JobId> cancelled_;
  std::map<JobId, std::map<std::string, int64_t>> written_checkpoints_;  // step by name: the shared storage
};

}  // namespace longspan::sim
