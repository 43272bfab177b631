// What stands between the two linear layers of an MLP, forward and backward, for one tile of tokens.
//
//   kGatedSilu   inner (n, 2F): gate, up   out = silu(gate) ∘ up
//   kGelu        inner (n, F)              out = gelu(inner), with the error function
//   kGeluTanh    inner (n, F)              out = gelu(inner), with its tanh approximation
//
// The two gelus are LibTorch's own operators, which are one vectorised pass each; silu and its product are one pass of
// ours (row_kernels.h). Legend: n rows, F intermediate size.
#pragma once

#include <ATen/ATen.h>

#include "worker/model_config/model_family.h"
#include "worker/trainer/memory/arena.h"

namespace longspan::trainer {

class MlpActivation {
 public:
  MlpActivation(Activation kind, const at::Tensor& inner, Arena& arena);

  void Forward(const at::Tensor& out) const;                                              // out (n, F) is overwritten
  void Backward(const at::Tensor& out_gradient, const at::Tensor& inner_gradient) const;  // shaped as inner, likewise

 private:
  Activation kind_;
  at::Tensor inner_;
  at::Tensor sigmoid_;  // (n, F) fp32, of the gate; both directions read it, but on a GPU
};

}  // namespace longspan::trainer
