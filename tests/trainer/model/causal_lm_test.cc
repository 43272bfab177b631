// Identities of a whole model: what must not change a result, what must, and what must be exactly zero. Agreement with
// transformers is tests/parity's.
#include "worker/trainer/model/causal_lm.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/trainer/tiny_llama.h"
#include "worker/model_config/adapter_plan.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;

class CausalLmTest : public ::testing::Test {
 protected:
  void SetUp() override { WriteTinyModel(folder_.path(), shape_); }

  ModelOptions Options(jobfile::MethodKind method = jobfile::MethodKind::kLongLora) const {
    ModelOptions options;
    options.spec = TinySpec(folder_.path(), 64);
    options.spec.method.kind = method;
    return options;
  }
  static std::unique_ptr<CausalLm> Load(const ModelOptions& options) {
    auto model = CausalLm::Load(options);
    DrawLora(model.get());
    return model;
  }
  static Batch BatchOf(const at::Tensor& ids) {
    Batch batch;
    batch.input_ids = batch.labels = ids;
    return batch;
  }
  static std::map<std::string, at::Tensor> Gradients(CausalLm* model, const Batch& batch) {
    model->ZeroGradients();
    model->ForwardBackward(batch);
    std::map<std::string, at::Tensor> gradients;
    for (const Trainable& trainable : model->trainables()) gradients[trainable.name] = trainable.gradient.clone();
    return gradients;
  }
  static void ExpectNear(const std::map<std::string, at::Tensor>& actual,
                         const std::map<std::string, at::Tensor>& expected, double tolerance) {
    ASSERT_EQ(actual.size(), expected.size());
    for (const auto& [name, value] : expected) EXPECT_LT(RelativeError(actual.at(name), value), tolerance) << name;
  }

  struct OneThread {
    OneThread() { at::set_num_threads(1); }
    ~OneThread() { at::set_num_threads(threads); }
    const int threads = at::get_num_threads();
  };

  void ExpectKeepPoliciesAgree(const std::vector<std::string>& targets) const {
    for (const auto method : {jobfile::MethodKind::kFull, jobfile::MethodKind::kLongLora}) {
      ModelOptions options = Options(method);
      options.spec.method.targets = targets;
      const Batch batch = BatchOf(RandomIds(2, 37, shape_.vocab));
      const auto expected = Gradients(Load(options).get(), batch);
      for (const auto keep : kKeepPolicies) {
        options.memory.keep = keep;
        ExpectNear(Gradients(Load(options).get(), batch), expected, 1e-5);
      }
      // On one thread, for threads share the rows of a product, and one of up to three rows adds up in another order.
      // Such tiles are in tests/parity, against an fp64 reference.
      const OneThread one_thread;
      for (const int64_t rows : {7, 16, 64}) {
        options.memory.tile_tokens = options.memory.loss_tile_tokens = rows;
        ExpectNear(Gradients(Load(options).get(), batch), expected, 1e-5);
      }
    }
  }

  // Every policy, by how many layers a segment has and how many entries are in host memory. What is kept or computed
  // again is the same arithmetic, so the same bits. Twice over one model: what the first pass leaves in the buffers
  // must not matter.
  void ExpectPoliciesGiveTheSameBits(const ModelOptions& base) const {
    ModelOptions options = base;
    Batch batch = BatchOf(RandomIds(2, 37, shape_.vocab));
    batch.step = 4;
    options.plans_buffers = false;
    const auto expected = Gradients(Load(options).get(), batch);
    for (const bool plans_buffers : {false, true}) {
      for (const auto keep : kKeepPolicies) {
        for (const int64_t every : {1, 2, 3, 5}) {
          for (const int64_t host : {0, 1, 3, 100}) {
            options.plans_buffers = plans_buffers;
            options.memory.keep = keep;
            options.memory.checkpoint_every = every;
            options.memory.host_layers = host;
            const auto model = Load(options);
            for (int pass = 0; pass < 2; ++pass) {
              for (const auto& [name, gradient] : Gradients(model.get(), batch)) {
                EXPECT_TRUE(at::equal(gradient, expected.at(name)))
                    << name << " keep " << static_cast<int>(keep) << " every " << every << " host " << host
                    << (plans_buffers ? " planned" : " own") << " pass " << pass;
              }
            }
          }
        }
      }
    }
  }

