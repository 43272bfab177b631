// A worker daemon without its system calls: the real Supervisor and SynchronizeSchedule, driven as daemon.cc drives
// them, over the simulated network and simulated processes, by a clock of its own that is off and drifts.
//
// Its faults: it crashes and comes back as another incarnation, it is told to leave, it is frozen (SIGSTOP, or the
// whole machine sleeps), its wall clock jumps.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "tests/sim/network.h"
#include "tests/sim/trainers.h"
#include "worker/daemon/supervisor.h"
#include "worker/daemon/synchronize_schedule.h"

namespace longspan::sim {

class SimulatedServer;

class SimulatedWorker : public Daemon {
 public:
  // `number` from 1. Starts at once.
  SimulatedWorker(World* world, Network* network, SimulatedServer* server, Trainers* trainers, Invariants* invariants,
                  int number, int64_t slots);

  void Crash();
  void Leave();
  void Freeze(bool machine);
  void Thaw();
  void JumpWallClock(absl::Duration by);
  // No process is there; it comes back by itself.
  bool down() const { return daemon_ == nullptr; }
  bool WakesBefore(absl::Time time) const { return daemon_ != nullptr && !frozen_ && daemon_->wake_at < time; }
  int number() const { return number_; }
  const std::string& name() const { return name_; }

  void OnLine(const worker::RankKey& key, lines::FromTrainer line) override;
  void OnProcessEnd(ProcessId id, const worker::RankKey& key, worker::ProcessEnd end) override;

 private:
  // Dies with the process.
  struct DaemonProcess {
    worker::Supervisor supervisor;
    worker::SynchronizeSchedule schedule;
    std::string incarnation;
    std::map<worker::RankKey, ProcessId> running;
    std::map<int64_t, absl::Time> calls;  // in flight: when they were sent, by the local clock
    std::map<int64_t, bool> leaving_calls;
    absl::Time leave_deadline = absl::InfiniteFuture();
    bool leaving_answered = false;
    absl::Time wake_at = absl::InfiniteFuture();
    absl::Time lease_until = absl::InfinitePast();  // by the answers, whatever the supervisor believes
  };

  void Start();
  void Restart(absl::Duration after);
  absl::Time Local() const;
  absl::Time ToGlobal(absl::Time local) const;
  absl::Time Wall() const { return world_->timeline.now() + wall_offset_; }
  // Runs `work` as one turn of the daemon's loop, or keeps it for the thaw.
  void Turn(std::function<void()> work);
  void Loop();
  bool Left(absl::Time now) const;
  void SendReport(absl::Time now);
  void OnAnswer(int64_t life, int64_t sequence, bool ok, const std::string& bytes);
  void NoteLease(const v1::SynchronizeResponse& answer, absl::Time sent);
  // No process outlives the lease and the kill grace, counted from a thaw if that came later.
  void CheckLeaseAt(absl::Time local);
  void Apply(const worker::Effects& effects);
  void Spawn(const worker::SpawnRank& spawn);

  World* const world_;
  Network* const network_;
  SimulatedServer* const server_;
  Trainers* const trainers_;
  Invariants* const invariants_;
  const int number_;
  const std::string name_;
  const int64_t slots_;
  const double rate_;  // of its monotonic clock
  absl::Duration wall_offset_;
  int64_t life_ = 0;  // counts its processes
  std::unique_ptr<DaemonProcess> daemon_;
  bool frozen_ = false;
  absl::Time thawed_at_ = absl::InfinitePast();  // local
  std::deque<std::function<void()>> inbox_;      // while it is frozen
};

}  // namespace longspan::sim
