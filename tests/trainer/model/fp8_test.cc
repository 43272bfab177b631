// Products with frozen weights in 8 bits: their parts, and a whole model beside bf16 and fp32.
#include "worker/trainer/quantized/fp8_weight.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "tests/trainer/tiny_llama.h"
#include "worker/planner/rank_memory.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/memory_plan.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/trained_tensors.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;
using jobfile::MethodKind;
using Tensors = std::map<std::string, at::Tensor>;

// ---- the parts ----

at::Tensor Draw(at::IntArrayRef sizes, int64_t seed) {
  return at::empty(sizes, at::kFloat).normal_(0, 1, NamedGenerator(seed, "fp8"));
}

Fp8Rows Rows(const at::Tensor& x) {
  const Fp8Rows rows{at::empty(x.sizes(), at::kFloat8_e4m3fn), at::empty({x.size(0)}, at::kFloat)};
  QuantizeRows(x, rows);
  return rows;
}

at::Tensor Values(const Fp8Rows& rows) { return rows.codes.to(at::kDouble) * rows.scales.to(at::kDouble).unsqueeze(1); }

TEST(Fp8Rows, EveryValueIsWithinOneRounding) {
  const at::Tensor x = Draw({7, 300}, 1) * at::pow(10.0, at::arange(7) * 3 - 9).unsqueeze(1);
  const at::Tensor error = (Values(Rows(x)) - x.to(at::kDouble)).abs();
  // Below the normal values of the type codes are equally far apart.
  const at::Tensor step = Rows(x).scales.to(at::kDouble).unsqueeze(1) / 512;
  EXPECT_TRUE((error <= at::maximum(x.to(at::kDouble).abs() / 16, step / 2) * (1 + 1e-6)).all().item<bool>());
  EXPECT_TRUE(at::equal(std::get<0>(Values(Rows(x)).abs().max(1)).to(at::kFloat), std::get<0>(x.abs().max(1))));
}

TEST(Fp8Rows, RowsAreStridedAndTheirScalesTheirOwn) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor wide = Draw({5, 40}, 2).to(dtype), x = wide.narrow(1, 3, 32);
    EXPECT_TRUE(at::equal(Values(Rows(x)), Values(Rows(x.contiguous()))));
    const at::Tensor larger = x.clone();
    larger[2].mul_(1024);
    EXPECT_TRUE(at::equal(Rows(larger).codes.view(at::kByte), Rows(x).codes.view(at::kByte)));
    EXPECT_TRUE(at::equal(Rows(larger).scales[2], Rows(x).scales[2] * 1024));
  }
}

TEST(Fp8Rows, ARowThatIsNotFiniteGivesAProductThatIsNot) {
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const at::Tensor x = Draw({3, 32}, 3), out = at::empty({3, 16}, at::kBFloat16);
    x[1][31] = bad;
    MultiplyFp8(Rows(x), Rows(Draw({16, 32}, 4)), out);
    EXPECT_TRUE(out[0].isfinite().all().item<bool>());
    EXPECT_FALSE(out[1].isfinite().any().item<bool>());
    EXPECT_TRUE(out[2].isfinite().all().item<bool>());
    EXPECT_THROW(QuantizeFp8(x, "a weight"), UserError);
  }
}

TEST(Fp8Weight, BothProductsAreThoseOfItsValues) {
  const at::Tensor weight = Draw({48, 80}, 5).to(at::kBFloat16);
  const Fp8Weight stored = QuantizeFp8(weight, "w");
  EXPECT_EQ(stored.bytes(), 2 * 48 * 80 + 4 * (48 + 80));
  const at::Tensor x = Draw({9, 80}, 6).to(at::kBFloat16), dy = Draw({9, 48}, 7).to(at::kBFloat16);
  const at::Tensor y = at::empty({9, 48}, at::kBFloat16), dx = at::empty({9, 80}, at::kBFloat16);
  MultiplyFp8(Rows(x), stored.by_output, y);
  MultiplyFp8(Rows(dy), stored.by_input, dx);
  const auto near = [](const at::Tensor& actual, const at::Tensor& exact) {
    const double rounding = 1.0 / 256;
    EXPECT_LE(RelativeError(actual.to(at::kDouble), exact), rounding);
  };
  near(y, at::mm(Values(Rows(x)), Values(stored.by_output).t()));
  near(dx, at::mm(Values(Rows(dy)), Values(stored.by_input).t()));
  // The two copies are of one weight.
  EXPECT_LT(RelativeError(Values(stored.by_output), weight.to(at::kDouble)), 1.0 / 16);
  EXPECT_LT(RelativeError(Values(stored.by_input).t(), weight.to(at::kDouble)), 1.0 / 16);
}

