// Cross-entropy of the next token, in tiles of tokens: the (N, V) logits never exist whole, and the gradient of the
// hidden states comes out of the same pass. Only scored tokens are computed.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/trainer/adapters/fused_linear.h"
#include "worker/trainer/model/causal_lm.h"

namespace longspan::trainer {

constexpr int64_t kIgnoredLabel = -100;

// (B·T) targets: that of position t is labels[t + 1], that of the last one kIgnoredLabel, and so that of the last one
// of each document where document_ids (B, T) is defined.
at::Tensor ShiftedTargets(const at::Tensor& labels, const at::Tensor& document_ids);

// All undefined: the loss alone.
struct LossGradients {
  at::Tensor hidden;  // (N, d), zeros on entry: rows of scored tokens are written
  at::Tensor head;    // (V, d) fp32, added to; undefined when the head is frozen
};

// hidden (N, d) after the final norm, head (V, d), targets (N) int64. Gradients are those of the sum of the losses.
// tile_rows 0: as many as keep a tile of logits near 16 MiB.
LossSum TiledTokenLoss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets, int64_t tile_rows,
                       const LossGradients& gradients);

}  // namespace longspan::trainer
