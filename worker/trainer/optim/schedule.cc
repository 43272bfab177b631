#include "worker/trainer/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longspan::trainer {

double LearningRate(const jobfile::TrainingSection& training, int64_t update) {
  const double peak = training.learning_rate;
  if (update <= training.warmup_steps) {
    return peak * static_cast<double>(update) / static_cast<double>(training.warmup_steps);
  }
  const int64_t decay_updates = std::max<int64_t>(1, training.steps - training.warmup_steps);
  const double passed =
      std::min(1.0, static_cast<double>(update - 1 - training.warmup_steps) / static_cast<double>(decay_updates));
  switch (training.schedule) {
    case jobfile::Schedule::kConstant:
      return peak;
    case jobfile::Schedule::kCosine:
      return peak * 0.5 * (1.0 + std::cos(std::numbers::pi * passed));
    case jobfile::Schedule::kLinear:
      return peak * (1.0 - passed);
  }
  return peak;
}

}  // namespace longspan::trainer
