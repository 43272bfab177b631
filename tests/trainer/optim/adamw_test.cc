#include "worker/trainer/optim/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "worker/trainer/errors.h"
#include "worker/trainer/optim/schedule.h"

namespace longspan::trainer {
namespace {

// torch.optim.AdamW, written out for one number in fp64.
struct ReferenceAdamW {
  double value, first = 0, second = 0;
  int64_t updates = 0;
  void Step(double gradient, double rate, const AdamWOptions& o) {
    ++updates;
    value *= 1 - rate * o.weight_decay;
    first = o.beta1 * first + (1 - o.beta1) * gradient;
    second = o.beta2 * second + (1 - o.beta2) * gradient * gradient;
    const double first_correction = 1 - std::pow(o.beta1, updates);
    const double second_correction = 1 - std::pow(o.beta2, updates);
    value -= rate / first_correction * first / (std::sqrt(second) / std::sqrt(second_correction) + o.epsilon);
  }
};

TEST(AdamW, FollowsTheReferenceOverManyUpdates) {
  at::manual_seed(1);
  const int64_t count = 37;
  at::Tensor value = at::randn({count});
  at::Tensor gradient = at::zeros({count});
  const AdamWOptions options{0.9, 0.95, 1e-8, 0.1};
  std::vector<ReferenceAdamW> reference;
  for (int64_t i = 0; i < count; ++i) reference.push_back({value[i].item<double>()});
  AdamW optimizer({{"w", value, gradient}}, options);
  for (int step = 0; step < 20; ++step) {
    gradient.copy_(at::randn({count}));
    const double rate = 1e-2 / (step + 1);
    for (int64_t i = 0; i < count; ++i) reference[i].Step(gradient[i].item<double>(), rate, options);
    optimizer.Step(rate);
  }
  for (int64_t i = 0; i < count; ++i) EXPECT_NEAR(value[i].item<double>(), reference[i].value, 2e-6);
}

TEST(AdamW, KeepsAnFp32MasterOfABf16Value) {
  at::Tensor value = at::ones({4}, at::kBFloat16);
  at::Tensor gradient = at::ones({4});
  AdamW optimizer({{"w", value, gradient}}, AdamWOptions{});
  // One update of 1e-4 is lost in bf16 beside 1.0; a hundred of them are not.
  optimizer.Step(1e-4);
  EXPECT_EQ(value[0].item<float>(), 1.0f);
  for (int i = 0; i < 99; ++i) optimizer.Step(1e-4);
  EXPECT_NEAR(value[0].item<float>(), 0.99, 0.003);
  EXPECT_NEAR(optimizer.states()[0].master[0].item<float>(), 0.99, 1e-5);
}

TEST(AdamW, LoadedStateContinuesBitForBit) {
  at::manual_seed(2);
  at::Tensor value = at::randn({5, 3}), gradient = at::randn({5, 3});
  AdamW first({{"w", value, gradient}}, AdamWOptions{});
  first.Step(1e-2);
  at::Tensor other_value = at::zeros({5, 3});
  AdamW second({{"w", other_value, gradient}}, AdamWOptions{});
  second.Load(first.states(), first.updates());
  EXPECT_TRUE(other_value.equal(value));
  first.Step(1e-2);
  second.Step(1e-2);
  EXPECT_TRUE(other_value.equal(value));
  EXPECT_EQ(second.updates(), 2);
}

TEST(AdamW, RefusesTheStateOfAnotherJob) {
  at::Tensor value = at::zeros({2}), gradient = at::zeros({2});
  AdamW optimizer({{"w", value, gradient}}, AdamWOptions{});
  AdamW other({{"v", at::zeros({2}), gradient}}, AdamWOptions{});
  EXPECT_THROW(optimizer.Load(other.states(), 1), UserError);
}

TEST(GlobalNorm, IsOverAllTensorsTogether) {
  EXPECT_DOUBLE_EQ(GlobalNorm({at::full({1}, 3.0f), at::full({1}, 4.0f)}), 5.0);
  EXPECT_TRUE(std::isnan(GlobalNorm({at::full({1}, NAN), at::full({1}, 4.0f)})));
}

TEST(ClipGradients, ScalesDownOnlyWhatIsTooLong) {
  at::Tensor a = at::full({1}, 3.0f), b = at::full({1}, 4.0f);
  ClipGradients({a, b}, 5.0, 10.0);
  EXPECT_EQ(a.item<float>(), 3.0f);
  ClipGradients({a, b}, 5.0, 0.0);
  EXPECT_EQ(a.item<float>(), 3.0f);
  ClipGradients({a, b}, 5.0, 1.0);
  EXPECT_NEAR(a.item<float>(), 0.6, 1e-6);
  EXPECT_NEAR(b.item<float>(), 0.8, 1e-6);
}

TEST(LearningRate, WarmsUpThenFollowsItsSchedule) {
  jobfile::TrainingSection training;
  training.learning_rate = 1.0;
  training.warmup_steps = 4;
  training.steps = 14;
  EXPECT_DOUBLE_EQ(LearningRate(training, 1), 0.25);
  EXPECT_DOUBLE_EQ(LearningRate(training, 4), 1.0);
  EXPECT_DOUBLE_EQ(LearningRate(training, 14), 1.0);
  training.schedule = jobfile::Schedule::kLinear;
  EXPECT_DOUBLE_EQ(LearningRate(training, 5), 1.0);
  EXPECT_DOUBLE_EQ(LearningRate(training, 10), 0.5);
  training.schedule = jobfile::Schedule::kCosine;
  EXPECT_DOUBLE_EQ(LearningRate(training, 5), 1.0);
  EXPECT_NEAR(LearningRate(training, 10), 0.5, 1e-12);
  EXPECT_GT(LearningRate(training, 14), 0.0);
  training.warmup_steps = 0;
  EXPECT_DOUBLE_EQ(LearningRate(training, 1), 1.0);
}

}  // namespace
}  // namespace longspan::trainer
