// Every memory policy that a job leaves open, with what a rank holds under it.
//
// Laying out an arena is what costs (step_buffers.h: LayOut). No arena is smaller than its fullest stage, so policies
// are judged by that first, and each arena is laid out only where the answer depends on it, once. Answers are those of
// the whole search.
//
// Pure, not thread-safe: it remembers the arenas. `job` must outlive it; its limits are not read.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "worker/planner/memory_policy.h"
#include "worker/planner/planned_job.h"
#include "worker/planner/rank_memory.h"

namespace longspan::planner {

bool Fits(const RankMemory& memory, const MemoryLimits& limits);

// By how much a plan goes beyond the limits.
int64_t BytesOver(const RankMemory& memory, const MemoryLimits& limits);

struct Candidate {
  MemoryPolicy policy;
  RankMemory memory;
};

class PolicySearch {
 public:
  // False ends the search.
  using Take = std::function<bool(const Candidate&)>;
  // A number of bytes that does not fall when the arena grows.
  using Measure = std::function<int64_t(const RankMemory&)>;

  PolicySearch(const PlannedJob& job, const ModelMemory& model);

  // All of them, most kept first. Where the job leaves it open, as few layers go to host memory as make it fit, and at
  // most as many as host memory has room for.
  void ForEach(const MemoryLimits& limits, const Take& take);
  // Those that fit, in the same order.
  void ForEachThatFits(const MemoryLimits& limits, const Take& take);
  bool AnyFits(const MemoryLimits& limits);
  // The least of those that fit; absent when none does.
  std::optional<int64_t> Least(const MemoryLimits& limits, const Measure& measure);
  // The smallest limits.device under which some policy fits that has the other limits.
  std::optional<int64_t> LeastDeviceBytes(const MemoryLimits& limits);

 private:
  // Policies that differ in what is kept and in the sizes of tiles: the arena depends on them, and on whether segments
  // run again.
  struct Tiled {
    MemoryPolicy policy;
    std::optional<int64_t> attention;
    std::array<std::optional<int64_t>, 2> least_workspace;
    std::array<std::optional<int64_t>, 2> workspace;
  };

  Candidate CandidateOf(Tiled& tiled, int64_t checkpoint_every, const MemoryLimits& limits, bool laid_out);
  // As many layers in host memory as `chosen_for` asks for; of what fits `limits`.
  std::optional<int64_t> LeastOf(const MemoryLimits& chosen_for, const MemoryLimits& limits, const Measure& measure);

  const PlannedJob& job_;
  const StepShape shape_;
  const RankMemory without_policy_;
  std::vector<Tiled> tiled_;
  std::vector<int64_t> checkpoint_every_;
  std::optional<int64_t> host_layers_;
};

}  // namespace longspan::planner
