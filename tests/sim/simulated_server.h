// The server's process without threads and streams: the real core behind the real turn (server/rpc/durable_core) and
// the real translation of messages, in virtual time, over a store with faults; held calls as fleet_service.cc has them.
//
// What comes within a moment is one group. The process dies between step and commit, in a commit, between commit and
// answer, when the store says INTERNAL, and at any other time, sometimes with its power; it comes back after a while.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/core/core.h"
#include "server/rpc/desired_answer.h"
#include "server/rpc/durable_core.h"
#include "tests/sim/invariants.h"
#include "tests/sim/simulated_store.h"
#include "tests/sim/watched_store.h"
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
  bool disk_full() const { return watched_.full(); }
  // Brings it back now, if it is down.
  void StartNow();

  // Null while it is down or cannot store.
  const core::Core* core() const { return durable_ == nullptr ? nullptr : durable_->core(); }
  SimulatedStore& store() { return *store_; }
  int64_t commits() const { return watched_.commits(); }
  int64_t starts() const { return starts_; }

 private:
  struct Death {
    const char* when = "";
    bool power_cut = false;
  };
  struct Held {
    Respond respond;
    uint64_t number = 0;
    rpc::ActedOn acted_on;
    v1::SynchronizeResponse answer;
  };

  void Start();
  rpc::DurableCore::Hooks Hooks();
  void Die(const Death& death);
  void ScheduleTurn(absl::Time at);
  void Turn();
  void CheckTurn();
  void Sample();

  void Reported(const rpc::ActedOn& acted_on, bool brings_news, const core::ReportReply& reply, Respond respond);
  void AnswerWithDesired(const rpc::ActedOn& acted_on, v1::SynchronizeResponse answer, const Respond& respond);
  void Hold(const rpc::ActedOn& acted_on, v1::SynchronizeResponse answer, Respond respond);
  void EndHeld(const WorkerId& worker_id, uint64_t number);
  void EndHeldIfChanged(const WorkerId& worker_id);

  World* const world_;
  Invariants* const invariants_;
  const std::unique_ptr<SimulatedStore> store_;
  WatchedStore watched_;
  rpc::Observer observer_;
  int64_t life_ = 0;                           // counts its processes
  std::unique_ptr<rpc::DurableCore> durable_;  // null: it does not run
  std::optional<Death> death_;  // within this turn, which is carried to its end and tells nobody anything
  std::vector<rpc::DurableCore::Item> queue_;
  absl::Time turn_at_ = absl::InfiniteFuture();
  std::map<WorkerId, Held> held_;
  uint64_t last_number_ = 0;
  int64_t starts_ = 0;
};

}  // namespace longspan::sim
