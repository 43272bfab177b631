// What a decoder layer keeps from its forward pass, and what it computes again in its backward pass.
//
// Each policy keeps what the one before it keeps, and more. Values per token and layer, in elements; d hidden size, F
// intermediate size:
//
//   policy                  keeps besides                       computed again
//   kInput                  layer input (d)                     all but down_proj, attention too
//   kAttentionOutput        attention output, logsumexp (Hq·D)  norms, q k v, o_proj, gate and up
//   kQueryKeyValue          q, k, v (decoder_layer.h)           norms, RoPE after head norms, o_proj, gate and up
//   kResidual               residual after attention (d) *      norms, gate and up
//   kGateUp                 gate and up (2F)                    norms
//
// * nothing in a layer with a parallel residual, whose backward pass does not read it. An MLP without a gate keeps F
// for
//   2F.
//
// Every policy gives the same gradients within rounding; the tests hold them to it.
#pragma once

#include <cstdint>

namespace longspan::trainer {

enum class KeepPolicy { kInput, kAttentionOutput, kQueryKeyValue, kResidual, kGateUp };

// How a job's layers trade memory for time. The planner will choose it per job; these are the defaults until then.
struct MemoryPolicy {
  KeepPolicy keep = KeepPolicy::kAttentionOutput;
  int64_t mlp_tile_tokens = 1024;  // rows of a tile of the MLP; its intermediate values exist for one tile only
  int64_t loss_tile_tokens = 0;    // rows of a tile of the logits; 0: as many as keep the tile near 16 MiB
};

// Whether a policy keeps what `part` adds.
constexpr bool Keeps(KeepPolicy policy, KeepPolicy part) { return static_cast<int>(policy) >= static_cast<int>(part); }

// Elements of the compute dtype that one layer keeps per token (logsumexp is Hq fp32 values more).
struct LayerSizes {
  int64_t hidden_size, intermediate_size, query_heads, key_value_heads, head_dim;
  bool has_gate = true, parallel_residual = false;
};
int64_t KeptElementsPerToken(KeepPolicy policy, const LayerSizes& sizes);

}  // namespace longspan::trainer
