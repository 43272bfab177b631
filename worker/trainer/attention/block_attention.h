// One dense piece of attention on views: queries and one or two runs of keys, under one softmax.
//
// fp32 on the CPU runs on this project's kernels (flash_cpu.h), which write into the views; where `setting` names no
// instructions, for every other type, and on a GPU, LibTorch's (dense_blocks.h) run each set of keys as a call of its
// own, make copies, and the results are joined by their logsumexp. Legend and types as in flash_cpu.h. Thread-safe
// as there.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/attention/flash_cpu.h"

namespace longspan::trainer {

// `setting` needs a workspace where FlashTakes says yes.

// Writes queries.out and queries.logsumexp.
void BlockForward(const FlashQueries& queries, const std::vector<FlashKeys>& keys, const FlashSetting& setting);

// Writes, or adds to, the gradients. Against the out and logsumexp of all keys together each run of keys has its true
// weights, so runs may also be taken one call at a time (FlashQueries::joined). ATen's kernels take gradients.out over:
// where a block's first query sees only itself, its row is zero afterwards.
void BlockBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                   const FlashQueryGradients& gradients, const std::vector<FlashKeyGradients>& key_gradients,
                   const FlashSetting& setting);

// Softmax over two sets of keys from the softmax over each, into the first. values (blocks, heads, length, D) with last
// stride 1, logsumexp (blocks, heads, length) fp32.
void JoinSoftmax(const at::Tensor& values, const at::Tensor& logsumexp, const at::Tensor& other_values,
                 const at::Tensor& other_logsumexp);

}  // namespace longspan::trainer
