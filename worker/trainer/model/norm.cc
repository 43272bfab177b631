#include "worker/trainer/model/norm.h"

#include "worker/trainer/model/layer_norm.h"
#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {

at::Tensor Normalise(const NormWeight& norm, double epsilon, const at::Tensor& x, at::Tensor* statistics) {
  at::Tensor out = at::empty_like(x);
  const bool layer_norm = norm.kind == NormKind::kLayer;
  at::Tensor kept;
  if (statistics != nullptr) {
    kept = layer_norm ? at::empty({x.size(0), 2}, at::kFloat) : at::empty({x.size(0)}, at::kFloat);
    *statistics = kept;
  }
  if (layer_norm) {
    LayerNorm(x, {norm.value, norm.bias, epsilon}, out, kept);
  } else {
    RmsNorm(x, norm.value, epsilon, out, kept);
  }
  return out;
}

void NormaliseBackward(const NormWeight& norm, const at::Tensor& x, const at::Tensor& statistics,
                       const at::Tensor& out_gradient, const at::Tensor& x_gradient) {
  if (norm.kind == NormKind::kLayer) {
    LayerNormBackward(x, norm.value, statistics, out_gradient, {x_gradient, norm.gradient, norm.bias_gradient});
  } else {
    RmsNormBackward(x, norm.value, statistics, out_gradient, x_gradient, norm.gradient);
  }
}

}  // namespace longspan::trainer
