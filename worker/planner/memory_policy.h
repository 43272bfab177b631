// How a job's layers trade memory for time: what a decoder layer keeps from its forward pass for its backward pass,
// what is computed again, and where the kept values lie meanwhile.
//
// Each KeepPolicy keeps what the one before it keeps, and more. Values per token and layer, in elements; d hidden size,
// F intermediate size, Hq and Hkv heads of D:
//
//   policy              keeps besides                            computed again
//   kInput              layer input (d)                          all but down_proj, attention too
//   kAttentionOutput    attention output (Hq·D), logsumexp (Hq)  norms, q k v, o_proj, gate and up
//   kQueryKeyValue      q, k, v ((Hq + 2·Hkv)·D) *               norms, RoPE after head norms, o_proj, gate and up
//   kResidual           residual after attention (d) **          norms, gate and up
//   kGateUp             gate and up (2F) ***                     norms
//
// * after RoPE; with head norms before them. ** nothing in a layer with a parallel residual, whose backward pass does
// not read it. *** F in an MLP without a gate.
//
// A checkpoint is the input of every `checkpoint_every`-th layer. The layers from one checkpoint to the next are a
// segment; above 1, only checkpoints last from the forward pass to the backward pass, which runs the layers of a
// segment again before it goes back through them, and keeps what `keep` says for that one segment:
//
//   checkpoint_every 3      x0 . . x3 . . x6 .        forward: x0 x3 x6 are checkpoints; the last segment keeps at once
//                                                     backward: x6 →, then x3 again to 4, 5 and back, then x0 …
//
// The kept values of the first `host_layers` layers that outlast the forward pass (their backward passes come last) lie
// in host memory; copies run beside the computation. With checkpoint_every above 1 these are checkpoints.
//
// Every policy gives the same gradients: bit-equal where the arithmetic is the same, else within rounding. The tests
// hold all of them to it.
#pragma once

#include <cstdint>

#include "proto/jobfile/job_spec.h"

namespace longspan::planner {

using jobfile::KeepPolicy;

struct MemoryPolicy {
  KeepPolicy keep = KeepPolicy::kAttentionOutput;
  int64_t checkpoint_every = 1;    // layers, at least 1
  int64_t host_layers = 0;         // of those that outlast the forward pass, from the first
  int64_t tile_tokens = 1024;      // rows of a tile of the norms, the linear layers and the MLP
  int64_t loss_tile_tokens = 512;  // rows of a tile of the logits
  // Key/value heads, with their query heads, whose gradients of q, k and v are made at once. They take the place of q,
  // k and v, so that only those of one tile of heads need memory. 0, or all and more: in memory of their own.
  int64_t tile_heads = 0;
};

// Whether a policy keeps what `part` adds.
constexpr bool Keeps(KeepPolicy policy, KeepPolicy part) { return static_cast<int>(policy) >= static_cast<int>(part); }

}  // namespace longspan::planner
