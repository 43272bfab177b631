// The parts of a layer that work on one token at a time, each in one pass over memory: on CPU the same as chains of
// tensor operations costs several times as much (rope by cat, silu and product apart).
//
// fp32 or bf16 tensors, last stride 1, any row stride; sums are fp32. Parallel over rows, with results that do not
// depend on the number of threads. Tensors on a GPU go to its kernels (worker/trainer/gpu). Legend: N rows (tokens), d
// features, H heads, D head size, F intermediate size.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace longspan::trainer {

// out = x / sqrt(mean(x^2) + epsilon) * weight. x, out (N, d); weight (d); inverse_rms (N) fp32, undefined when not
// wanted.
void RmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon, const at::Tensor& out,
             const at::Tensor& inverse_rms);

// The gradient of a norm's weight (d) fp32, added to; undefined when frozen. Its sums over rows lie in `scratch`
// (planner::kColumnSumParts, d) fp32; undefined: in memory of their own.
struct NormWeightGradient {
  at::Tensor gradient;
  at::Tensor scratch{};
};

// x_gradient += what the norm's input gets from out_gradient.
void RmsNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                     const at::Tensor& out_gradient, const at::Tensor& x_gradient,
                     const NormWeightGradient& weight_gradient);

// RmsNorm of each head: x, out (N, H, D), heads and rows of any stride; weight (D); inverse_rms (N, H) fp32, undefined
// when not wanted.
void HeadRmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon, const at::Tensor& out,
                 const at::Tensor& inverse_rms);

// Turns the gradient of what HeadRmsNorm put out into that of its input, in place.
void HeadRmsNormBackward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& inverse_rms,
                         const at::Tensor& gradient, const NormWeightGradient& weight_gradient);

// Turns rows (N, H, D) in place: of the first R <= D values of a head the pair (i, i + R/2) of a row at position p by
// the angle of (p, i); the others stay. cosine, sine (T, R/2) fp32; row n has position n mod T of its sequence, or
// positions[n] < T where given. `inverse` turns back, which is the backward pass.
struct Rotation {
  at::Tensor cosine, sine;
  int64_t tokens = 0;      // T
  at::Tensor positions{};  // (N) int64, contiguous; undefined: sequences of T rows
};
void ApplyRotation(const at::Tensor& rows, const Rotation& rotation, bool inverse);

// out = silu(gate) * up. gate_up (N, 2F), gate first; sigmoid (N, F) fp32 of gate, not read on a GPU; out (N, F).
void SiluProduct(const at::Tensor& gate_up, const at::Tensor& sigmoid, const at::Tensor& out);
// Overwrites gate_up_gradient (N, 2F) from out_gradient (N, F).
void SiluProductBackward(const at::Tensor& gate_up, const at::Tensor& sigmoid, const at::Tensor& out_gradient,
                         const at::Tensor& gate_up_gradient);

// rows (n, V) fp32 hold softmax probabilities. Takes 1 off at each row's target, which makes them the gradient of the
// loss.
void SubtractTargets(const at::Tensor& probabilities, const at::Tensor& targets);

}  // namespace longspan::trainer
