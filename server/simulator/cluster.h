// The cluster that a trace is replayed on: groups of equal workers, and queues.
//
//   {"workers": [{"count": 128, "slots": 8, "device": "NVIDIA H200", "memory_gib": 141, "racks": 8,
//                 "labels": {"zone": "a"}}],
//    "queues": [{"name": "vision", "weight": 2, "slots_max": 256, "run_time_default": 86400}]}
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/scheduler/schedule.h"

namespace longspan::simulator {

struct WorkerGroup {
  int64_t count = 1;
  int64_t slots = 8;
  std::string device = "cpu";
  int64_t memory_bytes = 0;
  int64_t racks = 0;  // the workers are spread over so many in turns; 0: no label `rack`
  std::map<std::string, std::string> labels;
};

struct QueueRules {
  double weight = 1;
  int64_t slots_max = 0;                              // 0: no limit
  absl::Duration run_time_default = absl::Hours(24);  // estimate for jobs without a limit
};

struct ClusterSpec {
  std::vector<WorkerGroup> groups;
  std::map<std::string, QueueRules> queues;

  int64_t SlotCount() const;
  // All up and free, by id: w00000, w00001, ...
  std::vector<scheduler::WorkerSlots> Workers(std::vector<scheduler::SlotKind>& kinds) const;
};

// `name` is for messages.
absl::StatusOr<ClusterSpec> ParseCluster(const std::string& text, const std::string& name);
absl::StatusOr<ClusterSpec> ReadClusterFile(const std::string& path);

std::string ClusterText(const ClusterSpec& cluster);

}  // namespace longspan::simulator
