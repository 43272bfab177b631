// The training step on a GPU beside the same step on the CPU, for every method and family, and its memory policies
// beside each other.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <map>

#include "tests/trainer/tiny_llama.h"
#include "worker/planner/rank_memory.h"
#include "worker/trainer/device.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/memory_plan.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/quantized/fp8_weight.h"
#include "worker/trainer/trained_tensors.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;
using jobfile::MethodKind;
using jobfile::TrainingDtype;
using Gradients = std::map<std::string, at::Tensor>;

const nlohmann::json kFamilies[] = {{{"head_dim", 16}},
                                    {{"head_dim", 16}, {"architectures", {"Qwen3ForCausalLM"}}},
                                    {{"head_dim", 16}, {"attention_bias", true}, {"mlp_bias", true}},
                                    {{"head_dim", 16},
                                     {"architectures", {"GPTNeoXForCausalLM"}},
                                     {"hidden_act", "gelu"},
                                     {"use_parallel_residual", true},
                                     {"rotary_pct", 0.5}}};

class ModelGpuTest : public ::testing::Test {
 protected:
  ModelGpuTest() {
    if (gpu::Count() == 0) throw std::runtime_error("no GPU");
    shape_.hidden = 64;
    shape_.heads = 4;
    shape_.layers = 3;
    shape_.vocab = 200;
  }
  void UseFamily(const nlohmann::json& changes) {
    shape_.changes = changes;
    shape_.key_value_heads = changes.contains("rotary_pct") ? 4 : 2;
    WriteTinyModel(folder_.path(), shape_);
  }
  ModelOptions Options(at::Device device, TrainingDtype dtype, MethodKind method) const {
    ModelOptions options;
    options.device = device;
    options.spec = TinySpec(folder_.path(), 128);
    options.spec.method.kind = method;
    options.spec.attention.group_size = 32;
    options.spec.training.dtype = dtype;
    options.memory.tile_tokens = 48;
    options.memory.loss_tile_tokens = 40;
    return options;
  }
  // The loss comes as a gradient of that name.
  Gradients Run(const ModelOptions& options) const {
    const std::unique_ptr<CausalLm> model = CausalLm::Load(options);
    RandomizeTrainables(model.get());
    Batch batch;
    batch.input_ids = batch.labels = RandomIds(2, 128, shape_.vocab);
    batch.document_ids = document_ids_;
    model->ZeroGradients();
    const LossSum sum = model->ForwardBackward(batch);
    Gradients gradients;
    gradients["loss"] = at::full({1}, sum.loss);
    for (const Trainable& trainable : model->trainables()) {
      gradients[trainable.name] = trainable.gradient.to(at::kCPU);
    }
    return gradients;
  }
  // B is zero at first, which would hide errors in A.
  static void RandomizeTrainables(CausalLm* model) {
    int64_t seed = 1;
    for (Trainable& trainable : model->trainables()) {
      if (!trainable.is_lora) continue;
      const at::Tensor drawn = at::empty(trainable.value.sizes(), at::kFloat)
                                   .normal_(0, 0.05, at::detail::createCPUGenerator(static_cast<uint64_t>(seed++)));
      trainable.value.copy_(drawn);
    }
    model->ValuesChanged();
  }

  TinyShape shape_;
  TemporaryFolder folder_;
  at::Tensor document_ids_;  // undefined: every row of the batch is one document
};

TEST_F(ModelGpuTest, Fp32IsTheCpuWithinRounding) {
  for (const nlohmann::json& family : kFamilies) {
    UseFamily(family);
    for (const MethodKind method :
         {MethodKind::kFull, MethodKind::kLora, MethodKind::kLongLora, MethodKind::kQlongLora}) {
      const Gradients expected = Run(Options(at::kCPU, TrainingDtype::kFp32, method));
      const Gradients actual = Run(Options(at::kCUDA, TrainingDtype::kFp32, method));
      ASSERT_EQ(actual.size(), expected.size());
      for (const auto& [name, value] : expected) {
        EXPECT_LT(RelativeError(actual.at(name), value), 1e-4) << name << " of " << family.dump();
      }
    }
  }
}

// At most twice as far from fp32 as the CPU's own bf16 is.
TEST_F(ModelGpuTest, Bf16IsAsNearToFp32AsTheCpusIs) {
  for (const nlohmann::json& family : kFamilies) {
    UseFamily(family);
    for (const MethodKind method :
         {MethodKind::kFull, MethodKind::kLora, MethodKind::kLongLora, MethodKind::kQlongLora}) {
      const Gradients exact = Run(Options(at::kCPU, TrainingDtype::kFp32, method));
      const Gradients on_cpu = Run(Options(at::kCPU, TrainingDtype::kBf16, method));
      const Gradients on_gpu = Run(Options(at::kCUDA, TrainingDtype::kBf16, method));
      for (const auto& [name, value] : exact) {
        EXPECT_LE(RelativeError(on_gpu.at(name), value), 2 * RelativeError(on_cpu.at(name), value) + 1e-3)
            << name << " of " << family.dump();
      }
    }
  }
}