// ---- a model ----

const nlohmann::json kFamilies[] = {{{"head_dim", 16}},
                                    {{"head_dim", 16}, {"architectures", {"Qwen3ForCausalLM"}}},
                                    {{"head_dim", 16}, {"attention_bias", true}, {"mlp_bias", true}},
                                    {{"head_dim", 16},
                                     {"architectures", {"GPTNeoXForCausalLM"}},
                                     {"hidden_act", "gelu"},
                                     {"use_parallel_residual", true},
                                     {"rotary_pct", 0.5}}};

class Fp8ModelTest : public ::testing::Test {
 protected:
  Fp8ModelTest() {
    at::set_num_threads(1);  // the products are too small to share
    UseFamily(kFamilies[0]);
  }

  // Weights as large as those of trained models: the output of a product is about as large as its input. In fp32, so
  // that bf16 has to round them as 8 bits do.
  void UseFamily(const nlohmann::json& changes) {
    shape_.hidden = 64;
    shape_.heads = 4;
    shape_.key_value_heads = changes.contains("rotary_pct") ? 4 : 2;
    shape_.layers = 3;
    shape_.intermediate = 96;
    shape_.vocab = 128;
    shape_.max_position = 128;
    shape_.changes = changes;
    WriteJson(folder_.path() + "/config.json", TinyConfig(shape_));
    std::vector<NamedTensor> tensors = TinyTensors(shape_);
    for (NamedTensor& tensor : tensors) {
      if (tensor.second.dim() == 2) tensor.second.mul_(0.4);
    }
    WriteSafetensors(folder_.path() + "/model.safetensors", tensors);
  }
  enum class Products { kFp32, kBf16, kFp8 };
  ModelOptions Options(Products products, MethodKind method = MethodKind::kLongLora) const {
    ModelOptions options;
    options.spec = TinySpec(folder_.path(), 128);
    options.spec.method.kind = method;
    options.spec.attention.group_size = 32;
    options.spec.training.dtype =
        products == Products::kFp32 ? jobfile::TrainingDtype::kFp32 : jobfile::TrainingDtype::kBf16;
    options.spec.training.fp8 = products == Products::kFp8;
    options.memory.tile_tokens = 48;
    options.memory.loss_tile_tokens = 40;
    return options;
  }
  Batch RandomBatch(int64_t seed = 3) const {
    Batch batch;
    batch.input_ids = batch.labels = RandomIds(2, 96, shape_.vocab, seed);
    return batch;
  }
  static std::unique_ptr<CausalLm> Load(const ModelOptions& options) {
    auto model = CausalLm::Load(options);
    for (Trainable& trainable : model->trainables()) {
      if (!trainable.is_lora) continue;
      const at::Tensor drawn = at::empty(trainable.value.sizes(), at::kFloat);
      trainable.value.copy_(drawn.normal_(0, 0.1, NamedGenerator(5, trainable.name)).to(at::kBFloat16));
    }
    model->ValuesChanged();
    return model;
  }
  // The loss comes as a gradient of that name.
  Tensors Gradients(CausalLm* model) const {
    model->ZeroGradients();
    Tensors gradients{{"loss", at::full({1}, model->ForwardBackward(RandomBatch()).loss)}};
    for (const Trainable& trainable : model->trainables()) gradients[trainable.name] = trainable.gradient.clone();
    return gradients;
  }
  Tensors Gradients(const ModelOptions& options) const { return Gradients(Load(options).get()); }
  static double Error(const at::Tensor& actual, const at::Tensor& expected) {
    return (actual - expected).norm().item<double>() / expected.norm().item<double>();
  }

