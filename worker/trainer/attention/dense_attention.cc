#include "worker/trainer/attention/dense_attention.h"

#include <spdlog/spdlog.h>

#include <mutex>
#include <tuple>

#include "worker/trainer/attention/dense_blocks.h"

namespace longspan::trainer {
namespace {

using planner::GpuAttention;

// Memory-efficient attention keeps logsumexps of rows that are padded to a multiple of this.
constexpr int64_t kEfficientRows = 32;

GpuAttention KernelFor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  static std::once_flag told[3];
  static constexpr const char* kNames[] = {"cuDNN", "flash attention", "memory-efficient attention"};
  const auto kernel = ChooseGpuAttention(DenseCallOf(q, k, v));
  TORCH_CHECK(kernel && (q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16), "attention of ",
              q.scalar_type(), " heads of ", q.size(3),
              " on a GPU; it knows fp32, and bf16 in multiples of 8 up to 256");
  std::call_once(told[static_cast<int>(*kernel)], [&] {
    spdlog::info("attention on the GPU by {} ({} query heads on {} key/value heads of {}, blocks of {})",
                 kNames[static_cast<int>(*kernel)], q.size(1), k.size(1), q.size(3), q.size(2));
  });
  return *kernel;
}

// Without dropout no kernel reads the state of the random numbers, but each wants one.
at::Tensor NoRandomState(const at::Tensor& q) { return at::zeros({2}, q.options().dtype(at::kLong)); }

// Heads of k and v as many as those of q, for kernels that know no groups.
at::Tensor Repeated(const at::Tensor& heads, int64_t query_heads) {
  return heads.size(1) == query_heads ? heads : heads.repeat_interleave(query_heads / heads.size(1), 1);
}
at::Tensor AddedUp(const at::Tensor& gradient, int64_t key_value_heads) {
  if (gradient.size(1) == key_value_heads) return gradient;
  return gradient.unflatten(1, {key_value_heads, -1}).sum(2);
}

DenseOutput GpuForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal) {
  DenseOutput result;
  switch (KernelFor(q, k, v)) {
    case GpuAttention::kCudnn: {
      const auto all = at::_scaled_dot_product_cudnn_attention(q, k, v, /*attn_bias=*/{}, /*compute_log_sumexp=*/true,
                                                               /*dropout_p=*/0.0, causal);
      result = {std::get<0>(all), std::get<1>(all)};
      break;
    }
    case GpuAttention::kFlash: {
      const auto all = at::_scaled_dot_product_flash_attention(q, k, v, /*dropout_p=*/0.0, causal);
      result = {std::get<0>(all), std::get<1>(all)};
      break;
    }
    case GpuAttention::kEfficient: {
      const auto all = at::_scaled_dot_product_efficient_attention(q, Repeated(k, q.size(1)), Repeated(v, q.size(1)),
                                                                   /*attn_bias=*/{}, /*compute_log_sumexp=*/true,
                                                                   /*dropout_p=*/0.0, causal);
      result = {std::get<0>(all), std::get<1>(all).narrow(2, 0, q.size(2))};
      break;
    }
  }
  result.logsumexp = result.logsumexp.reshape({q.size(0), q.size(1), q.size(2)});
  return result;
}

DenseGradients GpuBackward(const DenseInputs& inputs, const at::Tensor& out_gradient) {
  const at::Tensor &q = inputs.q, &k = inputs.k, &v = inputs.v;
  const at::Tensor state = NoRandomState(q);
  DenseGradients gradients;
  switch (KernelFor(q, k, v)) {
    case GpuAttention::kCudnn:
      std::tie(gradients.q, gradients.k, gradients.v) = at::_scaled_dot_product_cudnn_attention_backward(
          out_gradient, q, k, v, inputs.out, inputs.logsumexp.contiguous().unsqueeze(-1), state.select(0, 0),
          state.select(0, 1), /*attn_bias=*/{}, /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, q.size(2), k.size(2),
          /*dropout_p=*/0.0, inputs.causal);
      break;
    case GpuAttention::kFlash:
      std::tie(gradients.q, gradients.k, gradients.v) = at::_scaled_dot_product_flash_attention_backward(
          out_gradient, q, k, v, inputs.out, inputs.logsumexp.contiguous(), /*cum_seq_q=*/{}, /*cum_seq_k=*/{},
          q.size(2), k.size(2), /*dropout_p=*/0.0, inputs.causal, state, at::empty({}, state.options()));
      break;
    case GpuAttention::kEfficient: {
      const int64_t rows = (q.size(2) + kEfficientRows - 1) / kEfficientRows * kEfficientRows;
      const at::Tensor padded = at::zeros({q.size(0), q.size(1), rows}, inputs.logsumexp.options());
      padded.narrow(2, 0, q.size(2)).copy_(inputs.logsumexp);
      const auto all = at::_scaled_dot_product_efficient_attention_backward(
          out_gradient, q, Repeated(k, q.size(1)), Repeated(v, q.size(1)), /*attn_bias=*/{}, inputs.out, padded,
          state.select(0, 0), state.select(0, 1), /*dropout_p=*/0.0, {true, true, true, false}, inputs.causal);
      gradients = {std::get<0>(all), AddedUp(std::get<1>(all), k.size(1)), AddedUp(std::get<2>(all), k.size(1))};
      break;
    }
  }
  return gradients;
}

}  // namespace

DenseOutput DenseForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool causal) {
  if (q.is_cuda()) return GpuForward(q, k, v, causal);
  DenseOutput result;
  std::tie(result.out, result.logsumexp) =
      at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, /*dropout_p=*/0.0, causal);
  return result;
}

DenseGradients DenseBackward(const DenseInputs& inputs, const at::Tensor& out_gradient) {
  if (inputs.q.is_cuda()) return GpuBackward(inputs, out_gradient);
  DenseGradients gradients;
  std::tie(gradients.q, gradients.k, gradients.v) = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      out_gradient, inputs.q, inputs.k, inputs.v, inputs.out, inputs.logsumexp, /*dropout_p=*/0.0, inputs.causal);
  return gradients;
}

}  // namespace longspan::trainer
