// Attention on views by LibTorch's dense calls, which return new tensors: what they give is copied to its place, and a
// large call is cut into parts, one after another, so that these tensors stay small (dense_attention_memory.h).
//
// Blocks and key/value heads do not meet, so parts compute what the whole does. Legend and types as in flash_cpu.h.
// Thread-safe.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "worker/planner/dense_attention_memory.h"
#include "worker/trainer/attention/flash_cpu.h"

namespace longspan::trainer {

// The sizes of a call, and how far its tensors reach.
planner::DenseCall DenseCallOf(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

// On a GPU as the planner counts them; elsewhere the whole call at once.
planner::DensePart DensePartFor(const FlashQueries& queries, const std::vector<FlashKeys>& keys);

// As BlockForward and BlockBackward (block_attention.h).
void DenseBlocksForward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                        const planner::DensePart& part);
void DenseBlocksBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                         const FlashQueryGradients& gradients, const std::vector<FlashKeyGradients>& key_gradients,
                         const planner::DensePart& part);

// Takes the first row of every block out of `out_gradient` (blocks, Hq, length, D) and returns what it adds to dV
// there: (blocks, Hkv, D).
at::Tensor TakeFirstRows(const at::Tensor& out_gradient, int64_t key_value_heads);

}  // namespace longspan::trainer