  static constexpr KeepPolicy kKeepPolicies[] = {KeepPolicy::kInput, KeepPolicy::kAttentionOutput,
                                                 KeepPolicy::kQueryKeyValue, KeepPolicy::kResidual,
                                                 KeepPolicy::kGateUp};
  TinyShape shape_;
  TemporaryFolder folder_;
};

TEST_F(CausalLmTest, EveryKeepPolicyAndTileSizeGivesTheSameGradients) {
  ExpectKeepPoliciesAgree({"q_proj", "o_proj", "gate_proj", "down_proj"});
}

TEST_F(CausalLmTest, EveryKeepPolicyAndTileSizeGivesTheSameGradientsWithBiases) {
  shape_.changes = {{"attention_bias", true}, {"mlp_bias", true}};
  WriteTinyModel(folder_.path(), shape_);
  ExpectKeepPoliciesAgree({"q_proj", "o_proj", "gate_proj", "down_proj"});
}

TEST_F(CausalLmTest, EveryKeepPolicyAndTileSizeGivesTheSameGradientsWithHeadNorms) {
  shape_.changes = {{"architectures", {"Qwen3ForCausalLM"}}};
  WriteTinyModel(folder_.path(), shape_);
  ExpectKeepPoliciesAgree({"q_proj", "o_proj", "gate_proj", "down_proj"});
}

TEST_F(CausalLmTest, EveryKeepPolicyAndTileSizeGivesTheSameGradientsInGptNeoX) {
  for (const bool parallel : {true, false}) {
    shape_.changes = {{"architectures", {"GPTNeoXForCausalLM"}},
                      {"hidden_act", "gelu"},
                      {"use_parallel_residual", parallel},
                      {"rotary_pct", 0.34}};
    WriteTinyModel(folder_.path(), shape_);
    ExpectKeepPoliciesAgree({"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"});
  }
}

TEST_F(CausalLmTest, EveryKeepPolicyAndTileSizeGivesTheSameGradientsUnderDropout) {
  ModelOptions options = Options();
  options.spec.method.targets = {"q_proj", "v_proj", "up_proj", "down_proj"};
  options.spec.method.dropout = 0.3;
  Batch batch = BatchOf(RandomIds(2, 21, shape_.vocab));
  batch.step = 4;
  const OneThread one_thread;
  const auto expected = Gradients(Load(options).get(), batch);
  options.memory.keep = KeepPolicy::kGateUp;
  options.memory.tile_tokens = 5;
  ExpectNear(Gradients(Load(options).get(), batch), expected, 1e-5);
}

TEST_F(CausalLmTest, EveryPlacementOfKeptValuesGivesTheSameBits) {
  shape_.layers = 5;
  WriteTinyModel(folder_.path(), shape_);
  for (const auto method : {jobfile::MethodKind::kFull, jobfile::MethodKind::kLongLora}) {
    ModelOptions options = Options(method);
    options.memory.tile_tokens = 16;
    options.memory.loss_tile_tokens = 9;
    ExpectPoliciesGiveTheSameBits(options);
  }
}

TEST_F(CausalLmTest, EveryPlacementOfKeptValuesGivesTheSameBitsUnderDropoutInBfloat16) {
  shape_.layers = 4;
  WriteTinyModel(folder_.path(), shape_);
  ModelOptions options = Options();
  options.spec.method.targets = {"q_proj", "v_proj", "up_proj", "down_proj"};
  options.spec.method.dropout = 0.3;
  options.spec.training.dtype = jobfile::TrainingDtype::kBf16;
  options.memory.tile_tokens = 16;
  ExpectPoliciesGiveTheSameBits(options);
}

