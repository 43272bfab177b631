// What /metrics, /targets and the status page show, taken from the core in one go. Values; safe to hand to another
// thread.
#pragma once

#include <array>
#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/core/core.h"
#include "server/rpc/coordinator.h"

namespace longspan::http {

struct ClusterSnapshot {
  absl::Time now;
  std::vector<core::JobView> jobs;  // newest first
  std::vector<core::WorkerView> workers;
  std::vector<core::QueueView> queues;  // by name
  std::map<std::string, int64_t> waiting_by_reason;
  core::Counters counters;
  std::array<int64_t, 12> jobs_by_state{};  // by the number of the state
};

// Which jobs a snapshot holds: of those that live or ended at most `ended_within` ago, the newest `jobs_max`.
struct SnapshotScope {
  absl::Duration ended_within = absl::Minutes(5);
  size_t jobs_max = 10'000;
};

// Waits for the coordinator. DEADLINE_EXCEEDED when it does not answer in time, UNAVAILABLE when its store does not
// work.
absl::StatusOr<ClusterSnapshot> TakeSnapshot(rpc::Coordinator& coordinator, SnapshotScope scope,
                                             std::chrono::milliseconds timeout);

}  // namespace longspan::http
