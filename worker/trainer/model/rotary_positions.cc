#include "worker/trainer/model/rotary_positions.h"

namespace longspan::trainer {

Rotation RotaryPositions::For(int64_t tokens) {
  if (!cosine_.defined() || cosine_.size(0) < tokens) {
    const at::Tensor exponents =
        at::arange(0, head_dim_, 2, at::kLong).to(at::kFloat).div_(static_cast<double>(head_dim_));
    at::Tensor frequencies = at::pow(rope_.theta, exponents).reciprocal_();
    frequencies.div_(rope_.linear_factor);
    const at::Tensor angles = at::arange(tokens, at::kFloat).unsqueeze(1).mul(frequencies.unsqueeze(0));
    cosine_ = at::cos(angles);
    sine_ = at::sin(angles);
  }
  return {cosine_, sine_, tokens};
}

}  // namespace longspan::trainer
