// AdamW as torch.optim.AdamW computes it (arXiv 1711.05101; decoupled decay, every row every step), with fp32 master
// copies.
//
// Holds references to the tensors it trains: `value` is read and written in place, `gradient` (fp32) only read. The
// master of an fp32 value is that value itself; of a bf16 value an own fp32 tensor, rounded into the value after each
// update. Not thread-safe.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"

namespace longspan::trainer {

struct OptimizedTensor {
  std::string name;
  at::Tensor value;
  at::Tensor gradient;
};

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0;
};
AdamWOptions AdamWOptionsOf(const jobfile::TrainingSection& training);

class AdamW {
 public:
  AdamW(std::vector<OptimizedTensor> tensors, const AdamWOptions& options);

  // One update with the gradients as they are.
  void Step(double learning_rate);
  // Updates done so far, also before a resume.
  int64_t updates() const { return updates_; }

  // What a checkpoint holds for one tensor. The tensors are the live ones.
  struct State {
    std::string name;
    at::Tensor master, first_moment, second_moment;  // fp32, the shape of the value
  };
  const std::vector<State>& states() const { return states_; }
  // Copies a checkpoint's state in and rounds the masters into the values. Throws UserError when names or shapes
  // differ.
  void Load(const std::vector<State>& states, int64_t updates);

 private:
  void StepOnGpu(double learning_rate);
  void WriteBack();

  AdamWOptions options_;
  std::vector<OptimizedTensor> tensors_;
  std::vector<State> states_;
  std::vector<at::Tensor> masters_, gradients_, first_moments_, second_moments_,
      step_counts_;  // views for the fused call
  int64_t updates_ = 0;
};

// L2 norm over all gradients together, summed in fp64 in a fixed order: the same number on every rank that holds the
// same gradients, whatever the number of threads.
double GlobalNorm(const std::vector<at::Tensor>& gradients);

// Scales all gradients so that their global norm is at most `clip_norm` (0: never), as clip_grad_norm_ of torch does.
void ClipGradients(const std::vector<at::Tensor>& gradients, double norm, double clip_norm);

}  // namespace longspan::trainer
