#include "worker/planner/weight_shards.h"

#include <algorithm>

#include "worker/planner/kept_values.h"

namespace longspan::planner {
namespace {

int64_t RoundedUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

}  // namespace

int64_t WeightShards::whole_bytes() const {
  int64_t elements = 0;
  for (const LinearShape& linear : linears) elements += linear.inputs * linear.outputs;
  return layers * elements * element_bytes;
}

WeightShards ShardWeights(const StepShape& shape) {
  WeightShards shards;
  shards.linears = {shape.query_key_value, shape.output, shape.mlp_in, shape.mlp_out};
  shards.element_bytes = shape.element_bytes;
  shards.ranks = shape.weight_ranks;
  shards.layers = shape.num_hidden_layers;
  const int64_t alignment = kArenaAlignment / shape.element_bytes;
  int64_t end = 0;
  for (size_t i = 0; i < shards.linears.size(); ++i) {
    shards.first[i] = RoundedUp(end, alignment);
    end = shards.first[i] + shards.linears[i].inputs * shards.linears[i].outputs;
  }
  shards.rank_elements = RoundedUp((end + shards.ranks - 1) / shards.ranks, alignment);
  return shards;
}

std::vector<int64_t> ForwardOrder(const StepShape& shape) {
  std::vector<int64_t> order;
  for (int64_t layer = 0; layer < shape.num_hidden_layers; ++layer) order.push_back(layer);
  return order;
}

// As TrainingLayers goes through them (worker/trainer/model/training_layers.h).
std::vector<int64_t> TrainingOrder(const StepShape& shape, const MemoryPolicy& policy) {
  std::vector<int64_t> order = ForwardOrder(shape);
  const int64_t layers = shape.num_hidden_layers, every = std::max<int64_t>(1, policy.checkpoint_every);
  for (int64_t begin = (layers - 1) / every * every; begin >= 0; begin -= every) {
    const int64_t end = std::min(layers, begin + every);
    const bool runs_again = every > 1 && end < layers;
    // The last one of a segment runs again only for what it keeps beside its input.
    const int64_t rerun_end = policy.keep == KeepPolicy::kInput ? end - 1 : end;
    for (int64_t layer = begin; runs_again && layer < rerun_end; ++layer) order.push_back(layer);
    for (int64_t layer = end - 1; layer >= begin; --layer) order.push_back(layer);
  }
  return order;
}

int64_t GathersOf(const std::vector<int64_t>& order) {
  int64_t gathers = 0, current = -1, other = -1;
  for (const int64_t layer : order) {
    if (layer == current) continue;
    if (layer != other) ++gathers;
    other = current;
    current = layer;
  }
  return gathers;
}

}  // namespace longspan::planner
