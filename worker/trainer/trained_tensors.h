// What trains in a model, as the optimizer and the reducer want it: in the model's order, sharing its tensors.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/parallel/gradient_reducer.h"

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

// Ranks that share weights gather them in passes that some of them do not compute, so beside other sums: over NCCL
// these wait for the end of the last pass. LoRA's, which are all there are then, are small.
inline SumsStart SumsStartOf(CausalLm& model) {
  const std::vector<Trainable>& all = model.trainables();
  const bool on_gpu = !all.empty() && all.front().gradient.is_cuda();
  return model.shares_weights() && on_gpu ? SumsStart::kInFinish : SumsStart::kWhenReady;
}

}  // namespace longspan::trainer
