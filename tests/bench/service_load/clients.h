// Users: submits, in a closed loop or at a fixed rate, and watchers of jobs.
#pragma once

#include <absl/time/time.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "longspan/v1/training_service.grpc.pb.h"
#include "proto/support/mutex.h"
#include "tests/bench/service_load/latencies.h"

namespace longspan::load {

struct SubmitLoad {
  std::vector<v1::JobSpec> specs;  // in turn
  int64_t count = 0;
  int64_t clients = 1;         // each waits for its answer before its next submit; 8 share a connection
  double per_second = 0;       // 0: as fast as they are answered; else submits leave at that rate, whatever is answered
  std::string request_prefix;  // of the request ids; must be new
};
// Blocks until all are answered: {"seconds", "per_second", "latency_ms", "failures": {"CODE": n}, "job_ids"}.
nlohmann::json Submit(const std::string& address, const SubmitLoad& load);

// Streams of WatchJob, each on a connection of its own.
class Watchers {
 public:
  explicit Watchers(std::string address);
  ~Watchers();  // cancels what is open

  // From the oldest that is kept, as a new watcher begins.
  void Open(const std::string& job_id, bool reads);
  // Those that never read begin to: what had come for them, and then the end that the server gave them.
  void LetSilentRead();
  void ResetStatistics();
  // {"open", "messages", "progress_delay_ms", "ended": {"CODE REASON": n}}. The delay is from the daemon's reading of a
  // sample to the watcher's; of those sent after the reset, on this machine's clock.
  nlohmann::json Statistics();

 private:
  class Stream;

  const std::string address_;
  Mutex mutex_;
  CondVar ended_;
  std::vector<std::unique_ptr<Stream>> streams_;
  int64_t open_ GUARDED_BY(mutex_) = 0;
  int64_t messages_ GUARDED_BY(mutex_) = 0;
  absl::Time since_ GUARDED_BY(mutex_) = absl::InfinitePast();
  Latencies delay_ GUARDED_BY(mutex_);
  std::map<std::string, int64_t> endings_ GUARDED_BY(mutex_);
};

}  // namespace longspan::load