TEST_F(CausalLmTest, EveryPlacementOfKeptValuesGivesTheSameBitsInEveryFamily) {
  shape_.layers = 4;
  const nlohmann::json families[] = {{{"architectures", {"Qwen3ForCausalLM"}}},
                                     {{"attention_bias", true}, {"mlp_bias", true}},
                                     {{"architectures", {"GPTNeoXForCausalLM"}},
                                      {"hidden_act", "gelu"},
                                      {"use_parallel_residual", true},
                                      {"rotary_pct", 0.34}},
                                     {{"architectures", {"GPTNeoXForCausalLM"}},
                                      {"hidden_act", "gelu"},
                                      {"use_parallel_residual", false},
                                      {"rotary_pct", 0.34}}};
  for (const nlohmann::json& changes : families) {
    shape_.changes = changes;
    WriteTinyModel(folder_.path(), shape_);
    ModelOptions options = Options(jobfile::MethodKind::kFull);
    options.memory.tile_tokens = 32;
    ExpectPoliciesGiveTheSameBits(options);
  }
}

// Only the sums of head norms are taken in another order.
TEST_F(CausalLmTest, TilesOfHeadsGiveTheSameBits) {
  shape_.heads = 10;
  shape_.hidden = 60;
  shape_.layers = 3;
  const auto expect_same_bits = [&](const ModelOptions& base) {
    ModelOptions options = base;
    const Batch batch = BatchOf(RandomIds(2, 37, shape_.vocab));
    const auto expected = Gradients(Load(options).get(), batch);
    for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kQueryKeyValue}) {
      for (const int64_t every : {1, 2}) {
        for (const int64_t heads : {1, 2, 3, 4, 5, 100}) {
          options.memory.keep = keep;
          options.memory.checkpoint_every = every;
          options.memory.host_layers = 1;
          options.memory.tile_heads = heads;
          const auto model = Load(options);
          for (int pass = 0; pass < 2; ++pass) {
            for (const auto& [name, gradient] : Gradients(model.get(), batch)) {
              const std::string what =
                  fmt::format("{}, keep {}, every {}, {} heads", name, static_cast<int>(keep), every, heads);
              if (name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight")) {
                EXPECT_LT(RelativeError(gradient, expected.at(name)), 1e-5) << what;
              } else {
                EXPECT_TRUE(at::equal(gradient, expected.at(name))) << what;
              }
            }
          }
        }
      }
    }
  };
  const nlohmann::json neox = {{"architectures", {"GPTNeoXForCausalLM"}}, {"hidden_act", "gelu"}, {"rotary_pct", 0.34}};
  for (const nlohmann::json& changes : {nlohmann::json::object(), {{"architectures", {"Qwen3ForCausalLM"}}}, neox}) {
    shape_.changes = changes;
    shape_.key_value_heads = changes == neox ? shape_.heads : 5;  // of which the halves of S2 share the third
    WriteTinyModel(folder_.path(), shape_);
    ModelOptions options = Options(jobfile::MethodKind::kFull);
    expect_same_bits(options);
    options.spec.attention.edge = jobfile::AttentionEdge::kWrap;
    expect_same_bits(options);
    options.spec.training.dtype = jobfile::TrainingDtype::kBf16;
    expect_same_bits(options);
  }
}

TEST_F(CausalLmTest, DropoutDependsOnStepAndSequenceAndNotOnTheMicroBatch) {
  ModelOptions options = Options();
  options.spec.method.dropout = 0.3;
  const auto model = Load(options);
  const at::Tensor ids = RandomIds(2, 21, shape_.vocab);
  Batch whole = BatchOf(ids);
  whole.first_sequence_index = 6;
  const auto expected = Gradients(model.get(), whole);
  model->ZeroGradients();
  for (int64_t row = 0; row < 2; ++row) {
    Batch single = BatchOf(ids.narrow(0, row, 1));
    single.first_sequence_index = 6 + row;
    model->ForwardBackward(single);
  }
  for (const Trainable& trainable : model->trainables()) {
    EXPECT_LT(RelativeError(trainable.gradient, expected.at(trainable.name)), 1e-5) << trainable.name;
  }
  Batch next_step = whole;
  next_step.step = 1;
  EXPECT_GT(RelativeError(Gradients(model.get(), next_step).at("base_model.model.model.norm.weight"),
                          expected.at("base_model.model.model.norm.weight")),
            1e-3);
}

