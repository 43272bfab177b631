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
// With BlockEdge::kWrap block 5 also sees block 3, as in the paper's picture of the group "7169...8192, 1...1024", but
// by absolute position: block 3 never sees block 5. To be exact, with block(i) = floor((i + floor(G/2)) / G) for the
// moved half: where block(T - 1) > 0, the tokens of block(T - 1) also attend to every token of block 0. Where G >= 2
// divides T, these are the last floor(G/2) and the first G - floor(G/2) tokens: the group that the roll makes, without
// the leak. Where it does not, the last block has its 1 to G tokens and sees block 0 all the same. This project's
// kernels take both parts under one softmax. ATen's run each as a dense call, and the results are joined by their
// logsumexp; the backward pass runs each against the joined output, as ring attention does.
//
// A sequence may be packed from documents: then all of this holds for each document as if it stood alone.
//
// The positions (RoPE) are already applied; blocks never change a position.
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

#include "worker/trainer/attention/flash_cpu.h"

namespace longspan::trainer {

// Pieces of unlike lengths that do not see each other, one after the other: piece i has the rows from starts[i] to
// starts[i + 1] of a call. The tensors hold the same for kernels: int32 starts, int64 first rows.
struct SegmentList {
  std::vector<int32_t> starts;  // from 0 to the call's rows; empty: the call is no such list
  int64_t longest = 0;
  at::Tensor starts_on_device, first_rows_on_device;

  bool empty() const { return starts.empty(); }
  int64_t count() const { return static_cast<int64_t>(starts.size()) - 1; }
};

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
  // Above 0: each block also sees this many rows before it, from `prefix_first_row` on (the next block's are
  // `stride_rows` after). An earlier call has written their dK and dV.
  int64_t prefix_length = 0;
  int64_t prefix_first_row = 0;
  SegmentList segments{};  // not empty: one block, whose tokens see those of their own segment alone (segments.h)
};

// `documents` documents of `tokens` tokens each, one after the other from row `first_row` on.
struct DocumentRun {
  int64_t first_row = 0;
  int64_t documents = 0;
  int64_t tokens = 0;
};

struct AttentionShape {
  int64_t sequences = 0;
  int64_t tokens = 0;  // of each sequence
  int64_t query_heads = 0;
  int64_t key_value_heads = 0;           // divides query_heads
  std::vector<DocumentRun> documents{};  // cover all rows in order; empty: each sequence is one document
};

using AttentionPlan = std::vector<AttentionCall>;

enum class BlockEdge { kSplit, kWrap };

// Every token attends to all tokens up to itself.
AttentionPlan PlanFullAttention(const AttentionShape& shape);
// Every head attends within unmoved blocks of `group` >= 1 tokens: the paper's comparison "short".
AttentionPlan PlanShortAttention(const AttentionShape& shape, int64_t group);
// S2-Attn with groups of `group` >= 1 tokens. Any number of tokens >= 1, any heads.
AttentionPlan PlanShiftedSparseAttention(const AttentionShape& shape, int64_t group,
                                         BlockEdge edge = BlockEdge::kSplit);

// fp32 values of the logsumexps of all calls together: N·Hq.
int64_t LogsumexpSize(const AttentionPlan& plan);
// The logsumexp of each call, (blocks, query_heads, length), as views of one contiguous tensor of LogsumexpSize values.
std::vector<at::Tensor> SplitLogsumexp(const AttentionPlan& plan, const at::Tensor& all);

// What the query heads of a call read or write in rows (N, Hq, D), and its key/value heads in rows (N, Hkv, D), without
// its prefix: (blocks, heads, length, D).
at::Tensor QueryView(const at::Tensor& rows, const AttentionCall& call);
at::Tensor KeyValueView(const at::Tensor& rows, const AttentionCall& call);

// Each call is BlockForward and BlockBackward (block_attention.h): fp32 on the CPU allocates nothing beside the
// workspace. A setting without one: each pass makes one of FlashWorkspaceSize(D, threads) values.

// q (N, Hq, D), k and v (N, Hkv, D): views whose last stride is 1, rows of the sequences one after the other. Writes
// out (N, Hq, D) and the logsumexp of each call, which the backward pass needs.
void AttentionForward(const AttentionPlan& plan, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& out, const std::vector<at::Tensor>& logsumexp,
                      const FlashSetting& setting = {});
// The same into logsumexps that it makes.
std::vector<at::Tensor> AttentionForward(const AttentionPlan& plan, const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const at::Tensor& out, const FlashSetting& setting = {});

// The part of a plan for key/value heads [first, first + count) with their query heads, which count from the first of
// each on: for views of these heads alone. `logsumexp`: of all heads, for each call.
struct HeadTile {
  AttentionPlan plan;
  std::vector<at::Tensor> logsumexp;
};
HeadTile TileOfHeads(const AttentionPlan& plan, const std::vector<at::Tensor>& logsumexp, int64_t first, int64_t count,
                     int64_t heads_per_key_value);

struct AttentionInputs {
  at::Tensor q, k, v, out;  // of the forward pass
};
struct AttentionGradients {
  at::Tensor q, k, v;  // shaped as the inputs; overwritten
};
// A row that attends to itself alone moves no q and no k: its gradient there is exactly zero, without rounding noise.
// For that ATen's kernels take out_gradient (N, Hq, D) over: the first rows of blocks without a prefix are zero
// afterwards.
void AttentionBackward(const AttentionPlan& plan, const AttentionInputs& inputs,
                       const std::vector<at::Tensor>& logsumexp, const at::Tensor& out_gradient,
                       const AttentionGradients& gradients, const FlashSetting& setting = {});

}  // namespace longspan::trainer
