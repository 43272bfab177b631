// Attention over sequences whose consecutive tokens lie on several ranks (parallel/sequence_ranks.h). Each rank has q,
// k and v of its own tokens, RoPE applied with absolute positions, and gets the output of its own tokens.
//
// S2-Attn, groups that divide a rank's tokens: unmoved heads never look across a border between ranks, and of the moved
// heads only one block lies across each. Its later part sees the last floor(G/2) tokens of the rank before, the halo:
//
//   rank                    p - 1         │           p
//   heads 2h < Hq    [  G  ][  G  ][  G  ]│[  G  ][  G  ][  G  ]     local
//   other heads     ][  G  ][  G  ][ G/2 ──► G/2  ][  G  ][  G  ]    K and V of G/2 tokens of the moved heads
//                                  [ G/2 ◄── G/2  ]                  dK and dV of them, backward
//
// They leave before the local blocks are computed and are waited for after these, both ways.
//
// Full attention: blocks of K and V go along the line of ranks, each rank handing on what it has received while it
// computes with it, and the softmax over each block is joined into that over the ones before by its logsumexp (ring
// attention, arXiv 2310.01889; causal, so that nothing travels from a later rank to an earlier one, and the line does
// not close). Backward the blocks go along once more, and what a rank finds for a block's dK and dV goes straight to
// the block's owner:
//
//   hop 1    k v of 0 ──► 1,  of 1 ──► 2,  of 2 ──► 3          dk dv: 1 ──► 0,  2 ──► 1,  3 ──► 2
//   hop 2               of 0 ──► 2,  of 1 ──► 3 (by 1 and 2)          2 ──► 0,  3 ──► 1
//   hop 3                         of 0 ──► 3 (by 2)                   3 ──► 0
//
// Short groups that divide a rank's tokens need nothing of other ranks.
//
// All ranks of a sequence make the same calls in the same order. Not thread-safe. Legend as in attention.h; n tokens of
// a rank, N = B·n its rows.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/attention/attention.h"
#include "worker/trainer/memory/arena.h"
#include "worker/trainer/parallel/sequence_ranks.h"

namespace longspan::trainer {

enum class SequenceTraffic { kNone, kHalo, kRing };

struct SequencePlan {
  AttentionPlan calls;  // over a rank's own rows
  SequenceTraffic traffic = SequenceTraffic::kNone;
  int64_t rank = 0;
  std::vector<SequenceShare> shares;  // of every rank
  int64_t sequences = 0;
  // kHalo: tokens of a sequence, the key/value heads that it is of, and the calls that see it. The calls before these
  // write the dK and dV that they add to.
  int64_t halo_tokens = 0;
  int64_t halo_head = 0, halo_heads = 0;
  size_t first_halo_call = 0, halo_calls = 0;
};

struct SequencePlace {
  int64_t rank = 0, ranks = 1;
};

// `whole`: of the whole sequences, each one document and at least as many tokens as there are ranks.
SequencePlan PlanFullSequence(const AttentionShape& whole, const SequencePlace& place);
// `group` divides each rank's tokens, which are equally many.
SequencePlan PlanShortSequence(const AttentionShape& whole, const SequencePlace& place, int64_t group);
SequencePlan PlanShiftedSparseSequence(const AttentionShape& whole, const SequencePlace& place, int64_t group);

// One layer's attention in one pass. Buffers are slots of `arena`. References outlive it.
class SequenceAttention {
 public:
  SequenceAttention(const SequencePlan& plan, SequenceRanks& ranks, Arena& arena)
      : plan_(plan), ranks_(ranks), arena_(arena) {}

  // Sends what a halo needs, so that it travels during what is computed until Forward or Backward; k and v stay as they
  // are until then. Else these do it themselves.
  void Start(const at::Tensor& k, const at::Tensor& v);
  // As AttentionForward and AttentionBackward of the plan's calls. fp32 on the CPU wants a workspace in `setting`.
  void Forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
               const std::vector<at::Tensor>& logsumexp, const FlashSetting& setting);
  // Full attention through a window (sliding_window.h), forward only.
  void ForwardWindow(int64_t window, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& out, const std::vector<at::Tensor>& logsumexp);
  void Backward(const AttentionInputs& inputs, const std::vector<at::Tensor>& logsumexp, const at::Tensor& out_gradient,
                const AttentionGradients& gradients, const FlashSetting& setting);

 private:
  bool first() const { return plan_.rank == 0; }
  bool last() const { return plan_.rank + 1 == static_cast<int64_t>(plan_.shares.size()); }
  int64_t tokens() const { return plan_.shares[static_cast<size_t>(plan_.rank)].tokens; }
  bool SeesHalo(size_t call) const {
    return !first() && call >= plan_.first_halo_call && call < plan_.first_halo_call + plan_.halo_calls;
  }

  void FinishHalo(const at::Tensor& k, const at::Tensor& v);
  at::Tensor HaloBuffer(planner::Slot slot, const at::Tensor& like) const;
  at::Tensor HaloView(const at::Tensor& halo, const AttentionCall& call) const;
  std::vector<FlashKeys> KeysOf(size_t call, const at::Tensor& k, const at::Tensor& v) const;
  void BackwardCalls(size_t begin, size_t end, const AttentionInputs& inputs, const std::vector<at::Tensor>& logsumexp,
                     const at::Tensor& out_gradient, const AttentionGradients& gradients, const FlashSetting& setting);
  void AddHaloGradients(const at::Tensor& halo, const AttentionGradients& gradients) const;

  struct Block;
  class BlockLine;
  void RingForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                   const at::Tensor& logsumexp, const FlashSetting& setting);
  void RingBackward(const AttentionInputs& inputs, const at::Tensor& logsumexp, const at::Tensor& out_gradient,
                    const AttentionGradients& gradients, const FlashSetting& setting);

  const SequencePlan& plan_;
  SequenceRanks& ranks_;
  Arena& arena_;
  enum class Halo { kMissing, kTravels, kThere } halo_state_ = Halo::kMissing;
  SequenceRanks::Pending halo_pending_;
  at::Tensor halo_sent_, halo_, halo_gradient_;  // (2, B, tokens, heads, D): of K and of V
};

}  // namespace longspan::trainer