// Several lengths, one document of a single token, borders inside and on blocks: lists of segments in bf16.
TEST_F(ModelGpuTest, PackedDocumentsAreAsNearToFp32AsTheCpusAre) {
  document_ids_ = at::zeros({2, 128}, at::kLong);
  for (const int64_t border : {1, 33, 40, 64, 97}) document_ids_[0].narrow(0, border, 128 - border).add_(1);
  for (const int64_t border : {31, 62, 93}) document_ids_[1].narrow(0, border, 128 - border).add_(1);
  for (const nlohmann::json& family : kFamilies) {
    UseFamily(family);
    const Gradients exact = Run(Options(at::kCPU, TrainingDtype::kFp32, MethodKind::kLongLora));
    const Gradients on_cpu = Run(Options(at::kCPU, TrainingDtype::kBf16, MethodKind::kLongLora));
    const Gradients fp32 = Run(Options(at::kCUDA, TrainingDtype::kFp32, MethodKind::kLongLora));
    const Gradients bf16 = Run(Options(at::kCUDA, TrainingDtype::kBf16, MethodKind::kLongLora));
    for (const auto& [name, value] : exact) {
      EXPECT_LT(RelativeError(fp32.at(name), value), 1e-4) << name << " of " << family.dump();
      EXPECT_LE(RelativeError(bf16.at(name), value), 2 * RelativeError(on_cpu.at(name), value) + 1e-3)
          << name << " of " << family.dump();
    }
  }
}

// The CPU imitates products in 8 bits in fp32: at most twice as far from fp32 as that is.
TEST_F(ModelGpuTest, Fp8IsAsNearToFp32AsTheCpusIs) {
  for (const nlohmann::json& family : kFamilies) {
    shape_.intermediate = 96;
    UseFamily(family);
    const auto options = [&](at::Device device, bool fp8) {
      ModelOptions found = Options(device, fp8 ? TrainingDtype::kBf16 : TrainingDtype::kFp32, MethodKind::kLongLora);
      found.spec.training.fp8 = fp8;
      found.spec = SpecOn(device, found.spec);
      return found;
    };
    if (gpu::Describe().compute_capability < 89) {
      EXPECT_THROW(options(at::kCUDA, true), SpecError);
      continue;
    }
    const Gradients exact = Run(options(at::kCPU, false));
    const Gradients on_cpu = Run(options(at::kCPU, true)), on_gpu = Run(options(at::kCUDA, true));
    for (const auto& [name, value] : exact) {
      EXPECT_LE(RelativeError(on_gpu.at(name), value), 2 * RelativeError(on_cpu.at(name), value) + 1e-3)
          << name << " of " << family.dump();
    }
  }
}

// Every size that _scaled_mm meets: one row, odd numbers of them, wide and tall weights.
TEST_F(ModelGpuTest, ProductsInEightBitsAreTheCpus) {
  if (gpu::Describe().compute_capability < 89) return;  // refused, as the test above shows
  for (const int64_t rows : {1, 7, 48, 1000}) {
    for (const auto& [outputs, inputs] : {std::array<int64_t, 2>{16, 16}, {192, 64}, {64, 192}, {4096, 1024}}) {
      const Fp8Weight weight = QuantizeFp8(at::randn({outputs, inputs}).to(at::kBFloat16), "w");
      const auto product = [&](at::Device device, const at::Tensor& x, const Fp8Rows& right) {
        const auto on = [device](const at::Tensor& tensor) { return tensor.to(device); };
        const Fp8Rows left{at::empty(x.sizes(), at::TensorOptions(device).dtype(at::kFloat8_e4m3fn)),
                           at::empty({x.size(0)}, at::TensorOptions(device).dtype(at::kFloat))};
        QuantizeRows(on(x), left);
        const at::Tensor out =
            at::empty({x.size(0), right.codes.size(0)}, at::TensorOptions(device).dtype(at::kBFloat16));
        MultiplyFp8(left, {on(right.codes), on(right.scales)}, out);
        return out.to(at::kCPU, at::kFloat);
      };
      for (const Fp8Rows* right : {&weight.by_output, &weight.by_input}) {
        const at::Tensor x = at::randn({rows, right->codes.size(1)}).to(at::kBFloat16);
        EXPECT_LT(RelativeError(product(at::kCUDA, x, *right), product(at::kCPU, x, *right)), 1.0 / 128)
            << rows << " rows, " << outputs << " x " << inputs;
      }
    }
  }
}

