// The products of LoRA that sum over features or tokens into a few ranks. On a GPU in bf16 they are kernels of ours
// (kernels/lora_products), which add fp32 sums to the gradients and round nothing in between; everywhere else GEMMs,
// whose results are in the compute dtype.
//
// Memory comes from the arena (planner/step_buffers.h: LoraSumElements). Legend: n rows (tokens), k features, r ranks,
// c columns.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

#include "worker/trainer/memory/arena.h"

namespace longspan::trainer {

// (n, r) in the slot = x (n, k) · factor (k, r), of which one stride is 1.
at::Tensor ProjectRows(const at::Tensor& x, const at::Tensor& factor, Slot slot, Arena& arena);

// One of the gradients that leftᵀ · right holds: those of its rows and columns that begin at these.
struct OuterGradient {
  int64_t first_rank = 0, first_column = 0;
  double scale = 1;
  at::Tensor gradient;  // (ranks, columns) fp32, any strides
};
// gradient += scale · the gradient's part of leftᵀ (r, n) · right (n, c). The slot is for a product in the compute
// dtype.
void AddOuterProducts(const at::Tensor& left, const at::Tensor& right, const std::vector<OuterGradient>& gradients,
                      Slot slot, Arena& arena);

}  // namespace longspan::trainer
