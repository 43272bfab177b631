// All trainer processes of the cluster, the gangs they form, and the storage they share.
//
// A process is started by its worker's supervisor, says hello, and ends: done, stopped after a checkpoint, failed,
// killed. Rank 0 listens; the others connect to the address they are told; when all `world_size` of them are connected
// the gang trains, one step after another, as long as every one of them runs. When one is gone the others fail some
// moments later; when one hangs they wait. A process ends by itself when its lease passes, unless it hangs. SIGTERM is
// a request to stop at the next step; one that is deaf ignores it. A stopped process (SIGSTOP) is woken by SIGTERM, as
// child_process does.
//
// A checkpoint takes time to write and exists only when it is written whole; killed before, there is none.
#pragma once

#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "proto/support/ids.h"
#include "tests/sim/invariants.h"
#include "tests/sim/job_generator.h"
#include "worker/daemon/supervisor.h"

namespace longspan::sim {

using ProcessId = int64_t;

// What a process's daemon reads from it.
class Daemon {
 public:
  virtual ~Daemon() = default;
  virtual void OnLine(const worker::RankKey& key, lines::FromTrainer line) = 0;
  virtual void OnProcessEnd(ProcessId id, const worker::RankKey& key, worker::ProcessEnd end) = 0;
};

class Trainers {
 public:
  Trainers(World* world, Invariants* invariants) : world_(world), invariants_(invariants) {}

  // By job id, for what its trainers do.
  void AddJob(const JobId& job_id, const JobPlan& plan) { plans_[job_id.value()] = plan; }

  // ---- what a daemon does; `worker` is its number, `daemon` must live while the process does ----
  ProcessId Spawn(int worker, const std::string& worker_name, Daemon* daemon, const worker::SpawnRank& spawn);
  void Send(ProcessId id, const lines::ToTrainer& line);
  void Signal(ProcessId id, int signal);
  // The daemon is dead, and its ranks with it; or it is frozen, with its whole machine or without.
  void KillAllOf(int worker);
  void FreezeAllOf(int worker, bool machine);
  void ThawAllOf(int worker);

  bool IsWritten(const std::string& job_id, const std::string& checkpoint) const;

  // It executes: not stopped, hung, asleep or about to end.
  bool CanAct(ProcessId id) const;

  int64_t steps_taken() const { return steps_taken_; }

 private:
  struct Process {
    ProcessId id = 0;
    worker::RankKey key;
    v1::DesiredRank desired;
    int worker = 0;
    std::string worker_name;
    Daemon* daemon = nullptr;
    bool up = false;
    bool ending = false;   // decided, not yet carried out
    bool stopped = false;  // SIGSTOP
    bool deaf = false;     // does nothing and ignores SIGTERM
    bool frozen = false;   // its machine sleeps
    bool stop_asked = false;
    absl::Time lease_until = absl::InfiniteFuture();
    std::string rendezvous;  // address it was told
    std::string gang;        // address of the gang it is connected to
    int64_t units = 0;       // prepared
  };
  struct Gang {
    std::string address;
    std::set<ProcessId> members;
    int64_t world_size = 0;
    int64_t step = 0;
    bool training = false;
    bool writing = false;  // a checkpoint
    bool broken = false;
  };

  Process* Find(ProcessId id);
  bool Runs(const Process& p) const { return p.up && !p.ending && !p.stopped && !p.deaf && !p.frozen; }
  const JobPlan& PlanOf(const Process& p) const { return plans_.at(p.key.job_id); }

  void ComeUp(ProcessId id);
  void Prepare(ProcessId id);
  void Connect(Process& p);
  void Join(Process& p, Gang& gang);
  void WatchLease(ProcessId id);
  void AskToStop(Process& p);
  void Misbehave(Process& p);

  void ScheduleStep(Gang& gang);
  void Step(const std::string& address);
  void WriteCheckpoint(Gang& gang, bool then_stop);
  void CheckpointWritten(const std::string& address, const std::string& name, int64_t step, bool then_stop);
  void FinishGang(Gang& gang);
  void StopGang(Gang& gang);
  void BreakGang(Gang& gang);
  Process* Leader(Gang& gang);
  bool AllRun(const Gang& gang);

  // Ends the process after `delay` unless it was killed before; `last_words` goes out first.
  void EndSoon(Process& p, absl::Duration delay, int exit_code, std::vector<lines::FromTrainer> last_words);
  void Fail(Process& p, absl::Duration delay, const char* failure_class, const std::string& message, int exit_code);
  void Say(Process& p, lines::FromTrainer line);
  void End(ProcessId id, int exit_code, int signal);

  World* const world_;
  Invariants* const invariants_;
  std::map<std::string, JobPlan> plans_;
  std::map<ProcessId, Process> processes_;  // that exist
  std::map<std::string, Gang> gangs_;
  std::map<std::string, std::map<std::string, int64_t>> written_;  // by job: checkpoints and their steps
  ProcessId last_id_ = 0;
  int64_t steps_taken_ = 0;
};

}  // namespace longspan::sim
