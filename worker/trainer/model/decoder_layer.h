// One decoder layer as two functions, without autograd: forward(x) -> y and what is saved, backward(dy, saved) ->
// dx.
//
//   n1 = norm(x)   q,k,v = n1·Wqkvᵀ, turned by RoPE   o = attention(q, k, v)   r = x + o·Woᵀ
//   n2 = norm(r)   g,u = n2·Wguᵀ                      y = r + (silu(g)∘u)·Wdᵀ
//
// Families differ in data, not in code: the kind of the norms; biases of the linear layers; q, k and v in one linear
// layer or three; RoPE on a part of each head; and
//
//   head norms          every head of q and of k is normalised between its projection and RoPE
//   no gate             y = r + act(h)·Wdᵀ with h = n2·Whᵀ
//   parallel residual   n2 = norm(x): attention and MLP read the same input, and y = r + MLP(n2) all the same
//
// What is kept is a KeepPolicy; the backward pass computes the rest again. Everything but attention itself runs in
// tiles of tokens, so that n1, n2, r, g and u never exist whole (unless they are kept). Gradients of what trains are
// fp32 and added to.
//
// Not thread-safe: layers share the buffers of an Arena. Legend: N = B·T rows, d hidden size, F intermediate size.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <optional>
#include <vector>

#include "worker/model_config/model_family.h"
#include "worker/planner/memory_policy.h"
#include "worker/trainer/adapters/fused_linear.h"
#include "worker/trainer/attention/attention.h"
#include "worker/trainer/attention/cached_attention.h"
#include "worker/trainer/attention/sequence_attention.h"
#include "worker/trainer/attention/sliding_window.h"
#include "worker/trainer/memory/arena.h"
#include "worker/trainer/model/norm.h"
#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {

using planner::KeepPolicy;
using planner::Keeps;
using planner::MemoryPolicy;

struct LayerWeights {
  NormWeight input_norm, post_attention_norm;
  NormWeight query_norm, key_norm;  // (D) each; undefined where the family has none
  FusedLinear query_key_value;      // q_proj, k_proj, v_proj; or the one that the family fuses
  FusedLinear output;               // o_proj
  FusedLinear mlp_in;               // gate_proj, up_proj; or the one of an MLP without a gate
  FusedLinear mlp_out;              // down_proj
  int64_t window = 0;               // tokens that a token attends to where a pass is `windowed`; 0: all before it

  // In the order of the layer.
  std::array<FusedLinear*, 4> linears() { return {&query_key_value, &output, &mlp_in, &mlp_out}; }
  std::array<const FusedLinear*, 4> linears() const { return {&query_key_value, &output, &mlp_in, &mlp_out}; }
  std::vector<NormWeight*> norms() { return NormsOf<NormWeight>(*this); }
  std::vector<const NormWeight*> norms() const { return NormsOf<const NormWeight>(*this); }
  bool has_head_norms() const { return query_norm.value.defined(); }

 private:
  template <typename Norm, typename Layer>
  static std::vector<Norm*> NormsOf(Layer& layer) {
    if (!layer.has_head_norms()) return {&layer.input_norm, &layer.post_attention_norm};
    return {&layer.input_norm, &layer.query_norm, &layer.key_norm, &layer.post_attention_norm};
  }
};

struct LayerShape {
  int64_t hidden_size = 0, intermediate_size = 0, query_heads = 0, key_value_heads = 0, head_dim = 0;
  double norm_epsilon = 0;
  bool fuses_query_key_value = false;  // one linear layer, whose rows are [head][q, k, v][D]
  Activation activation = Activation::kGatedSilu;
  bool parallel_residual = false;

  // Outputs of mlp_in.
  int64_t mlp_in_size() const {
    return activation == Activation::kGatedSilu ? 2 * intermediate_size : intermediate_size;
  }
};

// What is the same for every layer of one pass over a batch.
struct LayerPass {
  LayerShape shape;
  MemoryPolicy memory;
  AttentionPlan attention;
  // Set: the pass is over a rank's share of sequences; `attention` are this plan's calls.
  struct Sequence {
    SequencePlan plan;
    SequenceRanks* ranks = nullptr;
  };
  std::optional<Sequence> sequence{};
  // Layers that have a window attend within it, instead of as `attention` says. Forward only, nothing saved.
  bool windowed = false;
  AttentionShape attention_shape;  // read when `windowed`
  Rotation rotation;
  DropoutPass dropout;
  bool adapted = true;  // with LoRA
  bool folds = true;    // LoRA goes into a copy of each weight first, which pays from some hundred rows on
  // Set: keys and values go through these caches, and `attention` is not read. Forward only, nothing saved.
  const CachedAttention* cached = nullptr;
};

// Where the values that are kept go, and where they are read again. Undefined: not kept.
struct KeptLayer {
  at::Tensor attention_out;    // (N, Hq·D)
  at::Tensor logsumexp;        // (N·Hq) fp32, call by call of the plan
  at::Tensor query_key_value;  // (N, (Hq + 2·Hkv)·D), after RoPE; with head norms: before them
  at::Tensor residual;         // (N, d), r; never of a parallel residual, whose backward pass does not read it
  at::Tensor mlp_inner;        // (N, 2F) gate and up, or (N, F)
};

// Writes y (N, d), which may be x, and fills what `kept` has. y undefined: only what is kept is computed.
void LayerForward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x,
                  const KeptLayer& kept, const at::Tensor& y, Arena& arena);

// Adds the gradients of what trains, and turns `gradient` (N, d) from dy into dx. Where `wants_x_gradient` is false and
// nothing before this layer trains it is left unfinished.
void LayerBackward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x,
                   const KeptLayer& kept, const at::Tensor& gradient, bool wants_x_gradient, Arena& arena);

}  // namespace longspan::trainer