  TinyShape shape_;
  TemporaryFolder folder_;
};

// bf16 has 8 significant bits and e4m3 has 4, so each rounding to it errs up to 16 times as much. What is rounded so is
// rounded in bf16 too, and errors that small add up: 16 times bf16's own error from fp32 is the bound. The loss is one
// number, whose error in bf16 may be next to nothing by chance: it is held to that of the logits.
TEST_F(Fp8ModelTest, LossLogitsAndGradientsErrAtMost16TimesAsMuchAsBf16) {
  constexpr double kRoundings = 16;
  for (const nlohmann::json& family : kFamilies) {
    UseFamily(family);
    const auto results = [&](Products products) {
      const auto model = Load(Options(products));
      Tensors found = Gradients(model.get());
      found["logits"] = model->TrainingLogits(RandomBatch().input_ids);
      return found;
    };
    const Tensors exact = results(Products::kFp32), bf16 = results(Products::kBf16), fp8 = results(Products::kFp8);
    ASSERT_EQ(fp8.size(), exact.size());
    for (const auto& [name, value] : exact) {
      const std::string& measure = name == "loss" ? "logits" : name;
      const double of_bf16 = Error(bf16.at(measure), exact.at(measure));
      EXPECT_LE(Error(fp8.at(name), value), kRoundings * of_bf16) << name << " of " << family.dump();
      if (name == "loss") continue;
      EXPECT_GT(Error(fp8.at(name), value), of_bf16) << name << " is not of 8 bits";
    }
  }
}

// A language with one rule, of which no text is seen twice. At every step the losses differ by at most a fiftieth of
// the first one.
TEST_F(Fp8ModelTest, AShortTrainingFollowsTheOneInBf16) {
  const auto batch_of = [&](int64_t step) {
    Batch batch;
    batch.input_ids = RandomIds(2, 1, shape_.vocab, step).expand({2, 96}).clone();
    for (int64_t token = 1; token < 96; ++token) {
      batch.input_ids.select(1, token).copy_(
          batch.input_ids.select(1, token - 1).mul(5).add(3).remainder(shape_.vocab));
    }
    batch.labels = batch.input_ids;
    return batch;
  };
  const auto losses = [&](Products products) {
    const auto model = Load(Options(products));
    AdamW optimizer(OptimizedTensors(*model), AdamWOptions{});
    std::vector<double> found;
    for (int step = 0; step < 60; ++step) {
      model->ZeroGradients();
      const LossSum sum = model->ForwardBackward(batch_of(step));
      found.push_back(sum.loss / static_cast<double>(sum.tokens));
      for (at::Tensor gradient : trainer::Gradients(*model)) gradient.mul_(1.0 / static_cast<double>(sum.tokens));
      optimizer.Step(3e-3);
      model->ValuesChanged();
    }
    return found;
  };
  const std::vector<double> bf16 = losses(Products::kBf16), fp8 = losses(Products::kFp8);
  for (size_t step = 0; step < bf16.size(); ++step) {
    EXPECT_NEAR(fp8[step], bf16[step], bf16[0] / 50) << "step " << step;
  }
  EXPECT_LT(bf16.back(), bf16.front() / 2);
}

// Nothing but the products is in 8 bits: what is exported has the base's own weights.
TEST_F(Fp8ModelTest, TheMergedModelIsTheOneThatBf16WouldGive) {
  const auto merged = [&](Products products) {
    Tensors tensors;
    Load(Options(products))->ForEachMergedTensor([&](const std::string& name, const at::Tensor& value) {
      tensors[name] = value.clone();
    });
    return tensors;
  };
  const Tensors expected = merged(Products::kBf16), actual = merged(Products::kFp8);
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, value] : expected) EXPECT_TRUE(at::equal(actual.at(name), value)) << name;
  const SafetensorsFile base = SafetensorsFile::Open(folder_.path() + "/model.safetensors");
  for (const char* frozen : {"model.layers.1.mlp.gate_proj.weight", "model.layers.2.mlp.down_proj.weight"}) {
    EXPECT_TRUE(at::equal(actual.at(frozen), base.View(frozen))) << frozen;
  }
}

