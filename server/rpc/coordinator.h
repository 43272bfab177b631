// The one thread that owns the core: everybody else puts events and questions into its queue.
//
//   callers ──Send, Query──► bounded queue ──► Step, Step, ... ──► one commit ──► answers, wake-ups
//
// Events that wait together are stored together: one fsync for a group of submits. Nothing that a step decided is told
// to anybody before it is durable.
//
// When the store cannot commit (a full disk), every caller of the group gets its error, the core, which is ahead of the
// store then, is thrown away, and a new one is built from the store, again and again until that works; meanwhile
// callers get UNAVAILABLE with the cause. Workers keep their ranks as long as their leases last. When the store says
// that a row is not what the core believed (INTERNAL), something else has written it: on_fatal is called, and the
// program must end.
//
// Callbacks run on the coordinator's thread (a refusal: on the caller's): they must not block, and must not call Stop.
// Send, Query and RunAt may be called from any thread.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/support/mutex.h"
#include "server/core/core.h"
#include "server/rpc/observer.h"
#include "server/rpc/wake_ups.h"
#include "server/store/store.h"

namespace longspan::rpc {

class Coordinator {
 public:
  struct Options {
    core::CoreOptions core;
    size_t queued_max = 8192;  // events and questions that wait; more are refused
    size_t group_max = 512;    // of them in one transaction
    absl::Duration tick = absl::Milliseconds(500);
    absl::Duration reload_after = absl::Seconds(1);  // between attempts to come back after a failed commit
    // New jobs are refused while the store's disk has less left: what runs needs the rest to report.
    int64_t free_bytes_min = int64_t{256} << 20;
    std::function<void(const absl::Status&)> on_fatal;
  };
  using Clock = std::chrono::steady_clock;
  // `core` is what the event left behind, durable; null when `reply` is an error of the coordinator itself.
  using ReplyCallback = std::function<void(absl::StatusOr<core::Reply> reply, const core::Core* core)>;
  using QueryCallback = std::function<void(absl::StatusOr<const core::Core*> core)>;

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
  struct Sending {
    core::Event event;
    ReplyCallback callback;
  };
  using Item = std::variant<Sending, QueryCallback>;
  struct Answer {
    ReplyCallback callback;
    core::Reply reply;
  };

  absl::Status Reload();
  void Loop();
  // `idle`: nothing else waits in the queue.
  void Turn(std::vector<Item> items, bool idle, const std::vector<std::function<void()>>& timers);
  bool TickIsDue(bool idle) const;
  core::Effects StepTimed(const core::Event& event, absl::Time now);
  // Why a new job cannot be taken now.
  absl::Status RefusalOf(const core::Event& event) const;
  absl::Status Commit(const core::Transaction& transaction);
  void LoseCore(const absl::Status& cause);
  Clock::time_point NextTurnTime() const EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::function<void()>> TakeDueTimers() EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Put(Item item);

  const Options options_;
  store::Store* const store_;
  Observer* const observer_;
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
  std::unique_ptr<core::Core> core_;  // null while the store does not work
  absl::Status lost_;                 // why it is null
  bool tick_soon_ = false;
  Clock::time_point next_tick_;
  Clock::time_point last_tick_;
  std::thread thread_;
};

}  // namespace longspan::rpc
