// One dense attention call of LibTorch, on whatever device its tensors lie: the kernels differ by device and type, what
// they compute does not.
//
//   CPU               _scaled_dot_product_flash_attention_for_cpu
//   GPU, bf16         cuDNN where the heads of q are those of k and v, D is a multiple of 8 up to 128 and 32 bits reach
//                     from the first element of a tensor to its last; else flash (planner::ChooseGpuAttention)
//   GPU, fp32         memory-efficient attention
//
// Which one a GPU uses is logged once each; nothing falls back to the composite ("math") path, whose scores would be
// whole. Outputs are new tensors. Legend as in flash_cpu.h: q (blocks, Hq, length, D), k and v (blocks, Hkv, keys, D).
#pragma once

#include <ATen/ATen.h>

namespace longspan::trainer {

struct DenseOutput {
  at::Tensor out;        // as q
  at::Tensor logsumexp;  // (blocks, Hq, length) fp32, natural
};
// causal: query i sees keys 0 to i, of as many keys as queries.
DenseOutput DenseForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal);

struct DenseInputs {
  at::Tensor q, k, v, out, logsumexp;  // of the forward pass, or of more keys than these (ring attention)
  bool causal = false;
};
struct DenseGradients {
  at::Tensor q, k, v;
};
DenseGradients DenseBackward(const DenseInputs& inputs, const at::Tensor& out_gradient);

}  // namespace longspan::trainer
