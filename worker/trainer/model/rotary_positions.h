// The angles of rotary positions (RoPE), computed as transformers computes them, so that long positions agree to the
// last bit of fp32.
#pragma once

#include "worker/trainer/model/model_config.h"
#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {

// A table of cosines and sines that grows to the longest sequence seen. Not thread-safe.
class RotaryPositions {
 public:
  RotaryPositions() = default;
  RotaryPositions(const RopeParameters& rope, int64_t head_dim) : rope_(rope), head_dim_(head_dim) {}

  Rotation For(int64_t tokens);

 private:
  RopeParameters rope_;
  int64_t head_dim_ = 0;
  at::Tensor cosine_, sine_;  // (positions, D/2) fp32
};

}  // namespace longspan::trainer
