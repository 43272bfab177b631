#include "worker/trainer/model/mlp_activation.h"

#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {
namespace {

const char* Approximation(Activation kind) { return kind == Activation::kGeluTanh ? "tanh" : "none"; }

}  // namespace

MlpActivation::MlpActivation(Activation kind, const at::Tensor& inner) : kind_(kind), inner_(inner) {
  if (kind == Activation::kGatedSilu) sigmoid_ = at::sigmoid(inner.narrow(1, 0, inner.size(1) / 2).to(at::kFloat));
}

void MlpActivation::Forward(const at::Tensor& out) const {
  if (kind_ == Activation::kGatedSilu) {
    SiluProduct(inner_, sigmoid_, out);
  } else {
    at::Tensor target = out;
    at::gelu_out(target, inner_, Approximation(kind_));
  }
}

void MlpActivation::Backward(const at::Tensor& out_gradient, const at::Tensor& inner_gradient) const {
  if (kind_ == Activation::kGatedSilu) {
    SiluProductBackward(inner_, sigmoid_, out_gradient, inner_gradient);
  } else {
    at::Tensor target = inner_gradient;
    at::gelu_backward_out(target, out_gradient, inner_, Approximation(kind_));
  }
}

}  // namespace longspan::trainer
