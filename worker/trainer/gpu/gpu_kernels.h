// The kernels of kernels/ on tensors that lie on a GPU, on its current stream: what row_kernels.h, layer_norm.h,
// row_sums.h, token_loss.h, dropout.h, nf4_weight.h and adamw.h do there. Those functions come here when their tensors
// are on a GPU, and say what arguments mean.
//
// Results do not depend on the number of blocks that run at once. Not thread-safe for one stream. c10::Error where a
// kernel refuses its arguments, and in a build without CUDA, which has no such tensors.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace longspan::trainer::gpu {

// x, out (N, H, D). inverse_rms (N, H) with any row stride, or undefined.
void HeadRmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon, const at::Tensor& out,
                 const at::Tensor& inverse_rms);
struct NormGradients {
  at::Tensor x;        // (N, H, D)
  bool adds = false;   // to x; else overwrites
  at::Tensor weight;   // (D) fp32, added to; undefined when frozen
  at::Tensor bias;     // of LayerNorm
  at::Tensor scratch;  // (parts, D), of LayerNorm (parts, 2D); undefined: memory of its own
};
void HeadRmsNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                         const at::Tensor& out_gradient, const NormGradients& gradients);
// x, out (N, d); statistics (N, 2) or undefined.
void LayerNorm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double epsilon,
               const at::Tensor& out, const at::Tensor& statistics);
void LayerNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& statistics,
                       const at::Tensor& out_gradient, const NormGradients& gradients);
// x += added, then out = the norm of x: LayerNorm where there is a bias, else RMSNorm. x, added, out (N, d); statistics
// as those norms write them, or undefined.
struct NormWeights {
  at::Tensor weight, bias;
  double epsilon = 0;
};
void AddNorm(const at::Tensor& x, const at::Tensor& added, const NormWeights& weights, const at::Tensor& out,
             const at::Tensor& statistics);

struct RotationTables {
  at::Tensor cosine, sine;  // (T, R/2) fp32
  int64_t tokens = 0;
  at::Tensor positions;  // (N) int64, or undefined
};
void ApplyRotation(const at::Tensor& rows, const RotationTables& tables, bool inverse);

void SiluProduct(const at::Tensor& gate_up, const at::Tensor& out);
void SiluProductBackward(const at::Tensor& gate_up, const at::Tensor& out_gradient, const at::Tensor& gate_up_gradient);

// Adds the rows' losses, in nats, to loss_sum (1) fp64. logits (n, V) become their gradients where wanted.
void CrossEntropy(const at::Tensor& logits, const at::Tensor& targets, bool wants_gradient, const at::Tensor& loss_sum);

void AddScaled(const at::Tensor& x, double scale, const at::Tensor& sum);
void AddColumnSums(const at::Tensor& x, const at::Tensor& sum, const at::Tensor& scratch);
// table: row ids[i] += x[i], for i in order.
void AddRows(const at::Tensor& ids, const at::Tensor& x, const at::Tensor& table);
// Of all fp32 tensors together, in fp64; waits for the stream.
double SumOfSquares(const std::vector<at::Tensor>& tensors);

struct DropoutMask {
  int64_t seed = 0, step = 0, first_sequence = 0, layer = 0, module = 0;
  int64_t tokens = 1, first_token = 0, first_row = 0;
  double rate = 0;
};
void ApplyDropout(const DropoutMask& mask, const at::Tensor& x, const at::Tensor& out);

// Numbers of a normal distribution (kernels/normal), element 0 first; out contiguous.
void DrawNormal(uint64_t key, double deviation, const at::Tensor& out);

// All on the GPU; out contiguous.
void DequantizeNf4(const at::Tensor& codes, const at::Tensor& scale_codes, const at::Tensor& scale_maxima, float mean,
                   const at::Tensor& out);

// LoRA's products that sum into a few ranks, bf16 (kernels/lora_products); sums (parts, ...) fp32, contiguous.
// out (n, r) = x (n, k) · factor (k, r), of which one stride is 1. sums (parts, n, r).
void ProjectRows(const at::Tensor& x, const at::Tensor& factor, const at::Tensor& out, const at::Tensor& sums);
// sums (parts, r, c): of leftᵀ (r, n) · right (n, c).
void OuterSums(const at::Tensor& left, const at::Tensor& right, const at::Tensor& sums);
// gradient (ranks, c) fp32, any strides, += scale · the sum of the parts, of the ranks from first_rank on.
void AddOuterSums(const at::Tensor& sums, int64_t first_rank, double scale, const at::Tensor& gradient);

// x (n, k); codes (n, k) float8_e4m3fn, contiguous; scales (n) fp32.
void QuantizeFp8Rows(const at::Tensor& x, const at::Tensor& codes, const at::Tensor& scales);

struct AdamwTensor {
  at::Tensor value, master, gradient, first_moment, second_moment;  // master is value where that is fp32
};
struct AdamwStep {
  double rate = 0, beta1 = 0, beta2 = 0, epsilon = 0, decay = 0;
  int64_t step = 1;
};
// All of one type of value.
void StepAdamw(const std::vector<AdamwTensor>& tensors, const AdamwStep& step);

}  // namespace longspan::trainer::gpu
