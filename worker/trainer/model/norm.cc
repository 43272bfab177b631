#include "worker/trainer/model/norm.h"

#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/layer_norm.h"

namespace longspan::trainer {
namespace {

at::Tensor Scratch(bool trains, int64_t columns, Arena& arena) {
  if (!trains) return {};
  return ColumnSumScratch(columns, arena);
}

}  // namespace

at::Tensor StatisticsOf(int64_t rows, Arena& arena) { return arena.Take(Slot::kNormStatistics, {rows, 2}, at::kFloat); }

void Normalise(const NormWeight& norm, double epsilon, const at::Tensor& x, const at::Tensor& out,
               const at::Tensor& statistics) {
  if (norm.kind == NormKind::kLayer) {
    LayerNorm(x, {norm.value, norm.bias, epsilon}, out, statistics);
  } else {
    RmsNorm(x, norm.value, epsilon, out, statistics);
  }
}

void AddAndNormalise(const NormWeight& norm, double epsilon, const at::Tensor& x, const at::Tensor& added,
                     const at::Tensor& out, const at::Tensor& statistics) {
  if (x.is_cuda()) {
    gpu::AddNorm(x, added, {norm.value, norm.bias, epsilon}, out, statistics);
    return;
  }
  at::Tensor(x).add_(added);
  Normalise(norm, epsilon, x, out, statistics);
}

NormWeightGradient WeightGradientOf(const NormWeight& norm, Arena& arena) {
  return {norm.gradient, Scratch(norm.gradient.defined(), norm.value.numel(), arena)};
}

void NormaliseBackward(const NormWeight& norm, const at::Tensor& x, const at::Tensor& statistics,
                       const at::Tensor& out_gradient, const at::Tensor& x_gradient, Arena& arena) {
  if (norm.kind == NormKind::kLayer) {
    LayerNormBackward(x, norm.value, statistics, out_gradient,
                      {x_gradient, norm.gradient, norm.bias_gradient,
                       Scratch(norm.gradient.defined(), 2 * norm.value.numel(), arena)});
  } else {
    RmsNormBackward(x, norm.value, statistics, out_gradient, x_gradient, WeightGradientOf(norm, arena));
  }
}

}  // namespace longspan::trainer
