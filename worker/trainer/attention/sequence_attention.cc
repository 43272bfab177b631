#include "worker/trainer/attention/sequence_attention.h"

#include <algorithm>
#include <array>
#include <utility>

#include "worker/trainer/attention/block_attention.h"
#include "worker/trainer/attention/sliding_window.h"

namespace longspan::trainer {
namespace {

AttentionShape OwnShape(const AttentionShape& whole, int64_t tokens) {
  return {whole.sequences, tokens, whole.query_heads, whole.key_value_heads};
}

SequencePlan PlanOf(const AttentionShape& whole, const SequencePlace& place) {
  TORCH_CHECK(place.ranks >= 1 && place.rank >= 0 && place.rank < place.ranks && whole.tokens >= place.ranks,
              "sequences of ", whole.tokens, " tokens on ", place.ranks, " ranks");
  TORCH_CHECK(whole.documents.empty(), "packed documents on several ranks");
  SequencePlan plan;
  plan.rank = place.rank;
  plan.shares = SharesOf(whole.tokens, place.ranks);
  plan.sequences = whole.sequences;
  return plan;
}

int64_t OwnTokens(const SequencePlan& plan) { return plan.shares[static_cast<size_t>(plan.rank)].tokens; }

void CheckGroup(const AttentionShape& whole, const SequencePlace& place, int64_t group) {
  TORCH_CHECK(group >= 1 && whole.tokens % (place.ranks * group) == 0, "groups of ", group, " tokens in sequences of ",
              whole.tokens, " on ", place.ranks, " ranks");
}

// Of rows (N, Hkv, D) the last tokens of each sequence's share, the heads of the halo: (B, tokens, heads, D).
at::Tensor TailOf(const SequencePlan& plan, const at::Tensor& rows) {
  const int64_t tokens = OwnTokens(plan);
  return rows.unflatten(0, {plan.sequences, tokens})
      .narrow(1, tokens - plan.halo_tokens, plan.halo_tokens)
      .narrow(2, plan.halo_head, plan.halo_heads);
}

}  // namespace

// ---- plans ----

SequencePlan PlanFullSequence(const AttentionShape& whole, const SequencePlace& place) {
  SequencePlan plan = PlanOf(whole, place);
  plan.calls = PlanFullAttention(OwnShape(whole, OwnTokens(plan)));
  if (place.ranks > 1) plan.traffic = SequenceTraffic::kRing;
  return plan;
}

SequencePlan PlanShortSequence(const AttentionShape& whole, const SequencePlace& place, int64_t group) {
  CheckGroup(whole, place, group);
  SequencePlan plan = PlanOf(whole, place);
  plan.calls = PlanShortAttention(OwnShape(whole, OwnTokens(plan)), group);
  return plan;
}

SequencePlan PlanShiftedSparseSequence(const AttentionShape& whole, const SequencePlace& place, int64_t group) {
  CheckGroup(whole, place, group);
  SequencePlan plan = PlanOf(whole, place);
  const AttentionPlan local = PlanShiftedSparseAttention(OwnShape(whole, OwnTokens(plan)), group);
  const int64_t unmoved_heads = (whole.query_heads + 1) / 2;
  plan.halo_tokens = group / 2;
  plan.halo_head = unmoved_heads / (whole.query_heads / whole.key_value_heads);
  plan.halo_heads = whole.key_value_heads - plan.halo_head;
  if (place.ranks == 1 || plan.halo_tokens == 0 || plan.halo_heads == 0) {
    plan.calls = local;
    return plan;
  }
  plan.traffic = SequenceTraffic::kHalo;
  // First the unmoved part of a head that both halves share, whose dK and dV the moved part adds to; then what looks
  // across the border, so that its gradients leave early; then the rest.
  const auto turn_of = [&](const AttentionCall& call) {
    const bool moved = call.query_head >= unmoved_heads;
    if (!moved) return call.key_value_head == plan.halo_head ? 0 : 2;
    return call.first_row == 0 ? 1 : 2;
  };
  for (int turn = 0; turn <= 2; ++turn) {
    if (turn == 1) plan.first_halo_call = plan.calls.size();
    for (const AttentionCall& call : local) {
      if (turn_of(call) == turn) plan.calls.push_back(call);
    }
    if (turn == 1) plan.halo_calls = plan.calls.size() - plan.first_halo_call;
  }
  return plan;
}

// ---- the halo ----

at::Tensor SequenceAttention::HaloBuffer(planner::Slot slot, const at::Tensor& like) const {
  return arena_.Take(slot, {2, plan_.sequences, plan_.halo_tokens, plan_.halo_heads, like.size(2)}, like.scalar_type());
}

void SequenceAttention::Start(const at::Tensor& k, const at::Tensor& v) {
  if (plan_.traffic != SequenceTraffic::kHalo) return;
  halo_sent_ = HaloBuffer(planner::Slot::kHaloSent, k);
  halo_ = HaloBuffer(planner::Slot::kHalo, k);
  Communicator::Exchange exchange;
  if (!last()) {
    halo_sent_.select(0, 0).copy_(TailOf(plan_, k));
    halo_sent_.select(0, 1).copy_(TailOf(plan_, v));
    exchange.sent = halo_sent_;
    exchange.to = plan_.rank + 1;
  }
  if (!first()) {
    exchange.received = halo_;
    exchange.from = plan_.rank - 1;
  }
  halo_pending_ = ranks_.StartExchange(exchange);
  halo_state_ = Halo::kTravels;
}

void SequenceAttention::FinishHalo(const at::Tensor& k, const at::Tensor& v) {
  if (halo_state_ == Halo::kMissing) Start(k, v);
  ranks_.Finish(halo_pending_);
  halo_state_ = Halo::kThere;
}

// (B, heads of the call, tokens, D) of K or V in a halo.
at::Tensor SequenceAttention::HaloView(const at::Tensor& halo, const AttentionCall& call) const {
  return halo.narrow(2, call.key_value_head - plan_.halo_head, call.key_value_heads).transpose(1, 2);
}

std::vector<FlashKeys> SequenceAttention::KeysOf(size_t call, const at::Tensor& k, const at::Tensor& v) const {
  const AttentionCall& of = plan_.calls[call];
  std::vector<FlashKeys> keys;
  if (SeesHalo(call)) keys.push_back({HaloView(halo_[0], of), HaloView(halo_[1], of), /*causal=*/false});
  keys.push_back({KeyValueView(k, of), KeyValueView(v, of), /*causal=*/true});
  return keys;
}

void SequenceAttention::Forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                                const std::vector<at::Tensor>& logsumexp, const FlashSetting& setting) {
  if (plan_.traffic == SequenceTraffic::kRing) {
    RingForward(q, k, v, out, logsumexp.at(0), setting);
    return;
  }
  if (plan_.traffic == SequenceTraffic::kHalo && halo_state_ == Halo::kMissing) Start(k, v);
  const auto forward = [&](bool sees_halo) {
    for (size_t call = 0; call < plan_.calls.size(); ++call) {
      if (SeesHalo(call) != sees_halo) continue;
      const AttentionCall& of = plan_.calls[call];
      BlockForward({QueryView(q, of), QueryView(out, of), logsumexp.at(call)}, KeysOf(call, k, v), setting);
    }
  };
  forward(/*sees_halo=*/false);
  if (plan_.traffic != SequenceTraffic::kHalo) return;
  FinishHalo(k, v);
  forward(/*sees_halo=*/true);
}

