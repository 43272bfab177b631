// One Llama decoder layer as two functions, without autograd: forward(x) -> y and what is saved, backward(dy, saved) ->
// dx.
//
//   n1 = norm(x)   q,k,v = n1·Wqkvᵀ, turned by RoPE   o = attention(q, k, v)   r = x + o·Woᵀ
//   n2 = norm(r)   g,u = n2·Wguᵀ                      y = r + (silu(g)∘u)·Wdᵀ
//
// What is saved is a KeepPolicy; the backward pass computes the rest again. The MLP runs in tiles of tokens, so that g
// and u never exist whole (unless they are kept). Gradients of what trains are fp32 and added to.
//
// Not thread-safe: layers share the buffers of a Workspace. Legend: N = B·T rows, d hidden size, F intermediate size.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/adapters/fused_linear.h"
#include "worker/trainer/attention/attention.h"
#include "worker/trainer/attention/cached_attention.h"
#include "worker/trainer/memory/keep_policy.h"
#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {

struct NormWeight {
  at::Tensor value;     // (d)
  at::Tensor gradient;  // (d) fp32; undefined when frozen
};

struct LayerWeights {
  NormWeight input_norm, post_attention_norm;
  FusedLinear query_key_value;  // parts q_proj, k_proj, v_proj
  FusedLinear output;           // o_proj
  FusedLinear gate_up;          // gate_proj, up_proj
  FusedLinear down;             // down_proj
};

struct LayerShape {
  int64_t hidden_size = 0, intermediate_size = 0, query_heads = 0, key_value_heads = 0, head_dim = 0;
  double norm_epsilon = 0;
};

// What is the same for every layer of one pass over a batch.
struct LayerPass {
  LayerShape shape;
  MemoryPolicy memory;
  AttentionPlan attention;
  Rotation rotation;
  DropoutPass dropout;
  bool adapted = true;  // with LoRA
  bool folds = true;    // LoRA goes into a copy of each weight first, which pays from some hundred rows on
  // Set: keys and values go through these caches, and `attention` is not read. Forward only, nothing saved.
  const CachedAttention* cached = nullptr;
};

// Undefined tensors were not kept.
struct SavedLayer {
  at::Tensor x;                       // (N, d)
  at::Tensor attention_out;           // (N, Hq·D)
  std::vector<at::Tensor> logsumexp;  // of each attention call
  at::Tensor query_key_value;         // (N, (Hq + 2·Hkv)·D), after RoPE
  at::Tensor residual;                // (N, d), r
  at::Tensor gate_up;                 // (N, 2F)
};

// Buffers that layers use one after the other.
struct Workspace {
  at::Tensor folded_attention, folded_mlp_in, folded_mlp_out;
};

// y (N, d). `saved` null: nothing is kept.
at::Tensor LayerForward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x,
                        SavedLayer* saved, Workspace* workspace);

// Adds the gradients of what trains and returns dx (N, d); undefined when `wants_x_gradient` is false and nothing
// before this layer trains. Takes `y_gradient` over: its memory becomes dx.
at::Tensor LayerBackward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const SavedLayer& saved,
                         at::Tensor y_gradient, bool wants_x_gradient, Workspace* workspace);

}  // namespace longspan::trainer
