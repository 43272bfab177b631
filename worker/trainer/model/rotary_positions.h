// The angles of rotary positions (RoPE), computed as transformers computes them, operation by operation in fp32, so
// that long positions agree to the last bit.
#pragma once

#include "worker/model_config/rope_scaling.h"
#include "worker/trainer/model/packed_documents.h"
#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {

struct RotaryFrequencies {
  at::Tensor inverse;           // (rotary_dims / 2) fp32; position p turns pair i by p * inverse[i]
  double attention_factor = 1;  // multiplies cosine and sine
};

// Of a sequence of `tokens`, on which only dynamic depends. rotary_dims is even and at least 2 (dynamic: above 2).
RotaryFrequencies ComputeRotaryFrequencies(const RopeParameters& rope, int64_t rotary_dims, int64_t tokens);

// A table of cosines and sines that grows to the longest sequence seen. Not thread-safe.
//
// dynamic has a table for every length beyond the original one: For(tokens) is what transformers computes for a first
// batch of that length. (transformers keeps the frequencies of the longest batch it has seen for shorter ones that are
// still beyond the original length; here the result does not depend on what came before.)
class RotaryPositions {
 public:
  RotaryPositions() = default;
  // Angles are computed on the host, whatever `device` then has the table.
  RotaryPositions(const RopeParameters& rope, int64_t head_dim, at::Device device = at::kCPU)
      : rope_(rope), rotary_dims_(RotaryDims(rope, head_dim)), device_(device) {}

  Rotation For(int64_t tokens);
  // Of the rows of a batch packed from documents, each as long as it is.
  Rotation Within(const PackedDocuments& documents);

 private:
  RopeParameters rope_;
  int64_t rotary_dims_ = 0;
  at::Device device_ = at::kCPU;
  int64_t scaled_for_ = 0;    // dynamic: the length the table is scaled for
  at::Tensor cosine_, sine_;  // (positions, rotary_dims / 2) fp32
};

}  // namespace longspan::trainer
