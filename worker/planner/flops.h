// Floating point operations of a job, by arithmetic alone (LongLoRA, arXiv 2309.12307, appendix; no causal halving).
//
// Pure. A multiplication and an addition count as two operations. d hidden size, L layers, N tokens of one sequence, G
// group size.
#pragma once

#include <cstdint>

namespace longspan::planner {

struct ModelShape {
  int64_t hidden_size = 0;
  int64_t query_size = 0;      // query heads times head size
  int64_t key_value_size = 0;  // key/value heads times head size
  int64_t intermediate_size = 0;
  int64_t mlp_matrices = 3;  // with a gate; 2 without
  int64_t num_hidden_layers = 0;
  int64_t vocab_size = 0;
};

struct ForwardFlops {
  double attention = 0;    // 4 N² q L; S2: 4 N G q L; q is the query size, d in most models
  double projections = 0;  // 4 N d (q + kv) L: 8 N d² L where every head has its own keys and values
  double mlp = 0;          // 2 N d d_ff L for each matrix: 6 with a gate
  double other = 0;        // 2 N d V
  double total() const { return attention + projections + mlp + other; }
};

// `attended` is how many tokens each token is counted against: N for full attention, G (at most N) for S2.
ForwardFlops ForwardFlopsOfSequence(const ModelShape& shape, int64_t tokens, int64_t attended);

// Forward and backward of one training sequence. The backward pass costs another forward for dX, and a second one for
// dW where every weight trains. Recomputation is not counted: this is the model's work, not the program's.
double TrainingFlopsOfSequence(const ForwardFlops& forward, bool every_weight_trains);

}  // namespace longspan::planner