TEST_F(CausalLmTest, ChangingATokenNeverChangesAnOutputBeforeItAtAnyDepth) {
  shape_.layers = 12;
  WriteTinyModel(folder_.path(), shape_);
  const auto model = Load(Options());
  const at::Tensor ids = RandomIds(1, 45, shape_.vocab);
  const at::Tensor before = model->TrainingLogits(ids);
  for (const int64_t changed : {1, 7, 8, 12, 31, 44}) {
    const at::Tensor other = ids.clone();
    other[0][changed] = (ids[0][changed] + 1) % shape_.vocab;
    const at::Tensor after = model->TrainingLogits(other);
    EXPECT_TRUE(at::equal(after.narrow(1, 0, changed), before.narrow(1, 0, changed))) << "token " << changed;
    EXPECT_FALSE(at::equal(after[0][changed], before[0][changed]));
  }
}

TEST_F(CausalLmTest, ABatchIsItsSequences) {
  const auto model = Load(Options());
  const at::Tensor ids = RandomIds(3, 29, shape_.vocab);
  const at::Tensor together = model->TrainingLogits(ids);
  for (int64_t row = 0; row < 3; ++row) {
    EXPECT_LT(RelativeError(together[row], model->TrainingLogits(ids.narrow(0, row, 1))[0]), 1e-5);
  }
}

TEST_F(CausalLmTest, ZeroBIsTheBaseModelExactly) {
  const at::Tensor ids = RandomIds(1, 30, shape_.vocab);
  const at::Tensor base = CausalLm::Load(Options(jobfile::MethodKind::kFull))->TrainingLogits(ids);
  EXPECT_TRUE(at::equal(CausalLm::Load(Options())->TrainingLogits(ids), base));
  EXPECT_FALSE(at::equal(Load(Options())->TrainingLogits(ids), base));
}

TEST_F(CausalLmTest, GradientsAddUpOverMicroBatches) {
  const auto model = Load(Options(jobfile::MethodKind::kFull));
  const Batch batch = BatchOf(RandomIds(1, 19, shape_.vocab));
  const auto once = Gradients(model.get(), batch);
  model->ForwardBackward(batch);
  for (const Trainable& trainable : model->trainables()) {
    EXPECT_LT(RelativeError(trainable.gradient, once.at(trainable.name) * 2), 1e-6) << trainable.name;
  }
}

TEST_F(CausalLmTest, EachGradientIsAnnouncedOnceAndNotTouchedAfterwards) {
  for (const bool tied : {false, true}) {
    shape_.tied = tied;
    WriteTinyModel(folder_.path(), shape_);
    for (const auto method : {jobfile::MethodKind::kFull, jobfile::MethodKind::kLora, jobfile::MethodKind::kLongLora}) {
      const auto model = Load(Options(method));
      std::map<size_t, at::Tensor> announced;
      model->ZeroGradients();
      model->ForwardBackward(BatchOf(RandomIds(1, 17, shape_.vocab)), [&](size_t index) {
        EXPECT_TRUE(announced.emplace(index, model->trainables()[index].gradient.clone()).second);
      });
      ASSERT_EQ(announced.size(), model->trainables().size());
      for (const auto& [index, gradient] : announced)
        EXPECT_TRUE(at::equal(gradient, model->trainables()[index].gradient));
    }
  }
}