TEST_F(ModelGpuTest, EvaluationOfTheModelAndOfItsBaseIsTheCpus) {
  for (const nlohmann::json& family : kFamilies) {
    UseFamily(family);
    for (const MethodKind method : {MethodKind::kFull, MethodKind::kLongLora, MethodKind::kQlongLora}) {
      const at::Tensor ids = RandomIds(2, 100, shape_.vocab);
      const auto losses = [&](at::Device device) {
        const std::unique_ptr<CausalLm> model = CausalLm::Load(Options(device, TrainingDtype::kFp32, method));
        RandomizeTrainables(model.get());
        std::vector<double> found;
        for (const bool adapted : {true, false}) {
          CausalLm::EvaluationOptions options;
          options.adapted = adapted;
          found.push_back(model->Evaluate(ids, ids, options).loss);
        }
        return found;
      };
      const std::vector<double> expected = losses(at::kCPU), actual = losses(at::kCUDA);
      for (size_t i = 0; i < 2; ++i) EXPECT_NEAR(actual[i] / expected[i], 1, 1e-5) << family.dump();
    }
  }
}

// Evaluation and generation of a base whose own config.json limits attention; bf16 as near to fp32 as the CPU's.
TEST_F(ModelGpuTest, ASlidingWindowIsTheCpus) {
  for (const int64_t window : {1, 7, 64, 99}) {
    UseFamily({{"head_dim", 16}, {"architectures", {"MistralForCausalLM"}}, {"sliding_window", window}});
    const at::Tensor ids = RandomIds(2, 100, shape_.vocab);
    const auto logits_and_loss = [&](at::Device device, TrainingDtype dtype) {
      const std::unique_ptr<CausalLm> model = CausalLm::Load(Options(device, dtype, MethodKind::kLongLora));
      CausalLm::EvaluationOptions options;
      options.adapted = false;
      options.rope = RopeScaling::kOriginal;
      const double loss = model->Evaluate(ids, ids, options).loss;
      KeyValueCache cache(100);
      std::vector<at::Tensor> logits;
      for (const int64_t rows : {50, 1, 49}) {
        std::vector<int64_t> tokens;
        for (int64_t i = 0; i < rows; ++i) tokens.push_back(ids[0][cache.tokens() + i].item<int64_t>());
        logits.push_back(model->Continue({{&cache, tokens}}, options));
      }
      return std::pair(at::cat(logits), loss);
    };
    const auto exact = logits_and_loss(at::kCPU, TrainingDtype::kFp32);
    const auto fp32 = logits_and_loss(at::kCUDA, TrainingDtype::kFp32);
    EXPECT_LT(RelativeError(fp32.first, exact.first), 1e-4) << "window " << window;
    EXPECT_NEAR(fp32.second / exact.second, 1, 1e-5) << "window " << window;
    const auto on_cpu = logits_and_loss(at::kCPU, TrainingDtype::kBf16);
    const auto on_gpu = logits_and_loss(at::kCUDA, TrainingDtype::kBf16);
    EXPECT_LE(RelativeError(on_gpu.first, exact.first), 2 * RelativeError(on_cpu.first, exact.first) + 1e-3);
    EXPECT_NEAR(on_gpu.second / exact.second, 1, 2 * std::abs(on_cpu.second / exact.second - 1) + 1e-3);
  }
}

TEST_F(ModelGpuTest, EveryMemoryPolicyGivesTheSameBits) {
  UseFamily(kFamilies[0]);
  shape_.layers = 5;
  WriteTinyModel(folder_.path(), shape_);
  for (const bool plans_buffers : {false, true}) {
    ModelOptions options = Options(at::kCUDA, TrainingDtype::kBf16, MethodKind::kLongLora);
    options.plans_buffers = plans_buffers;
    const Gradients expected = Run(options);
    for (int keep = 0; keep < 5; ++keep) {
      for (const int64_t every : {1, 2}) {
        for (const int64_t host : {0, 3}) {
          options.memory.keep = static_cast<KeepPolicy>(keep);
          options.memory.checkpoint_every = every;
          options.memory.host_layers = host;
          for (const int64_t heads : {0, 1}) {
            options.memory.tile_heads = heads;
            for (const auto& [name, gradient] : Run(options)) {
              EXPECT_TRUE(at::equal(gradient, expected.at(name)))
                  << name << ", keep " << keep << ", every " << every << ", host " << host << ", heads " << heads;
            }
          }
        }
      }
    }
  }
}

