#include "worker/trainer/model/mlp_activation.h"

#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {
namespace {

const char* Approximation(Activation kind) { return kind == Activation::kGeluTanh ? "tanh" : "none"; }

}  // namespace

MlpActivation::MlpActivation(Activation kind, const at::Tensor& inner, Arena& arena) : kind_(kind), inner_(inner) {
  if (kind != Activation::kGatedSilu || inner.is_cuda()) return;
  const at::Tensor gate = inner.narrow(1, 0, inner.size(1) / 2);
  sigmoid_ = arena.Take(Slot::kMlpSigmoid, gate.sizes(), at::kFloat);
  if (gate.scalar_type() == at::kFloat) {
    at::sigmoid_out(sigmoid_, gate);
  } else {
    sigmoid_.copy_(gate).sigmoid_();
  }
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
