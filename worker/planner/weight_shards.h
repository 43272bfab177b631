// Where the frozen linear weights of the decoder layers lie when the ranks share them (resources.shard_weights).
//
// The four fused weights of a layer are one row of elements, each from a multiple of kArenaAlignment bytes on, padded
// so that every rank holds an equal slice of the row. Two rows are gathered at a time: the layer that computes and the
// next.
//
//   row of a layer   │ q k v      │ output │ gate up        │ down      ·│    · padding
//   of 3 ranks       │ rank 0             │ rank 1             │ rank 2   │
//
// Pure. The trainer allocates by it and the planner counts by it, so that the two cannot disagree.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "worker/planner/memory_policy.h"
#include "worker/planner/step_buffers.h"

namespace longspan::planner {

struct WeightShards {
  std::array<int64_t, 4> first{};  // element of the row at which each fused weight begins, in the order of the layer
  std::array<LinearShape, 4> linears{};
  int64_t element_bytes = 4;
  int64_t rank_elements = 0;  // of the row, on each rank
  int64_t ranks = 1;
  int64_t layers = 0;

  int64_t row_elements() const { return rank_elements * ranks; }
  int64_t held_bytes() const { return layers * rank_elements * element_bytes; }  // by a rank
  int64_t gathered_bytes() const { return kGatheredRows * row_elements() * element_bytes; }
  int64_t whole_bytes() const;  // of all layers, where nothing is shared

  static constexpr int64_t kGatheredRows = 2;
};
// `shape` with weight_ranks above 0.
WeightShards ShardWeights(const StepShape& shape);

// The layers in the order in which passes compute with them, one that runs again as often as it does.
std::vector<int64_t> ForwardOrder(const StepShape& shape);
std::vector<int64_t> TrainingOrder(const StepShape& shape, const MemoryPolicy& policy);
// How many rows a pass in this order gathers: not those that are among the last two.
int64_t GathersOf(const std::vector<int64_t>& order);

}  // namespace longspan::planner
