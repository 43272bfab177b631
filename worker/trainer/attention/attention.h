// Causal self-attention over blocks of tokens, as dense calls on strided views: nothing is copied, rolled or masked.
//
// Shifted sparse attention (S2-Attn; LongLoRA, arXiv 2309.12307, section 3.2), in the form that leaks nothing. Query
// heads h with 2h < Hq attend within blocks of G tokens; the others within blocks moved by floor(G/2). The original
// code rolls the sequence, so that its last group joins the end to the start: from some depth on every position sees
// its own next token. Here the moved half simply has a shorter first and a shorter last block, each its own call:
//
//   tokens          0 ........ G ........ 2G ....... 3G ..... T
//   heads 2h < Hq   [  call 1: T/G blocks of G           ][ 2 ]     2: the ragged rest
//   other heads     [ 3  ][  call 4: blocks of G     ][   5   ]     3: G - floor(G/2) tokens; 5: what is left
//
// The positions (RoPE) are absolute and already applied; blocks never change a position.
//
// With grouped-query attention Hq/Hkv query heads share a key/value head. Where the boundary between the halves falls
// inside such a group (Hkv odd), that half's part of the group is a call of its own, and the shared head's dK and dV
// add. (One call with uneven groups gives silently wrong heads on CPU.)
//
// Plans are values; the functions are thread-safe. Legend: N = B·T rows, H heads, D head size.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace longspan::trainer {

// One dense causal call: `blocks` blocks of `length` tokens, the first at row `first_row`, each `stride_rows` after the
// one before.
struct AttentionCall {
  int64_t query_head = 0;
  int64_t query_heads = 0;
  int64_t key_value_head = 0;
  int64_t key_value_heads = 0;     // divides query_heads
  bool adds_to_key_value = false;  // an earlier call has written dK and dV of this head already
  int64_t first_row = 0;
  int64_t blocks = 0;
  int64_t stride_rows = 0;
  int64_t length = 0;
};

struct AttentionShape {
  int64_t sequences = 0;
  int64_t tokens = 0;  // of each sequence
  int64_t query_heads = 0;
  int64_t key_value_heads = 0;  // divides query_heads
};

using AttentionPlan = std::vector<AttentionCall>;

// Every token attends to all tokens up to itself.
AttentionPlan PlanFullAttention(const AttentionShape& shape);
// S2-Attn with groups of `group` >= 1 tokens. Any number of tokens >= 1, any heads.
AttentionPlan PlanShiftedSparseAttention(const AttentionShape& shape, int64_t group);

// q (N, Hq, D), k and v (N, Hkv, D): views whose last stride is 1, rows of the sequences one after the other. Writes
// out (N, Hq, D) and returns the logsumexp of each call, which the backward pass needs.
std::vector<at::Tensor> AttentionForward(const AttentionPlan& plan, const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const at::Tensor& out);

struct AttentionInputs {
  at::Tensor q, k, v, out;  // of the forward pass
};
struct AttentionGradients {
  at::Tensor q, k, v;  // shaped as the inputs; overwritten
};
// Takes out_gradient (N, Hq, D) over: its rows at the start of blocks are zero afterwards. Such a row attends to itself
// alone, so it moves no q and no k; the kernel would leave rounding noise where the gradient is exactly zero.
void AttentionBackward(const AttentionPlan& plan, const AttentionInputs& inputs,
                       const std::vector<at::Tensor>& logsumexp, const at::Tensor& out_gradient,
                       const AttentionGradients& gradients);

}  // namespace longspan::trainer