void SequenceAttention::BackwardCalls(size_t begin, size_t end, const AttentionInputs& inputs,
                                      const std::vector<at::Tensor>& logsumexp, const at::Tensor& out_gradient,
                                      const AttentionGradients& gradients, const FlashSetting& setting) {
  for (size_t call = begin; call < end; ++call) {
    const AttentionCall& of = plan_.calls[call];
    std::vector<FlashKeyGradients> parts;
    // Each head of the halo is in one call.
    if (SeesHalo(call)) parts.push_back({HaloView(halo_gradient_[0], of), HaloView(halo_gradient_[1], of)});
    parts.push_back({KeyValueView(gradients.k, of), KeyValueView(gradients.v, of), of.adds_to_key_value});
    BlockBackward({QueryView(inputs.q, of), QueryView(inputs.out, of), logsumexp.at(call)},
                  KeysOf(call, inputs.k, inputs.v), {QueryView(out_gradient, of), QueryView(gradients.q, of)}, parts,
                  setting);
  }
}

void SequenceAttention::AddHaloGradients(const at::Tensor& halo, const AttentionGradients& gradients) const {
  TailOf(plan_, gradients.k).add_(halo[0]);
  TailOf(plan_, gradients.v).add_(halo[1]);
}

void SequenceAttention::Backward(const AttentionInputs& inputs, const std::vector<at::Tensor>& logsumexp,
                                 const at::Tensor& out_gradient, const AttentionGradients& gradients,
                                 const FlashSetting& setting) {
  if (plan_.traffic == SequenceTraffic::kRing) {
    RingBackward(inputs, logsumexp.at(0), out_gradient, gradients, setting);
    return;
  }
  const auto calls = [&](size_t begin, size_t end) {
    BackwardCalls(begin, end, inputs, logsumexp, out_gradient, gradients, setting);
  };
  if (plan_.traffic == SequenceTraffic::kNone) {
    calls(0, plan_.calls.size());
    return;
  }
  FinishHalo(inputs.k, inputs.v);
  halo_gradient_ = HaloBuffer(planner::Slot::kHaloGradient, inputs.k);
  const size_t border = plan_.first_halo_call + plan_.halo_calls;
  calls(0, border);
  Communicator::Exchange exchange;
  if (!first()) {
    exchange.sent = halo_gradient_;
    exchange.to = plan_.rank - 1;
  }
  if (!last()) {
    exchange.received = halo_sent_;  // which has arrived, so it is free
    exchange.from = plan_.rank + 1;
  }
  SequenceRanks::Pending pending = ranks_.StartExchange(exchange);
  calls(border, plan_.calls.size());
  ranks_.Finish(pending);
  if (!last()) AddHaloGradients(halo_sent_, gradients);
  halo_state_ = Halo::kMissing;
}