TEST_F(CausalLmTest, NothingScoredIsNoLossAndZeroGradientsAndStillAnnounced) {
  const auto model = Load(Options());
  Batch batch = BatchOf(RandomIds(2, 17, shape_.vocab));
  batch.labels = at::full_like(batch.input_ids, -100);
  size_t announced = 0;
  model->ZeroGradients();
  const LossSum sum = model->ForwardBackward(batch, [&](size_t) { ++announced; });
  EXPECT_EQ(sum.tokens, 0);
  EXPECT_EQ(sum.loss, 0);
  EXPECT_EQ(announced, model->trainables().size());
  for (const Trainable& trainable : model->trainables()) EXPECT_TRUE(trainable.gradient.eq(0).all().item<bool>());
}

TEST_F(CausalLmTest, OneTokenTrainsNothing) {
  const auto model = Load(Options());
  EXPECT_EQ(model->ForwardBackward(BatchOf(RandomIds(1, 1, shape_.vocab))).tokens, 0);
  EXPECT_EQ(model->TrainingLogits(RandomIds(1, 1, shape_.vocab)).sizes(), at::IntArrayRef({1, 1, shape_.vocab}));
}

TEST_F(CausalLmTest, ZeroGradientsOverwritesNotANumber) {
  const auto model = Load(Options());
  for (Trainable& trainable : model->trainables()) trainable.gradient.fill_(NAN);
  model->ZeroGradients();
  for (const Trainable& trainable : model->trainables()) EXPECT_TRUE(trainable.gradient.eq(0).all().item<bool>());
}

TEST_F(CausalLmTest, MergedTensorsGiveTheAdaptedModelAndFrozenOnesAreTheBases) {
  const auto model = Load(Options());
  TemporaryFolder merged;
  WriteJson(merged.path() + "/config.json", ExportedConfigDocument(model->config()));
  ShardedSafetensorsWriter writer(merged.path(), 20000);
  model->ForEachMergedTensor([&](const std::string& name, const at::Tensor& value) { writer.Add(name, value); });
  EXPECT_GT(writer.Finish().size(), 2u);

  const at::Tensor ids = RandomIds(1, 50, shape_.vocab);
  CausalLm::EvaluationOptions options;
  const LossSum adapted = model->Evaluate(ids, ids, options);
  ModelOptions merged_options = Options(jobfile::MethodKind::kFull);
  merged_options.spec.model.path = merged.path();
  const auto merged_model = CausalLm::Load(merged_options);
  EXPECT_NEAR(merged_model->Evaluate(ids, ids, options).loss, adapted.loss, 1e-4);
  EXPECT_TRUE(SamePositions(merged_model->config().rope, model->config().rope));  // extended already: not twice
  EXPECT_TRUE(at::equal(WeightFolder::Open(merged.path()).View("model.layers.1.mlp.up_proj.weight"),
                        WeightFolder::Open(folder_.path()).View("model.layers.1.mlp.up_proj.weight")));
}

TEST_F(CausalLmTest, EvaluationWithoutWhatWasTrainedIsTheBaseForEveryMethod) {
  const at::Tensor ids = RandomIds(2, 40, shape_.vocab);
  for (const auto method : {jobfile::MethodKind::kFull, jobfile::MethodKind::kLora, jobfile::MethodKind::kLongLora}) {
    const auto model = CausalLm::Load(Options(method));
    CausalLm::EvaluationOptions adapted, base;
    base.adapted = false;
    const double before = model->Evaluate(ids, ids, adapted).loss;
    for (Trainable& trainable : model->trainables()) trainable.value.add_(0.05);
    model->ValuesChanged();
    EXPECT_EQ(model->Evaluate(ids, ids, base).loss, before);
    EXPECT_NE(model->Evaluate(ids, ids, adapted).loss, before);
    base.rope = RopeScaling::kOriginal;
    EXPECT_NE(model->Evaluate(ids, ids, base).loss, before);
  }
}

