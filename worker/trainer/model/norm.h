// The norms of a layer: RMSNorm (Llama and what came after it) and LayerNorm (GPT-NeoX), with their weights.
//
//   kRms     x / sqrt(mean(x²) + epsilon) ∘ w
//   kLayer   (x - mean(x)) / sqrt(mean((x - mean(x))²) + epsilon) ∘ w + b
//
// Sums are fp32, and those of gradients over rows do not depend on the number of threads. Not thread-safe for one
// NormWeight, whose gradients are added to. Legend: N rows, d features.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "worker/model_config/model_family.h"
#include "worker/trainer/memory/arena.h"
#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {

struct NormWeight {
  std::string name;  // "model.layers.0.input_layernorm"
  NormKind kind = NormKind::kRms;
  at::Tensor value;          // (d)
  at::Tensor gradient;       // (d) fp32; undefined when frozen
  at::Tensor bias;           // (d); undefined where the kind has none
  at::Tensor bias_gradient;  // (d) fp32; undefined when frozen
};

// Where a norm's statistics of each row go: (N, 2) fp32, of which RMSNorm uses the first N values.
at::Tensor StatisticsOf(int64_t rows, Arena& arena);

// out = norm(x), (N, d). `statistics` undefined: the backward pass is not wanted.
void Normalise(const NormWeight& norm, double epsilon, const at::Tensor& x, const at::Tensor& out,
               const at::Tensor& statistics);

// x += added, then out = norm(x): on a GPU in one pass over memory, with the bits of the two apart.
void AddAndNormalise(const NormWeight& norm, double epsilon, const at::Tensor& x, const at::Tensor& added,
                     const at::Tensor& out, const at::Tensor& statistics);

// Adds what the norm's input gets from out_gradient to x_gradient (N, d), and the gradients of what trains.
void NormaliseBackward(const NormWeight& norm, const at::Tensor& x, const at::Tensor& statistics,
                       const at::Tensor& out_gradient, const at::Tensor& x_gradient, Arena& arena);

// The gradient of an RMSNorm's weight, with its scratch from the arena.
NormWeightGradient WeightGradientOf(const NormWeight& norm, Arena& arena);

}  // namespace longspan::trainer
