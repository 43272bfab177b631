// A whole cluster in one thread, on one virtual clock, from one seed: the same seed gives the same history.
//
//   client ──┐                                   ┌── worker 1: supervisor ── processes ─┐
//            ├── network ── server ── network ───┤                                      ├── gangs, storage
//            ┘              core, store          └── worker 2 ...                       ┘
//
// Faults of every kind for `faulty`, then calm; the invariants are checked after every event, and in the end every job
// must have ended, and rightly.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/sim/simulated_client.h"
#include "tests/sim/simulated_worker.h"

namespace longspan::sim {

// What the seed decides: the size of the cluster, which kinds of faults happen and how often.
SimulationOptions OptionsOf(uint64_t seed);

class SimulatedCluster {
 public:
  explicit SimulatedCluster(const SimulationOptions& options);

  // Until every job has ended, or the first violation.
  void Run();

  const std::optional<Violation>& violation() const { return invariants_.violation(); }
  // Everything that happened to all jobs, one line an event, as the store has it.
  std::string History();
  // With options.transcript: what everybody did, one line each.
  const std::deque<std::string>& transcript() const { return world_.lines; }

  struct Totals {
    int64_t jobs = 0, attempts = 0, steps = 0, commits = 0, server_starts = 0, events = 0, checks = 0;
    double virtual_seconds = 0;
  };
  Totals totals() const;
  const Invariants& invariants() const { return invariants_; }

 private:
  void Every(absl::Duration mean, std::function<void()> fault);
  void ArrangeFaults();
  void CutSomebody();
  void FreezeSomebody();
  void EndFaults();
  void CalmDown();
  SimulatedWorker& AnyWorker();
  bool AllEnded() const;
  void CheckTimeGoesOn();
  void CheckEnds();

  World world_;
  Network network_;
  Invariants invariants_;
  Trainers trainers_;
  SimulatedServer server_;
  std::vector<std::unique_ptr<SimulatedWorker>> workers_;
  SimulatedClient client_;
  int64_t events_ = 0;
  absl::Time moment_;  // a stretch of kMoment begins
  int64_t events_before_moment_ = 0;
};

}  // namespace longspan::sim
