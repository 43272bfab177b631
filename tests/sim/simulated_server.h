// The coordinator without its threads: the real core and scheduler and the real translation of messages, driven as
// coordinator.cc and fleet_service.cc drive them, over a store with faults.
//
// What comes within a moment is stepped together and stored with one commit; answers leave after it. A commit that
// fails gives every caller of its group an error, and the core is built anew from the store; one that fails with
// INTERNAL ends the process. The process also dies between step and commit, in a commit, between commit and answer, and
// at any other time, sometimes with its power; it comes back after a while.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/core/core.h"
#include "server/rpc/desired_answer.h"
#include "tests/sim/invariants.h"
#include "tests/sim/simulated_store.h"
#include "tests/sim/world.h"

namespace longspan::sim {

core::CoreOptions CoreSettings(const SimulationOptions& options);

class SimulatedServer {
 public:
  // At most once; never when the server dies before. Not ok: an error of the call, `bytes` says which.
  using Respond = std::function<void(bool ok, std::string bytes)>;
  using RespondReply = std::function<void(absl::StatusOr<core::Reply>)>;

  SimulatedServer(World* world, Invariants* invariants);

  void Synchronize(const std::string& request_bytes, Respond respond);
  void Command(core::Event event, RespondReply respond);

  void Crash();
  void SetDiskFull(bool full);
  // Brings it back now, if it is down.
  void StartNow();

  // Null while it is down or cannot store.
  const core::Core* core() const { return core_.get(); }
  SimulatedStore& store() { return *store_; }
  int64_t commits() const { return commits_; }
  int64_t starts() const { return starts_; }

 private:
  struct Waiting {
    core::Event event;
    RespondReply respond;
  };
  struct Held {
    Respond respond;
    uint64_t number = 0;
    rpc::ActedOn acted_on;
    v1::SynchronizeResponse answer;
  };

  void Start();
  absl::Status Reload();
  void ReloadLater();
  void Die(const char* when, bool power_cut);
  void LoseCore(const absl::Status& cause);
  void ScheduleTurn(absl::Time at);
  void Turn();
  // False: the process is dead, or the core is lost; `*failed` says what callers are told.
  bool Commit(const core::Transaction& transaction, absl::Status* failed);
  void AfterTurn();
  void Sample();

  void Reported(const rpc::ActedOn& acted_on, bool brings_news, const core::ReportReply& reply, Respond respond);
  void AnswerWithDesired(const rpc::ActedOn& acted_on, v1::SynchronizeResponse answer, const Respond& respond);
  void Hold(const rpc::ActedOn& acted_on, v1::SynchronizeResponse answer, Respond respond);
  void EndHeld(const WorkerId& worker_id, uint64_t number);
  void EndHeldIfChanged(const WorkerId& worker_id);

  World* const world_;
  Invariants* const invariants_;
  std::unique_ptr<SimulatedStore> store_;
  int64_t life_ = 0;  // counts its processes
  bool running_ = false;
  std::unique_ptr<core::Core> core_;
  std::vector<Waiting> queue_;
  bool tick_soon_ = false;
  absl::Time turn_at_ = absl::InfiniteFuture();
  absl::Time last_tick_ = absl::InfinitePast();
  std::map<WorkerId, Held> held_;
  uint64_t last_number_ = 0;
  int64_t commits_ = 0;
  int64_t starts_ = 0;
};

}  // namespace longspan::sim
