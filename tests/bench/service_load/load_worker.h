// One worker daemon: the real Supervisor and SynchronizeSchedule, over ranks that are no processes.
//
// A rank is up when it is spawned. `prepare` ends at once; a rank of `run` makes a step whenever it is told to (Step),
// reports it as a trainer does, and ends after its job's `training.steps`, or with exit code 40 when it is asked to
// stop. Not thread-safe: the fleet's thread is its only caller.
#pragma once

#include <absl/time/time.h>

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "longspan/v1/fleet_service.grpc.pb.h"
#include "worker/daemon/supervisor.h"
#include "worker/daemon/synchronize_schedule.h"

namespace longspan::load {

// How many steps ranks make at a time.
struct StepsAtOnce {
  int64_t steps = 1;
  std::set<std::string> eager_jobs;  // whose ranks make eager_steps
  int64_t eager_steps = 1;

  int64_t Of(const std::string& job_id) const { return eager_jobs.contains(job_id) ? eager_steps : steps; }
};

// One Synchronize under way.
struct SynchronizeCall {
  grpc::ClientContext context;
  v1::SynchronizeRequest request;
  v1::SynchronizeResponse response;
  grpc::Status status;
  absl::Time sent;
  bool brings_news = false;  // progress or an end: the server does not hold it
};

class LoadWorker {
 public:
  // Sends the call; sooner or later the fleet passes it to TakeAnswer.
  using SendCall = std::function<void(LoadWorker* worker, std::unique_ptr<SynchronizeCall> call)>;

  LoadWorker(std::string name, int64_t slots, uint64_t seed, const std::string& address, SendCall send);

  // Rank 0 reports each step.
  void Step(const StepsAtOnce& steps, absl::Time now);
  void TakeAnswer(const SynchronizeCall& call, absl::Time now);
  // Leases and reports that are due.
  void Turn(absl::Time now);
  // When Turn has something to do.
  absl::Time NextTurn() const;

  // Processes that exist now.
  int64_t running_ranks() const { return static_cast<int64_t>(ranks_.size()); }
  bool registered() const { return answers_ > 0; }
  v1::FleetService::Stub& stub() { return *stub_; }

 private:
  struct Rank {
    v1::DesiredRank desired;
    int64_t step = 0;
    int64_t steps = 0;
  };

  void Apply(const worker::Effects& effects, absl::Time now);
  void Spawn(const worker::SpawnRank& spawn, absl::Time now);
  void Say(const worker::RankKey& key, const lines::FromTrainer& line, absl::Time now);
  void End(const worker::RankKey& key, const worker::ProcessEnd& end, absl::Time now);
  absl::Time NextReport() const;
  void SendReport(absl::Time now);

  const std::string name_;
  const int64_t slots_;
  const SendCall send_;
  std::unique_ptr<v1::FleetService::Stub> stub_;
  worker::Supervisor supervisor_;
  worker::SynchronizeSchedule schedule_;
  std::map<worker::RankKey, Rank> ranks_;
  int64_t answers_ = 0;
};

}  // namespace longspan::load
