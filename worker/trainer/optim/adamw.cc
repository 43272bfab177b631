#include "worker/trainer/optim/adamw.h"

#include <cmath>
#include <utility>

#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/model/row_sums.h"

namespace longspan::trainer {

AdamWOptions AdamWOptionsOf(const jobfile::TrainingSection& training) {
  return {training.beta1, training.beta2, training.epsilon, training.weight_decay};
}

AdamW::AdamW(std::vector<OptimizedTensor> tensors, const AdamWOptions& options)
    : options_(options), tensors_(std::move(tensors)) {
  for (const OptimizedTensor& tensor : tensors_) {
    State state;
    state.name = tensor.name;
    state.master = tensor.value.scalar_type() == at::kFloat ? tensor.value : tensor.value.to(at::kFloat);
    state.first_moment = at::zeros_like(state.master);
    state.second_moment = at::zeros_like(state.master);
    masters_.push_back(state.master);
    gradients_.push_back(tensor.gradient);
    first_moments_.push_back(state.first_moment);
    second_moments_.push_back(state.second_moment);
    step_counts_.push_back(at::zeros({}, at::kFloat));
    states_.push_back(std::move(state));
  }
}

void AdamW::Step(double learning_rate) {
  ++updates_;
  if (tensors_.empty()) return;
  if (tensors_.front().value.is_cuda()) {
    StepOnGpu(learning_rate);
    return;
  }
  // The fused kernel takes the count of this update, not of the one before: with 0 its bias correction divides by zero.
  for (at::Tensor& count : step_counts_) count.fill_(static_cast<double>(updates_));
  at::_fused_adamw_(masters_, gradients_, first_moments_, second_moments_, {}, step_counts_, learning_rate,
                    options_.beta1, options_.beta2, options_.weight_decay, options_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false);
  WriteBack();
}

// In one launch, values too.
void AdamW::StepOnGpu(double learning_rate) {
  std::vector<gpu::AdamwTensor> tensors;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    tensors.push_back({tensors_[i].value, masters_[i], gradients_[i], first_moments_[i], second_moments_[i]});
  }
  gpu::StepAdamw(tensors,
                 {learning_rate, options_.beta1, options_.beta2, options_.epsilon, options_.weight_decay, updates_});
}

void AdamW::WriteBack() {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!tensors_[i].value.is_same(states_[i].master)) tensors_[i].value.copy_(states_[i].master);
  }
}

void AdamW::Load(const std::vector<State>& states, int64_t updates) {
  if (states.size() != states_.size()) {
    throw UserError("the checkpoint has " + std::to_string(states.size()) + " trained tensors, this job trains " +
                    std::to_string(states_.size()));
  }
  for (size_t i = 0; i < states.size(); ++i) {
    const bool fits = states[i].name == states_[i].name && states[i].master.sizes() == states_[i].master.sizes();
    if (!fits) {
      throw UserError("the checkpoint holds " + states[i].name + ", this job trains " + states_[i].name +
                      " there, or their shapes differ");
    }
  }
  for (size_t i = 0; i < states.size(); ++i) {
    states_[i].master.copy_(states[i].master);
    states_[i].first_moment.copy_(states[i].first_moment);
    states_[i].second_moment.copy_(states[i].second_moment);
  }
  updates_ = updates;
  WriteBack();
}

double GlobalNorm(const std::vector<at::Tensor>& gradients) {
  if (!gradients.empty() && gradients.front().is_cuda()) return std::sqrt(gpu::SumOfSquares(gradients));
  double sum = 0;
  for (const at::Tensor& gradient : gradients) sum += SumOfSquares(gradient);
  return std::sqrt(sum);
}

void ClipGradients(const std::vector<at::Tensor>& gradients, double norm, double clip_norm) {
  if (clip_norm <= 0) return;
  const double scale = clip_norm / (norm + 1e-6);
  if (scale >= 1) return;
  for (at::Tensor gradient : gradients) gradient.mul_(scale);
}

}  // namespace longspan::trainer
