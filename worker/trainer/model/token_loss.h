// Final norm, output head and cross-entropy of the next token, in tiles of tokens: neither the (N, V) logits nor the
// normed hidden states ever exist whole, and the gradient of the hidden states comes out of the same pass. Only scored
// tokens are computed.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/trainer/adapters/fused_linear.h"
#include "worker/trainer/memory/arena.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/model/norm.h"

namespace longspan::trainer {

constexpr int64_t kIgnoredLabel = -100;

// (B·T) targets: that of position t is labels[t + 1], that of the last one kIgnoredLabel, and so that of the last one
// of each document where document_ids (B, T) is defined.
at::Tensor ShiftedTargets(const at::Tensor& labels, const at::Tensor& document_ids);

struct LossInputs {
  at::Tensor hidden;             // (N, d) the last layer's output
  const NormWeight& final_norm;  // with its gradients, which are added to
  double norm_epsilon = 0;
  at::Tensor head;     // (V, d)
  at::Tensor targets;  // (N) int64, on the host
};

// All undefined: the loss alone.
struct LossGradients {
  at::Tensor hidden;  // (N, d), overwritten; zero where nothing is scored
  at::Tensor head;    // (V, d) fp32, added to; undefined when the head is frozen
};

// Gradients are those of the sum of the losses. tile_rows: rows of a tile of logits.
LossSum TiledTokenLoss(const LossInputs& inputs, int64_t tile_rows, const LossGradients& gradients, Arena& arena);

}  // namespace longspan::trainer
