#include "worker/planner/flops.h"

#include <algorithm>

namespace longspan::planner {

ForwardFlops ForwardFlopsOfSequence(const ModelShape& shape, int64_t tokens, int64_t attended) {
  const auto n = static_cast<double>(tokens);
  const auto d = static_cast<double>(shape.hidden_size);
  const auto layers = static_cast<double>(shape.num_hidden_layers);
  ForwardFlops flops;
  flops.attention =
      4 * n * static_cast<double>(std::min(attended, tokens)) * static_cast<double>(shape.query_size) * layers;
  flops.projections = 4 * n * d * static_cast<double>(shape.query_size + shape.key_value_size) * layers;
  flops.mlp = 2 * n * d * static_cast<double>(shape.mlp_matrices * shape.intermediate_size) * layers;
  flops.other = 2 * n * d * static_cast<double>(shape.vocab_size);
  return flops;
}

double TrainingFlopsOfSequence(const ForwardFlops& forward, bool every_weight_trains) {
  return forward.total() * (every_weight_trains ? 3 : 2);
}

}  // namespace longspan::planner
