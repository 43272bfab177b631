// Many worker daemons on one thread, each with a connection of its own, spread over time so that they do not all call
// at once.
//
//   Fleet fleet("127.0.0.1:7450");
//   fleet.Start(1000, 8);
//   fleet.WaitRegistered(absl::Seconds(60));
//   fleet.SetStepTime(absl::Seconds(1));      // every rank makes a step a second from now on
//   fleet.ResetStatistics(); ...; fleet.Statistics();
//
// Thread-safe. The server must outlive it, or its calls fail and are counted.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <queue>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "proto/support/mutex.h"
#include "tests/bench/service_load/latencies.h"
#include "tests/bench/service_load/load_worker.h"

namespace longspan::load {

class Fleet {
 public:
  explicit Fleet(std::string address) : address_(std::move(address)) {}
  ~Fleet();  // ends every call

  void Start(int64_t workers, int64_t slots);
  // False when it did not come to that in time.
  bool WaitRegistered(absl::Duration timeout);
  bool WaitRunning(int64_t ranks, absl::Duration timeout);
  // Until the first step: never.
  void SetStepTime(absl::Duration step_time) { step_time_nanoseconds_ = absl::ToInt64Nanoseconds(step_time); }
  void SetStepsAtOnce(StepsAtOnce steps);

  void ResetStatistics();
  // {"calls", "news", "failures": {"CODE": n}, "news_latency_ms": {...}, "running_ranks"} since the last reset. A call
  // that brings news is one that the server answers at once; the others it holds.
  nlohmann::json Statistics();
  int64_t running_ranks() const { return running_ranks_; }

 private:
  struct Turn {
    absl::Time due;
    size_t worker;
    bool operator>(const Turn& other) const { return due > other.due; }
  };
  struct Answered {
    LoadWorker* worker;
    std::unique_ptr<SynchronizeCall> call;
  };

  void Loop();
  void Send(LoadWorker* worker, std::unique_ptr<SynchronizeCall> call);
  void Take(const Answered& answered, absl::Time now);
  void StepIfDue(size_t worker, absl::Time now);
  absl::Time NextOf(size_t worker) const;
  std::vector<Answered> WaitForWork();
  bool WaitFor(const std::function<bool()>& reached, absl::Duration timeout);

  const std::string address_;
  std::atomic<int64_t> step_time_nanoseconds_{0};  // 0: no steps
  std::atomic<int64_t> running_ranks_{0};
  std::atomic<int64_t> registered_{0};

  // The loop's own.
  std::vector<std::unique_ptr<LoadWorker>> workers_;
  std::vector<absl::Time> next_step_;
  std::vector<absl::Duration> step_time_of_;  // by which next_step_ was chosen
  std::vector<absl::Time> scheduled_;         // the earliest turn in turns_ of each worker
  std::priority_queue<Turn, std::vector<Turn>, std::greater<>> turns_;

  Mutex mutex_;
  CondVar changed_;
  std::vector<Answered> inbox_ GUARDED_BY(mutex_);
  std::map<SynchronizeCall*, int> in_flight_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::shared_ptr<const StepsAtOnce> steps_at_once_ GUARDED_BY(mutex_) = std::make_shared<StepsAtOnce>();
  int64_t calls_ GUARDED_BY(mutex_) = 0;
  int64_t news_ GUARDED_BY(mutex_) = 0;
  std::map<int, int64_t> failures_ GUARDED_BY(mutex_);
  Latencies news_latency_ GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace longspan::load
