// A model whose ranks share its weights against one that has them whole: the same bits, and as much memory as planned.
#include "worker/trainer/model/sharded_weights.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/trainer/parallel/gang.h"
#include "tests/trainer/tiny_llama.h"
#include "worker/planner/job_shape.h"
#include "worker/planner/rank_memory.h"
#include "worker/trainer/memory/counting_allocator.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;
using jobfile::MethodKind;
using jobfile::TrainingDtype;

// A rank that meets nobody: enough to load a model.
class LoneRank : public Communicator {
 public:
  LoneRank(int64_t rank, int64_t world_size) : rank_(rank), world_size_(world_size) {}
  int64_t rank() const override { return rank_; }
  int64_t world_size() const override { return world_size_; }
  std::string store_address() const override { return ""; }
  void Publish(const std::string&, const std::string&) override {}
  std::string Get(const std::string&, const std::function<void()>&) override { return ""; }
  void Join() override {}
  void AllReduce(at::Tensor) override { ADD_FAILURE(); }
  std::unique_ptr<Pending> StartAllReduce(at::Tensor) override { return Fail(); }
  CollectiveUse use(Collective) const override { return {}; }
  std::unique_ptr<Pending> StartExchange(const Exchange&) override { return Fail(); }
  std::unique_ptr<Pending> StartAllGather(const at::Tensor&, const at::Tensor&) override { return Fail(); }

 private:
  std::unique_ptr<Pending> Fail() const {
    ADD_FAILURE() << "a rank that only loads asks for the others";
    return nullptr;
  }
  int64_t rank_, world_size_;
};

TinyShape LlamaWithBiases() {
  TinyShape shape;
  shape.layers = 5;
  shape.changes = {{"attention_bias", true}, {"mlp_bias", true}};
  return shape;
}
TinyShape GptNeoX() {
  TinyShape shape;
  shape.layers = 5;
  shape.heads = shape.key_value_heads = 4;
  shape.changes = {{"architectures", {"GPTNeoXForCausalLM"}}, {"hidden_act", "gelu"}, {"rotary_pct", 0.34}};
  return shape;
}

class ShardedWeightsTest : public ::testing::Test {
 protected:
  ShardedWeightsTest() { InstallCountingAllocator(); }

  void WriteModel(const TinyShape& shape) {
    shape_ = shape;
    WriteTinyModel(folder_.path(), shape_);
  }
  ModelOptions Options(MethodKind method, TrainingDtype dtype = TrainingDtype::kFp32) const {
    ModelOptions options;
    options.spec = TinySpec(folder_.path(), 64);
    options.spec.method.kind = method;
    options.spec.training.dtype = dtype;
    options.spec.resources.shard_weights = true;
    return options;
  }
  static std::unique_ptr<CausalLm> Load(ModelOptions options, Communicator* ranks) {
    options.ranks = ranks;
    auto model = CausalLm::Load(options);
    DrawLora(model.get());
    return model;
  }
  Batch BatchOf(int64_t rank, int64_t pass) const {
    Batch batch;
    batch.input_ids = batch.labels = RandomIds(2, tokens_, shape_.vocab, 10 * rank + pass);
    batch.step = pass;
    batch.first_sequence_index = 2 * rank;
    return batch;
  }
  // What a rank gets of three training passes, the second without anything scored, and of two evaluations.
  std::map<std::string, at::Tensor> Results(CausalLm* model, int64_t rank) const {
    std::map<std::string, at::Tensor> results;
    model->ZeroGradients();
    for (int64_t pass = 0; pass < 3; ++pass) {
      Batch batch = BatchOf(rank, pass);
      if (pass == 1 && rank == 0) batch.labels = at::full_like(batch.labels, -100);
      results[fmt::format("loss {}", pass)] = at::scalar_tensor(model->ForwardBackward(batch).loss, at::kDouble);
      for (Trainable& trainable : model->trainables()) {
        if (trainable.is_lora) trainable.value.mul_(0.9);  // as an optimizer would
      }
      model->ValuesChanged();
    }
    for (const Trainable& trainable : model->trainables()) results[trainable.name] = trainable.gradient.clone();
    const at::Tensor ids = RandomIds(1, 40, shape_.vocab, 99 + rank);
    CausalLm::EvaluationOptions options;
    results["extended"] = at::scalar_tensor(model->Evaluate(ids, ids, options).loss, at::kDouble);
    options.adapted = false;
    results["base"] = at::scalar_tensor(model->Evaluate(ids, ids, options).loss, at::kDouble);
    return results;
  }

