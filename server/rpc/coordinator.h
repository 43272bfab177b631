// The one thread that owns the core: everybody else puts events and questions into its queue.
//
//   callers ──Send, Query──► bounded queue ──► Step, Step, ... ──► one commit ──► answers, wake-ups
//
// Events that wait together are stored together: one fsync for a group of submits. Nothing that a step decided is told
// to anybody before it is durable.
//
// What a turn does, and what happens when the store cannot commit, is durable_core.h; here are the thread, the queue,
// the clock, timers and wake-ups. Workers keep their ranks as long as their leases last while the store does not work.
// When the store says that a row is not what the core believed (INTERNAL), something else has written it: on_fatal is
// called, and the program must end.
//
// Callbacks run on the coordinator's thread (a refusal: on the caller's): they must not block, and must not call Stop.
// Send, Query and RunAt may be called from any thread.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/support/mutex.h"
#include "server/core/core.h"
#include "server/rpc/durable_core.h"
#include "server/rpc/observer.h"
#include "server/rpc/wake_ups.h"
#include "server/store/store.h"

namespace longspan::rpc {

class Coordinator {
 public:
  struct Options : DurableCore::Options {
    size_t queued_max = 8192;  // events and questions that wait; more are refused
    size_t group_max = 512;    // of them in one transaction
    std::function<void(const absl::Status&)> on_fatal;
  };
  using Clock = std::chrono::steady_clock;
  // As in durable_core.h; also refusals of the coordinator itself come with a null core.
  using ReplyCallback = DurableCore::ReplyCallback;
  using QueryCallback = DurableCore::QueryCallback;

  // `store` and `observer` must outlive the coordinator.
  Coordinator(Options options, store::Store* store, Observer* observer);
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  // Loads the store and starts the thread. Fails when the store cannot be read or written.
  absl::Status Start();
  // Refuses new events, answers those that wait, ends the thread.
  void Stop();

  // Exactly one call of `callback` per call, at once with RESOURCE_EXHAUSTED or UNAVAILABLE when the queue is full or
  // closed.
  void Send(core::Event event, ReplyCallback callback);
  void Query(QueryCallback callback);
  // Runs `work` on the coordinator's thread at `time` or a little later; never, when it stops before.
  void RunAt(Clock::time_point time, std::function<void()> work);

  // Names are job ids, for streams; and "worker/<id>", for held calls.
  WakeUps& wake_ups() { return wake_ups_; }
  static std::string WorkerName(const WorkerId& worker_id) { return "worker/" + worker_id.value(); }

  const Options& options() const { return options_; }
  // Wall time of the start, carried on by a steady clock: never jumps, never goes back.
  absl::Time Now() const;

 private:
  using Item = DurableCore::Item;

  DurableCore::Hooks Hooks();
  void Loop();
  // `idle`: nothing else waits in the queue.
  void Turn(std::vector<Item> items, bool idle, const std::vector<std::function<void()>>& timers);
  Clock::time_point NextTurnTime() const EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::function<void()>> TakeDueTimers() EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Put(Item item);

  const Options options_;
  const absl::Time start_wall_;
  const Clock::time_point start_steady_;
  WakeUps wake_ups_;

  Mutex mutex_;
  CondVar changed_;
  std::deque<Item> queue_ GUARDED_BY(mutex_);
  std::multimap<Clock::time_point, std::function<void()>> timers_ GUARDED_BY(mutex_);
  bool open_ GUARDED_BY(mutex_) = false;
  bool stopping_ GUARDED_BY(mutex_) = false;

  // The rest belongs to the coordinator's thread (and to Start, before it).
  DurableCore durable_;
  std::thread thread_;
};

}  // namespace longspan::rpc