TEST_F(CausalLmTest, RandomWeightsDependOnTheSeedAlone) {
  ModelOptions options = Options(jobfile::MethodKind::kFull);
  options.spec.model.init = jobfile::ModelInit::kRandom;
  const at::Tensor ids = RandomIds(1, 20, shape_.vocab);
  const at::Tensor logits = CausalLm::Load(options)->TrainingLogits(ids);
  EXPECT_TRUE(at::equal(CausalLm::Load(options)->TrainingLogits(ids), logits));
  options.spec.training.seed = 12;
  EXPECT_FALSE(at::equal(CausalLm::Load(options)->TrainingLogits(ids), logits));
}

TEST_F(CausalLmTest, Bfloat16IsNearFloat32) {
  ModelOptions options = Options();
  const Batch batch = BatchOf(RandomIds(1, 33, shape_.vocab));
  const auto model = Load(options);
  options.spec.training.dtype = jobfile::TrainingDtype::kBf16;
  const auto coarse = CausalLm::Load(options);
  for (size_t i = 0; i < model->trainables().size(); ++i) {
    coarse->trainables()[i].value.copy_(model->trainables()[i].value);
    EXPECT_EQ(coarse->trainables()[i].gradient.scalar_type(), at::kFloat);
  }
  coarse->ValuesChanged();
  const LossSum exact = model->ForwardBackward(batch);
  const LossSum rounded = coarse->ForwardBackward(batch);
  EXPECT_NEAR(rounded.loss / exact.loss, 1.0, 0.05);
}

TEST_F(CausalLmTest, TokensOutsideTheVocabularyAreRefused) {
  const auto model = Load(Options());
  const at::Tensor ids = RandomIds(1, 9, shape_.vocab);
  ids[0][4] = shape_.vocab;
  EXPECT_THROW(model->ForwardBackward(BatchOf(ids)), UserError);
  ids[0][4] = -100;
  EXPECT_THROW(model->TrainingLogits(ids), UserError);
}

TEST_F(CausalLmTest, AShapeThatDisagreesWithTheConfigNamesTheTensorAndBothShapes) {
  auto tensors = TinyTensors(shape_);
  for (NamedTensor& tensor : tensors) {
    if (tensor.first == "model.layers.1.self_attn.k_proj.weight") tensor.second = at::zeros({5, 24});
  }
  WriteSafetensors(folder_.path() + "/model.safetensors", tensors);
  try {
    CausalLm::Load(Options());
    FAIL();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what())
                  .find("tensor \"model.layers.1.self_attn.k_proj.weight\" has shape [5, 24], but config.json "
                        "asks for [12, 24]"),
              std::string::npos)
        << error.what();
  }
}

TEST_F(CausalLmTest, StartsFromAnAdapterFolderWithItsRankAlphaAndTargets) {
  const auto model = Load(Options());
  TemporaryFolder adapter;
  std::vector<NamedTensor> tensors;
  for (const Trainable& trainable : model->trainables()) tensors.emplace_back(trainable.name, trainable.value);
  WriteSafetensors(adapter.path() + "/adapter_model.safetensors", tensors);
  WriteJson(adapter.path() + "/adapter_config.json", {{"peft_type", "LORA"},
                                                      {"r", 3},
                                                      {"lora_alpha", 16},
                                                      {"target_modules", {"v_proj", "k_proj", "q_proj", "o_proj"}}});
  const at::Tensor ids = RandomIds(1, 30, shape_.vocab);
  ModelOptions options = Options();
  options.spec.method.adapter = adapter.path();
  options.spec.method.rank.reset();
  EXPECT_TRUE(at::equal(CausalLm::Load(options)->TrainingLogits(ids), model->TrainingLogits(ids)));
  options.spec.method.rank = 4;
  EXPECT_THROW(CausalLm::Load(options), SpecError);
  options.spec.method.kind = jobfile::MethodKind::kFull;
  EXPECT_THROW(CausalLm::Load(options), SpecError);
}

TEST_F(CausalLmTest, AnUnknownTargetIsRefused) {
  ModelOptions options = Options();
  options.spec.method.targets = {"query"};
  EXPECT_THROW(CausalLm::Load(options), SpecError);
}

}  // namespace
}  // namespace longspan::trainer