  void ExpectTheSameBits(const ModelOptions& options, const std::string& what) const {
    for (const int64_t world_size : {1, 2, 3}) {
      AsGang(world_size, [&](Communicator& ranks) {
        const auto expected = Results(Load(options, nullptr).get(), ranks.rank());
        const auto actual = Results(Load(options, &ranks).get(), ranks.rank());
        ASSERT_EQ(actual.size(), expected.size());
        for (const auto& [name, value] : expected) {
          EXPECT_TRUE(at::equal(actual.at(name), value))
              << what << ", rank " << ranks.rank() << " of " << world_size << ", " << name;
        }
      });
    }
  }

  TinyShape shape_;
  int64_t tokens_ = 37;  // of a training sequence
  TemporaryFolder folder_;
};

TEST_F(ShardedWeightsTest, LossAndEveryGradientHaveTheBitsOfWholeWeights) {
  for (const TinyShape& shape : {LlamaWithBiases(), GptNeoX()}) {
    WriteModel(shape);
    for (const MethodKind method : {MethodKind::kLora, MethodKind::kLongLora}) {
      for (const TrainingDtype dtype : {TrainingDtype::kFp32, TrainingDtype::kBf16}) {
        for (const int64_t every : {1, 2}) {
          ModelOptions options = Options(method, dtype);
          options.memory.checkpoint_every = every;
          ExpectTheSameBits(options, fmt::format("{}, method {}, dtype {}, every {}", shape.changes.dump(),
                                                 static_cast<int>(method), static_cast<int>(dtype), every));
        }
      }
    }
  }
}

TEST_F(ShardedWeightsTest, EveryPolicyAndDropoutHaveTheBitsOfWholeWeights) {
  WriteModel(LlamaWithBiases());
  for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kQueryKeyValue, KeepPolicy::kGateUp}) {
    for (const int64_t every : {1, 3, 4, 9}) {
      ModelOptions options = Options(MethodKind::kLongLora);
      options.memory.keep = keep;
      options.memory.checkpoint_every = every;
      if (every == 3) options.spec.method.dropout = 0.3;
      ExpectTheSameBits(options, fmt::format("keep {}, every {}", static_cast<int>(keep), every));
    }
  }
}

TEST_F(ShardedWeightsTest, ARankWithFewerPassesTakesPartInThoseOfTheOthers) {
  WriteModel(GptNeoX());
  ModelOptions options = Options(MethodKind::kLongLora);
  options.memory.checkpoint_every = 2;
  AsGang(3, [&](Communicator& ranks) {
    const auto model = Load(options, &ranks);
    const auto whole = Load(options, nullptr);
    EXPECT_TRUE(model->shares_weights());
    EXPECT_FALSE(whole->shares_weights());
    for (int64_t pass = 0; pass < 3; ++pass) {
      if (pass < ranks.rank()) {
        model->TakePart(CausalLm::PassKind::kTraining);
        model->TakePart(CausalLm::PassKind::kForward);
        continue;
      }
      const Batch batch = BatchOf(ranks.rank(), pass);
      EXPECT_EQ(model->ForwardBackward(batch).loss, whole->ForwardBackward(batch).loss);
      EXPECT_EQ(model->Evaluate(batch.input_ids, batch.labels, {}).loss,
                whole->Evaluate(batch.input_ids, batch.labels, {}).loss);
    }
  });
}

TEST_F(ShardedWeightsTest, RanksThatShareSequencesTooHaveTheBitsOfWholeWeights) {
  WriteModel(LlamaWithBiases());
  tokens_ = 32;  // whole groups of 8 on each of two ranks
  for (const int64_t every : {1, 2}) {
    AsGang(4, [&](Communicator& ranks) {
      SequenceRanks sequence(ranks, 2);
      ModelOptions options = Options(MethodKind::kLongLora);
      options.spec.resources.sequence_parallel = 2;
      options.memory.checkpoint_every = every;
      options.sequence = &sequence;
      const auto expected = Results(Load(options, nullptr).get(), sequence.group());
      const auto actual = Results(Load(options, &ranks).get(), sequence.group());
      for (const auto& [name, value] : expected) EXPECT_TRUE(at::equal(actual.at(name), value)) << name;
    });
  }
}

TEST_F(ShardedWeightsTest, AsManyBytesMoveAsThePlannersOrderSays) {
  WriteModel(LlamaWithBiases());
  for (const int64_t every : {1, 2}) {
    ModelOptions options = Options(MethodKind::kLongLora);
    options.memory.checkpoint_every = every;
    AsGang(3, [&](Communicator& ranks) {
      const auto model = Load(options, &ranks);
      model->ForwardBackward(BatchOf(ranks.rank(), 0));
      planner::StepShape shape = planner::StepShapeOf(options.spec, model->config(), model->adapter(), 74);
      shape.weight_ranks = 3;
      const int64_t gathers = planner::GathersOf(planner::TrainingOrder(shape, options.memory));
      // Forward 0 1 2 3 4, then 2 1 0 of 4 3 2 1 0; or 2 3 and 0 1 of 4, 2 3 3 2, 0 1 1 0.
      EXPECT_EQ(gathers, every == 1 ? 5 + 3 : 5 + 4);
      EXPECT_EQ(ranks.allgather_bytes(), gathers * 2 * planner::ShardWeights(shape).rank_elements * 4);
    });
  }
}