TEST_F(Fp8ModelTest, TheRowMergedIsOfTheBasesOwnWeights) {
  const at::Tensor ids = RandomIds(2, 90, shape_.vocab);
  const auto bf16 = Load(Options(Products::kBf16)), fp8 = Load(Options(Products::kFp8));
  const auto loss = [&](CausalLm* model, bool adapted, bool original) {
    CausalLm::EvaluationOptions options;
    options.adapted = adapted;
    options.original_weights = original;
    return model->Evaluate(ids, ids, options).loss;
  };
  EXPECT_EQ(loss(fp8.get(), true, true), loss(bf16.get(), true, false));
  for (const bool adapted : {true, false}) {
    EXPECT_NE(loss(fp8.get(), adapted, false), loss(bf16.get(), adapted, false));
    EXPECT_NEAR(loss(fp8.get(), adapted, false) / loss(bf16.get(), adapted, false), 1, 0.01);
  }
}

TEST_F(Fp8ModelTest, EveryMemoryPolicyGivesTheSameBits) {
  ModelOptions options = Options(Products::kFp8);
  options.spec.method.dropout = 0.1;
  options.plans_buffers = false;
  const Tensors expected = Gradients(options);
  options.plans_buffers = true;
  for (int keep = 0; keep < 5; ++keep) {
    for (const int64_t every : {1, 2}) {
      options.memory.keep = static_cast<KeepPolicy>(keep);
      options.memory.checkpoint_every = every;
      for (const auto& [name, gradient] : Gradients(options)) {
        EXPECT_TRUE(at::equal(gradient, expected.at(name))) << name << ", keep " << keep << ", every " << every;
      }
    }
  }
}

TEST_F(Fp8ModelTest, WeightsAndBuffersAreThePlanners) {
  InstallCountingAllocator();
  const auto planned = [](const ModelOptions& options) {
    return PlannedJobFor({options.spec, at::get_num_threads(), {}});
  };
  ModelOptions options = Options(Products::kFp8, MethodKind::kLora);
  const auto weights = static_cast<double>(planner::ModelMemoryOf(planned(options)).weights);
  options.trains = false;
  const int64_t before = DeviceMemoryNow().live_bytes;
  const auto model = CausalLm::Load(options);
  const auto held = static_cast<double>(DeviceMemoryNow().live_bytes - before);
  EXPECT_LT(std::abs(held / weights - 1), 0.02) << "planned " << weights << ", held " << held;
  const ModelOptions bf16 = Options(Products::kBf16, MethodKind::kLora);
  const auto weights_bf16 = static_cast<double>(planner::ModelMemoryOf(planned(bf16)).weights);
  EXPECT_GT(weights, weights_bf16) << "scales";
  EXPECT_LT(weights / weights_bf16, 1.05);

  options = Options(Products::kFp8);
  const auto training = CausalLm::Load(options);
  Batch batch;
  batch.input_ids = batch.labels = RandomIds(1, 128, shape_.vocab);
  training->ForwardBackward(batch);
  planner::PlannedJob job = planned(options);
  EXPECT_EQ(training->memory_use().arena_bytes, planner::WorkspaceBytes(job.Shape(), options.memory));
}

TEST_F(Fp8ModelTest, WhatCannotBeIn8BitsIsRefused) {
  const auto error_of = [&](const ModelOptions& options) -> std::string {
    try {
      CausalLm::Load(options);
    } catch (const SpecError& error) {
      return error.what();
    }
    return "";
  };
  for (const MethodKind method : {MethodKind::kFull, MethodKind::kQlora, MethodKind::kQlongLora}) {
    EXPECT_THAT(error_of(Options(Products::kFp8, method)), ::testing::HasSubstr("methods lora and longlora"));
  }
  shape_.intermediate = 88;
  WriteTinyModel(folder_.path(), shape_);
  EXPECT_THAT(
      error_of(Options(Products::kFp8)),
      ::testing::HasSubstr("mlp.gate_proj has 64 inputs and 88 outputs, and products in 8 bits want multiples of 16"));
}

}  // namespace
}  // namespace longspan::trainer
