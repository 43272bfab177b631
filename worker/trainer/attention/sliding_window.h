// Causal attention limited to a window: token i attends to tokens i - window + 1 ... i. What Mistral and some Qwen
// layers compute with their own config.json; for evaluation, since training never limits attention so (model_config.h).
//
// Tiles of rows, each against the keys that any of its rows sees, under one mask that all tiles share (sequences start
// before it, or end within it). So memory grows with the window and not with the sequence, and work with T·window:
//
//            keys   begin - window + 1 ....... begin ........ begin + rows
//   row begin       [ xxxxxxxxxxxxxxxxxxxxxxxxx ]
//   last row                       [ xxxxxxxxxxxxxxxxxxxxxxxxx ]
//
// On a GPU kernels that know windows take all rows at once (window_kernels.h). Thread-safe. Legend as in attention.h.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "worker/trainer/attention/attention.h"

namespace longspan::trainer {

inline constexpr int64_t kWindowTileRowsMax = 512;

// q (N, Hq, D), k and v (N, Hkv, D): views whose last stride is 1. Writes out (N, Hq, D). window >= 1; one that is as
// long as the sequence is full attention. c10::Error on a shape that disagrees.
void SlidingWindowAttention(const AttentionShape& shape, int64_t window, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& out);

// A part of the queries and a part of the keys of sequences: token first_query + i is row i of q, token first_key + j
// row j of k, and first_key <= first_query.
struct WindowPart {
  int64_t window = 0;
  int64_t first_query = 0, first_key = 0;
  bool joins = false;  // the softmax over these keys into that over others; else overwrites, and each row sees a key
};
// q, out (B, Hq, n, D), k, v (B, Hkv, m, D), logsumexp (B, Hq, n) fp32. Rows that see none of the keys stay.
void WindowPartForward(const WindowPart& part, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& out, const at::Tensor& logsumexp);

}  // namespace longspan::trainer
