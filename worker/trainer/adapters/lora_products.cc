#include "worker/trainer/adapters/lora_products.h"

#include <algorithm>

#include "worker/planner/step_buffers.h"
#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/matrix_product.h"
#include "worker/trainer/model/row_sums.h"

namespace longspan::trainer {
namespace {

bool HasKernel(const at::Tensor& x, int64_t ranks) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && ranks <= planner::kLoraKernelRanksMax;
}

// Where the parts of a result's sums go; `kept` is the result's size beside the ranks.
at::Tensor SumsOf(at::IntArrayRef result, int64_t kept, int64_t summed, Arena& arena) {
  return arena.Take(Slot::kLoraSums, {planner::LoraSumParts(kept, summed), result[0], result[1]}, at::kFloat);
}

void AddByKernel(const at::Tensor& left, const at::Tensor& right, const std::vector<OuterGradient>& gradients,
                 Arena& arena) {
  const at::Tensor sums = SumsOf({left.size(1), right.size(1)}, right.size(1), right.size(0), arena);
  gpu::OuterSums(left, right, sums);
  for (const OuterGradient& one : gradients) gpu::AddOuterSums(sums, one.first_rank, one.scale, one.gradient);
}

}  // namespace

at::Tensor ProjectRows(const at::Tensor& x, const at::Tensor& factor, Slot slot, Arena& arena) {
  const at::Tensor out = arena.Take(slot, {x.size(0), factor.size(1)}, x.scalar_type());
  if (HasKernel(x, factor.size(1))) {
    gpu::ProjectRows(x, factor, out, SumsOf(out.sizes(), x.size(0), x.size(1), arena));
  } else {
    MultiplyInto(x, factor, out);
  }
  return out;
}

void AddOuterProducts(const at::Tensor& left, const at::Tensor& right, const std::vector<OuterGradient>& gradients,
                      Slot slot, Arena& arena) {
  if (!HasKernel(right, left.size(1))) {
    // With r rows: that way round a GEMM is several times faster than with few columns.
    const at::Tensor product = arena.Take(slot, {left.size(1), right.size(1)}, right.scalar_type());
    MultiplyInto(left.t(), right, product);
    for (const OuterGradient& one : gradients) {
      const at::Tensor part =
          product.narrow(0, one.first_rank, one.gradient.size(0)).narrow(1, one.first_column, one.gradient.size(1));
      AddScaled(part, one.scale, one.gradient);
    }
    return;
  }
  const bool all_whole = std::all_of(gradients.begin(), gradients.end(),
                                     [&](const OuterGradient& one) { return one.gradient.size(1) == right.size(1); });
  if (all_whole) {
    AddByKernel(left, right, gradients, arena);
    return;
  }
  // Of a block-diagonal result the blocks alone.
  for (const OuterGradient& one : gradients) {
    AddByKernel(left.narrow(1, one.first_rank, one.gradient.size(0)),
                right.narrow(1, one.first_column, one.gradient.size(1)), {{0, 0, one.scale, one.gradient}}, arena);
  }
}

}  // namespace longspan::trainer