// ---- the ring ----

// K and V of one rank's rows: (2, B, n, Hkv, D) at the start of a buffer that has room for the largest.
struct SequenceAttention::Block {
  at::Tensor both;
  at::Tensor k() const { return both[0].transpose(1, 2); }  // (B, Hkv, n, D)
  at::Tensor v() const { return both[1].transpose(1, 2); }
};

// The blocks that come along the line, one buffer to compute with and hand on and one to receive into.
class SequenceAttention::BlockLine {
 public:
  BlockLine(SequenceAttention& of, const at::Tensor& k, const at::Tensor& v)
      : plan_(of.plan_), ranks_(of.ranks_), key_value_heads_(k.size(1)), head_dim_(k.size(2)) {
    buffers_ = of.arena_.Take(planner::Slot::kRingBlocks, {2, SizeOf(0)}, k.scalar_type());
    const Block own = BlockOf(buffers_[0], plan_.rank);
    own.both[0].copy_(k.unflatten(0, {plan_.sequences, -1}));
    own.both[1].copy_(v.unflatten(0, {plan_.sequences, -1}));
    Pass(own, 0);
  }

  // Of the rank `hop` before this one; call with hop 1, 2, ... up to this rank's own number.
  Block Next(int64_t hop) {
    ranks_.Finish(pending_);
    const Block block = BlockOf(buffers_[hop % 2], plan_.rank - hop);
    Pass(block, hop);
    return block;
  }
  void Finish() { ranks_.Finish(pending_); }

  // Values of the block of `rank`; rank 0 has as large a one as any.
  int64_t SizeOf(int64_t rank) const {
    return 2 * plan_.sequences * plan_.shares[static_cast<size_t>(rank)].tokens * key_value_heads_ * head_dim_;
  }
  Block BlockOf(const at::Tensor& buffer, int64_t rank) const {
    const int64_t tokens = plan_.shares[static_cast<size_t>(rank)].tokens;
    return {buffer.narrow(0, 0, SizeOf(rank)).view({2, plan_.sequences, tokens, key_value_heads_, head_dim_})};
  }

 private:
  // Hands the block of `hop` on and starts to receive the one after it.
  void Pass(const Block& block, int64_t hop) {
    Communicator::Exchange exchange;
    if (plan_.rank + 1 < static_cast<int64_t>(plan_.shares.size())) {
      exchange.sent = block.both;
      exchange.to = plan_.rank + 1;
    }
    if (hop < plan_.rank) {
      exchange.received = BlockOf(buffers_[(hop + 1) % 2], plan_.rank - hop - 1).both;
      exchange.from = plan_.rank - 1;
    }
    pending_ = ranks_.StartExchange(exchange);
  }

  const SequencePlan& plan_;
  SequenceRanks& ranks_;
  const int64_t key_value_heads_, head_dim_;
  at::Tensor buffers_;  // (2, values of the largest block)
  SequenceRanks::Pending pending_;
};