// Large enough that weights outweigh the bookkeeping of tensors.
TinyShape LargerLlama() {
  TinyShape shape;
  shape.hidden = 192;
  shape.intermediate = 512;
  shape.layers = 6;
  shape.heads = 12;
  shape.key_value_heads = 4;
  shape.vocab = 50;
  shape.changes = {{"head_dim", 16}};
  return shape;
}

TEST_F(ShardedWeightsTest, LoadingHoldsOnlyTheRanksPart) {
  WriteModel(LargerLlama());
  for (const TrainingDtype dtype : {TrainingDtype::kFp32, TrainingDtype::kBf16}) {
    ModelOptions options = Options(MethodKind::kLora, dtype);
    options.trains = false;
    options.spec.resources.slots = 3;
    for (int64_t rank = 0; rank < 3; ++rank) {
      LoneRank ranks(rank, 3);
      options.ranks = &ranks;
      const ModelConfig config = ReadModelConfig(folder_.path());
      const AdapterPlan plan = ResolveAdapterPlan(options.spec, AdaptableModelOf(config));
      const planner::WeightShards shards = planner::ShardWeights(planner::StepShapeOf(options.spec, config, plan, 1));
      planner::PlannedJob job = planner::PlannedJobOf(options.spec, config, plan, planner::CpuProfile(1));
      const auto planned = static_cast<double>(planner::ModelMemoryOf(job).weights - shards.gathered_bytes());

      const int64_t before = DeviceMemoryNow().live_bytes;
      ResetDeviceMemoryPeak();
      const auto model = CausalLm::Load(options);
      const auto peak = static_cast<double>(DeviceMemoryNow().peak_bytes - before);
      const auto live = static_cast<double>(DeviceMemoryNow().live_bytes - before);
      EXPECT_LT(std::abs(live / planned - 1), 0.01) << "planned " << planned << ", held " << live;
      EXPECT_LT(peak / planned, 1.02) << "planned " << planned << ", at most " << peak;
      EXPECT_LT(shards.held_bytes() * 3, shards.whole_bytes() * 1.01);
    }
  }
}

// Ranks in one process: what all of them allocate.
TEST_F(ShardedWeightsTest, ARanksPassesHoldWhatWasPlanned) {
  WriteModel(LargerLlama());
  for (const TrainingDtype dtype : {TrainingDtype::kFp32, TrainingDtype::kBf16}) {
    ModelOptions options = Options(MethodKind::kLora, dtype);
    options.spec.resources.slots = options.spec.training.global_batch = 2;
    const ModelConfig config = ReadModelConfig(folder_.path());
    const AdapterPlan plan = ResolveAdapterPlan(options.spec, AdaptableModelOf(config));
    const planner::PlannedJob job = planner::PlannedJobOf(options.spec, config, plan, planner::CpuProfile(1));
    const planner::ModelMemory planned = planner::ModelMemoryOf(job);
    const int64_t before = DeviceMemoryNow().live_bytes;
    AsGang(2, [&](Communicator& ranks) {
      const auto model = Load(options, &ranks);
      Batch batch;
      batch.input_ids = batch.labels = RandomIds(1, 64, shape_.vocab);
      model->ForwardBackward(batch);
      ranks.AllReduce(at::zeros({1}));
      if (ranks.rank() == 0) {
        const CausalLm::MemoryUse use = model->memory_use();
        const auto live = static_cast<double>(DeviceMemoryNow().live_bytes - before) / 2 -
                          static_cast<double>(use.arena_bytes + use.kept_bytes);
        EXPECT_LT(std::abs(live / static_cast<double>(planned.weights + planned.gradients) - 1), 0.05);
      }
      ranks.AllReduce(at::zeros({1}));
    });
  }
}

TEST_F(ShardedWeightsTest, MergedTensorsNeedNoOtherRank) {
  WriteModel(GptNeoX());
  const auto merged = [&](Communicator* ranks) {
    std::map<std::string, at::Tensor> tensors;
    Load(Options(MethodKind::kLora), ranks)->ForEachMergedTensor([&](const std::string& name, const at::Tensor& value) {
      tensors[name] = value.clone();
    });
    return tensors;
  };
  LoneRank ranks(0, 3);
  const auto expected = merged(nullptr);
  const auto actual = merged(&ranks);
  ASSERT_EQ(actual.size(), expected.size());
  for (const auto& [name, value] : expected) EXPECT_TRUE(at::equal(actual.at(name), value)) << name;
}

}  // namespace
}  // namespace longspan::trainer
