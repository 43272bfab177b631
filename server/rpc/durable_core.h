// The core and its store as one: what a group of events decided is stored with one commit, and only then told.
//
//   Turn:  the core anew, if it was lost ──► Step, Step, ... ──► Tick, if due ──► one commit ──► answers, what changed
//
// Nothing that a step decided is told to anybody before it is durable. When the commit fails (a full disk), every
// caller of the group gets an error, and the core, which is ahead of the store then, is thrown away; a new one is built
// from the store every `reload_after` until that works, and meanwhile callers get UNAVAILABLE with the cause. When the
// store says INTERNAL (a row is not what the core believed), nothing is loaded again: the program must end.
//
// No threads, no queue, no clock: `now` is asked, Turn is called. It is due at NextTurn() and whenever something waits.
// The coordinator calls it with a thread, a queue and a steady clock, tests/sim in virtual time. Not thread-safe.
// Callbacks and hooks run within Turn and must not call it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/core.h"
#include "server/rpc/observer.h"
#include "server/store/store.h"

namespace longspan::rpc {

class DurableCore {
 public:
  struct Options {
    core::CoreOptions core;
    absl::Duration tick = absl::Milliseconds(500);   // at the latest; deadlines of the core have ticks of their own
    absl::Duration reload_after = absl::Seconds(1);  // between attempts to come back after a failed commit
    // New jobs are refused while the store's disk has less left: what runs needs the rest to report.
    int64_t free_bytes_min = int64_t{256} << 20;
  };
  struct Hooks {
    std::function<absl::Time()> now;  // never goes back, never jumps
    // The core was thrown away, or could not be built again; before the group gets its answers. Optional.
    std::function<void(const absl::Status& cause)> on_lost;
    // There is a core again; before the group is stepped. Optional.
    std::function<void()> on_back;
  };
  // `core` is what the event left behind, durable; null when `reply` is an error of the store.
  using ReplyCallback = std::function<void(absl::StatusOr<core::Reply> reply, const core::Core* core)>;
  using QueryCallback = std::function<void(absl::StatusOr<const core::Core*> core)>;
  struct Sending {
    core::Event event;
    ReplyCallback callback;
  };
  using Item = std::variant<Sending, QueryCallback>;  // queries see what the whole group left behind
  // Each once, in order.
  struct Changed {
    std::vector<JobId> jobs;
    std::vector<WorkerId> workers;  // their desired ranks
  };

  // `store` and `observer` must outlive it.
  DurableCore(Options options, Hooks hooks, store::Store* store, Observer* observer);

  // First: builds the core. Fails when the store cannot be read or written.
  absl::Status Load();

  // One group, in order; each callback is called once. `idle`: nothing more waits, so there is time for a tick.
  Changed Turn(std::vector<Item> group, bool idle);

  // InfinitePast: at once. Not before Load.
  absl::Time NextTurn() const;

  // Null while the store does not work. Outside of Turn all of it is durable.
  const core::Core* core() const { return core_.get(); }

 private:
  struct Answer {
    ReplyCallback callback;
    core::Reply reply;
  };
  // What the group has decided so far.
  struct Decided {
    core::Transaction transaction;
    std::vector<Answer> answers;
    std::vector<QueryCallback> queries;
    Changed changed;
  };

  void LoadAgain();
  void LoseCore(const absl::Status& cause);
  Decided StepAll(std::vector<Item> group);
  core::Reply Step(const core::Event& event, Decided* decided);
  core::Effects StepTimed(const core::Event& event);
  // Why a new job cannot be taken now.
  absl::Status RefusalOf(const core::Event& event) const;
  bool TickIsDue(bool idle) const;
  void Tick(Decided* decided);
  absl::Status Commit(const core::Transaction& transaction);

  const Options options_;
  const Hooks hooks_;
  store::Store* const store_;
  Observer* const observer_;
  std::unique_ptr<core::Core> core_;
  absl::Status lost_;  // why it is null
  bool tick_soon_ = false;
  absl::Time next_tick_;  // the next attempt to load, while there is no core
  absl::Time last_tick_ = absl::InfinitePast();
  absl::Time rest_until_ = absl::InfinitePast();  // no pass of the scheduler before, but for next_tick_
};

}  // namespace longspan::rpc
