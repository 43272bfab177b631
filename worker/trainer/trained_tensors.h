// What trains in a model, as the optimizer and the reducer want it: in the model's order, sharing its tensors.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/optim/adamw.h"

namespace longspan::trainer {

inline std::vector<OptimizedTensor> OptimizedTensors(CausalLm& model) {
  std::vector<OptimizedTensor> tensors;
  for (const Trainable& trainable : model.trainables()) {
    tensors.push_back({trainable.name, trainable.value, trainable.gradient});
  }
  return tensors;
}

inline std::vector<at::Tensor> Gradients(CausalLm& model) {
  std::vector<at::Tensor> gradients;
  for (const Trainable& trainable : model.trainables()) gradients.push_back(trainable.gradient);
  return gradients;
}

}  // namespace longspan::trainer