void SequenceAttention::RingForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& out, const at::Tensor& logsumexp, const FlashSetting& setting) {
  BlockLine line(*this, k, v);
  const AttentionCall& own = plan_.calls.at(0);
  const FlashQueries queries{QueryView(q, own), QueryView(out, own), logsumexp};
  BlockForward(queries, {{KeyValueView(k, own), KeyValueView(v, own), /*causal=*/true}}, setting);
  const at::Tensor part = arena_.Take(planner::Slot::kRingOutput, q.sizes(), q.scalar_type());
  const at::Tensor part_logsumexp = arena_.Take(planner::Slot::kRingLogSumExp, logsumexp.sizes(), at::kFloat);
  const FlashQueries part_queries{queries.q, QueryView(part, own), part_logsumexp};
  for (int64_t hop = 1; hop <= plan_.rank; ++hop) {
    const Block block = line.Next(hop);
    BlockForward(part_queries, {{block.k(), block.v()}}, setting);
    JoinSoftmax(queries.out, queries.logsumexp, part_queries.out, part_queries.logsumexp);
  }
  line.Finish();
}

void SequenceAttention::ForwardWindow(int64_t window, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& out, const std::vector<at::Tensor>& logsumexp) {
  TORCH_CHECK(plan_.traffic == SequenceTraffic::kRing, "a window goes with full attention");
  BlockLine line(*this, k, v);
  const AttentionCall& own = plan_.calls.at(0);
  const at::Tensor queries = QueryView(q, own), outs = QueryView(out, own);
  WindowPart part;
  part.window = window;
  part.first_query = part.first_key = plan_.shares[static_cast<size_t>(plan_.rank)].first;
  WindowPartForward(part, queries, KeyValueView(k, own), KeyValueView(v, own), outs, logsumexp.at(0));
  part.joins = true;
  for (int64_t hop = 1; hop <= plan_.rank; ++hop) {
    const Block block = line.Next(hop);
    part.first_key = plan_.shares[static_cast<size_t>(plan_.rank - hop)].first;
    WindowPartForward(part, queries, block.k(), block.v(), outs, logsumexp.at(0));
  }
  line.Finish();
}

void SequenceAttention::RingBackward(const AttentionInputs& inputs, const at::Tensor& logsumexp,
                                     const at::Tensor& out_gradient, const AttentionGradients& gradients,
                                     const FlashSetting& setting) {
  BlockLine line(*this, inputs.k, inputs.v);
  const auto ranks = static_cast<int64_t>(plan_.shares.size());
  const AttentionCall& own = plan_.calls.at(0);
  const FlashQueries queries{QueryView(inputs.q, own), QueryView(inputs.out, own), logsumexp, /*joined=*/!first()};
  FlashQueryGradients query_gradients{QueryView(out_gradient, own), QueryView(gradients.q, own)};
  BlockBackward(queries, {{KeyValueView(inputs.k, own), KeyValueView(inputs.v, own), /*causal=*/true}}, query_gradients,
                {{KeyValueView(gradients.k, own), KeyValueView(gradients.v, own)}}, setting);
  query_gradients.adds = true;
  // Two to compute into and send, in turns; one to receive.
  const at::Tensor buffers = arena_.Take(planner::Slot::kRingGradients, {3, line.SizeOf(0)}, inputs.k.scalar_type());
  const Block received = line.BlockOf(buffers[2], plan_.rank);
  SequenceRanks::Pending pending;
  bool receives = false;
  const auto finish = [&] {
    ranks_.Finish(pending);
    if (!std::exchange(receives, false)) return;
    gradients.k.unflatten(0, {plan_.sequences, -1}).add_(received.both[0]);
    gradients.v.unflatten(0, {plan_.sequences, -1}).add_(received.both[1]);
  };
  for (int64_t hop = 1; hop < ranks; ++hop) {
    Communicator::Exchange exchange;
    if (hop <= plan_.rank) {
      const Block block = line.Next(hop);
      const Block found = line.BlockOf(buffers[hop % 2], plan_.rank - hop);
      BlockBackward(queries, {{block.k(), block.v()}}, query_gradients, {{found.k(), found.v()}}, setting);
      exchange.sent = found.both;
      exchange.to = plan_.rank - hop;
    }
    finish();
    if (plan_.rank + hop < ranks) {
      receives = true;
      exchange.received = received.both;
      exchange.from = plan_.rank + hop;
    }
    pending = ranks_.StartExchange(exchange);
  }
  finish();
  line.Finish();
}

}  // namespace longspan::trainer
