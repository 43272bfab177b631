// One AdamW update (decoupled weight decay, arXiv 1711.05101) of many tensors in one launch, with torch.optim.AdamW's
// arithmetic: fp32 master values, moments and gradients, and the rounded values that the model computes with.
//
//   p -= rate·decay·p
//   m = beta1·m + (1 - beta1)·g    v = beta2·v + (1 - beta2)·g²
//   p -= rate / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//
// g is gradient·gradient_scale, so that clipping needs no pass of its own. Deterministic, elementwise. The list of
// tensors lies in device memory, so that one launch takes up to 65,535 of them.
#pragma once

#include <cstdint>

#include "kernels/common/element_type.h"

namespace longspan::kernels::adamw {

struct Tensor {
  int64_t elements = 0;
  float* master = nullptr;
  const float* gradient = nullptr;
  float* first_moment = nullptr;
  float* second_moment = nullptr;
  void* value = nullptr;  // of Update::value_type; null: the master is the value
};

struct Update {
  ElementType value_type = ElementType::kFloat32;
  double rate = 0, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, decay = 0;
  int64_t step = 1;  // t, from 1
  float gradient_scale = 1;
};

// `tensors` on host memory, as all that they point to.
void StepReference(const Update& update, const Tensor* tensors, int64_t count);

}  // namespace longspan::kernels::adamw