TEST_F(ModelGpuTest, ATokenNeverChangesAnOutputBeforeIt) {
  UseFamily(kFamilies[0]);
  const std::unique_ptr<CausalLm> model =
      CausalLm::Load(Options(at::kCUDA, TrainingDtype::kBf16, MethodKind::kLongLora));
  const at::Tensor ids = RandomIds(1, 120, shape_.vocab);
  const at::Tensor before = model->TrainingLogits(ids);
  for (const int64_t changed : {1, 16, 31, 32, 33, 64, 119}) {
    const at::Tensor other = ids.clone();
    other[0][changed] = (ids[0][changed] + 1) % shape_.vocab;
    const at::Tensor after = model->TrainingLogits(other);
    EXPECT_TRUE(at::equal(after.narrow(1, 0, changed), before.narrow(1, 0, changed))) << "token " << changed;
    EXPECT_FALSE(at::equal(after[0][changed], before[0][changed]));
  }
}

TEST_F(ModelGpuTest, OptimizerStepsAreThoseOfTheCpu) {
  UseFamily(kFamilies[0]);
  const auto values_after_steps = [&](at::Device device) {
    const std::unique_ptr<CausalLm> model =
        CausalLm::Load(Options(device, TrainingDtype::kFp32, MethodKind::kLongLora));
    RandomizeTrainables(model.get());
    const std::vector<at::Tensor> gradients = trainer::Gradients(*model);
    AdamW optimizer(OptimizedTensors(*model), AdamWOptions{});
    Batch batch;
    batch.input_ids = batch.labels = RandomIds(2, 128, shape_.vocab);
    for (int step = 0; step < 3; ++step) {
      model->ZeroGradients();
      const LossSum sum = model->ForwardBackward(batch);
      for (at::Tensor gradient : gradients) gradient.mul_(1.0 / static_cast<double>(sum.tokens));
      ClipGradients(gradients, GlobalNorm(gradients), 0.5);
      optimizer.Step(1e-3);
      model->ValuesChanged();
    }
    std::map<std::string, at::Tensor> values;
    for (const Trainable& trainable : model->trainables()) values[trainable.name] = trainable.value.to(at::kCPU);
    return values;
  };
  const auto expected = values_after_steps(at::kCPU);
  for (const auto& [name, value] : values_after_steps(at::kCUDA)) {
    EXPECT_LT(RelativeError(value, expected.at(name)), 1e-3) << name;
  }
}

TEST_F(ModelGpuTest, TheDevicesPeakIsPredictedWithin5Percent) {
  // cuBLAS takes its workspace with the first product and keeps it: part of the process, not of the job.
  const at::Tensor square = at::ones({64, 64}, at::TensorOptions(at::kCUDA).dtype(at::kBFloat16));
  at::mm(square, square);
  shape_.hidden = 512;
  shape_.intermediate = 1376;
  shape_.heads = 8;
  shape_.vocab = 8192;
  shape_.layers = 6;
  shape_.max_position = 8192;
  shape_.changes = {{"head_dim", 64}};
  shape_.key_value_heads = 8;
  WriteTinyModel(folder_.path(), shape_);
  for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kAttentionOutput, KeepPolicy::kGateUp}) {
    for (const int64_t host : {0, 3}) {
      MemoryPlanOptions plan;
      plan.spec = TinySpec(folder_.path(), 8192);
      plan.spec.training.global_batch = 1;
      plan.device = at::kCUDA;
      const planner::PlannedJob job = PlannedJobFor(plan);
      ModelOptions options;
      options.device = at::kCUDA;
      options.spec = job.spec;
      options.memory = {keep, 1, host, 1024, 512};
      const int64_t planned = planner::MemoryOfRank(job, options.memory).device_bytes();
      const int64_t before = DeviceMemoryNow(at::kCUDA).live_bytes;
      const std::unique_ptr<CausalLm> model = CausalLm::Load(options);
      AdamW optimizer(OptimizedTensors(*model), AdamWOptions{});
      Batch batch;
      batch.input_ids = batch.labels = RandomIds(1, 8192, shape_.vocab);
      model->ForwardBackward(batch);
      ResetDeviceMemoryPeak(at::kCUDA);
      model->ZeroGradients();
      model->ForwardBackward(batch);
      optimizer.Step(1e-4);
      const auto peak = static_cast<double>(DeviceMemoryNow(at::kCUDA).peak_bytes - before);
      EXPECT_LT(std::abs(peak / static_cast<double>(planned) - 1), 0.05)
          << "keep " << static_cast<int>(keep) << ", host " << host << ": planned " << planned << ", counted " << peak;
    }
  }
}

}  // namespace
}  // namespace longspan::trainer
