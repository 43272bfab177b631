// The planner's prediction against what a counting allocator sees of real training steps, and what a steady step
// allocates.
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/trainer/tiny_llama.h"
#include "worker/planner/rank_memory.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/memory_plan.h"
#include "worker/trainer/optim/adamw.h"
#include "worker/trainer/parallel/gradient_reducer.h"
#include "worker/trainer/trained_tensors.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;
using jobfile::MethodKind;

// Large enough that what is planned outweighs the bookkeeping of tensors.
TinyShape Shape() {
  TinyShape shape;
  shape.hidden = 96;
  shape.intermediate = 256;
  shape.layers = 4;
  shape.heads = 6;
  shape.key_value_heads = 2;
  shape.vocab = 700;
  shape.changes = {{"head_dim", 16}};
  return shape;
}

class PlannedMemoryTest : public ::testing::Test {
 protected:
  PlannedMemoryTest() { InstallCountingAllocator(); }

  void WriteModel(const TinyShape& shape) {
    shape_ = shape;
    WriteTinyModel(folder_.path(), shape_);
  }
  jobfile::JobSpec Spec(MethodKind method, int64_t context_length) const {
    jobfile::JobSpec spec = TinySpec(folder_.path(), context_length);
    spec.attention.group_size = context_length / 4;
    spec.method.kind = method;
    spec.training.global_batch = 1;
    return spec;
  }

  struct Training {
    Training(const jobfile::JobSpec& spec, const MemoryPolicy& policy) {
      ModelOptions options;
      options.spec = spec;
      options.memory = policy;
      model = CausalLm::Load(options);
      gradients = Gradients(*model);
      optimizer = std::make_unique<AdamW>(OptimizedTensors(*model), AdamWOptions{});
      ranks = Communicator::OpenStore({});
      reducer = std::make_unique<GradientReducer>(*ranks, gradients);
    }
    void Step(const at::Tensor& ids) {
      model->ZeroGradients();
      Batch batch;
      batch.input_ids = batch.labels = ids;
      model->ForwardBackward(batch, [&](size_t index) { reducer->Ready(index); });
      reducer->Finish({});
      GlobalNorm(gradients);
      ClipGradients(gradients, 2, 1);
      optimizer->Step(1e-4);
      model->ValuesChanged();
    }
    std::unique_ptr<CausalLm> model;
    std::vector<at::Tensor> gradients;
    std::unique_ptr<AdamW> optimizer;
    std::unique_ptr<Communicator> ranks;
    std::unique_ptr<GradientReducer> reducer;
  };

  void ExpectPredicted(const jobfile::JobSpec& spec, const MemoryPolicy& policy, const std::string& what) const {
    const planner::PlannedJob job = PlannedJobFor({spec, at::get_num_threads(), {}});
    const planner::RankMemory predicted = planner::MemoryOfRank(job, policy);
    const int64_t before = DeviceMemoryNow().live_bytes;
    Training training(spec, policy);
    ResetDeviceMemoryPeak();
    {
      const at::Tensor ids = RandomIds(job.micro_batch(), spec.context_length, shape_.vocab);
      training.Step(ids);
      training.Step(ids);
    }
    const auto peak = static_cast<double>(DeviceMemoryNow().peak_bytes - before);
    const auto planned = static_cast<double>(predicted.device_bytes());
    EXPECT_LT(std::abs(peak / planned - 1), 0.05) << what << ": planned " << planned << ", counted " << peak;
    EXPECT_EQ(training.model->memory_use().host_bytes, predicted.host_activations()) << what;
  }

  void ExpectPredictedForEveryPolicy(const jobfile::JobSpec& spec, const std::string& what) const {
    for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kAttentionOutput, KeepPolicy::kQueryKeyValue,
                            KeepPolicy::kResidual, KeepPolicy::kGateUp}) {
      for (const int64_t every : {1, 2, 3}) {
        for (const int64_t host : {0, 2}) {
          for (const int64_t heads : {0, 1}) {
            if (heads > 0 && host > 0) continue;
            const MemoryPolicy policy{keep, every, host, /*tile_tokens=*/128, /*loss_tile_tokens=*/64, heads};
            ExpectPredicted(spec, policy,
                            fmt::format("{}, keep {}, every {}, host {}, tiles of {} heads", what,
                                        static_cast<int>(keep), every, host, heads));
          }
        }
      }
    }
  }

  TinyShape shape_;
  TemporaryFolder folder_;
};

TEST_F(PlannedMemoryTest, IsThatOfTheRanksThatThereAre) {
  WriteModel(Shape());
  jobfile::JobSpec spec = Spec(MethodKind::kLora, 256);
  spec.training.global_batch = 8;
  spec.resources.slots = 4;
  spec.resources.slots_min = 2;
  spec.resources.shard_weights = true;
  const planner::PlannedJob whole = PlannedJobFor({spec, 1, {}});
  const planner::PlannedJob smaller = PlannedJobFor({spec, 1, {}, at::kCPU, 2});
  EXPECT_EQ(whole.sequences_of_rank(), 2);
  EXPECT_EQ(smaller.sequences_of_rank(), 4);
  EXPECT_EQ(whole.Shape().weight_ranks, 4);
  EXPECT_EQ(smaller.Shape().weight_ranks, 2);
}

TEST_F(PlannedMemoryTest, EveryMethodContextAndPolicyOfLlamaIsPredictedWithin5Percent) {
  WriteModel(Shape());
  for (const MethodKind method : {MethodKind::kLora, MethodKind::kLongLora, MethodKind::kFull}) {
    for (const int64_t context : {256, 1024}) {
      ExpectPredictedForEveryPolicy(Spec(method, context),
                                    fmt::format("method {}, {}", static_cast<int>(method), context));
    }
  }
}

TEST_F(PlannedMemoryTest, AQuantizedBaseIsPredictedWithin5Percent) {
  WriteModel(Shape());
  ExpectPredictedForEveryPolicy(Spec(MethodKind::kQlongLora, 512), "qlonglora");
}

TEST_F(PlannedMemoryTest, OtherFamiliesArePredictedWithin5Percent) {
  TinyShape qwen3 = Shape();
  qwen3.changes["architectures"] = {"Qwen3ForCausalLM"};
  TinyShape tied = Shape();
  tied.tied = true;
  TinyShape neox = Shape();
  neox.heads = neox.key_value_heads = 16;
  neox.changes = {{"architectures", {"GPTNeoXForCausalLM"}}, {"hidden_act", "gelu"}, {"rotary_pct", 0.34}};
  for (const TinyShape& shape : {qwen3, tied, neox}) {
    WriteModel(shape);
    for (const MethodKind method : {MethodKind::kLongLora, MethodKind::kFull}) {
      ExpectPredictedForEveryPolicy(Spec(method, 512), shape.changes.dump());
    }
  }
}

TEST_F(PlannedMemoryTest, SeveralSequencesFullAttentionAndDropoutArePredictedWithin5Percent) {
  WriteModel(Shape());
  jobfile::JobSpec spec = Spec(MethodKind::kLongLora, 256);
  spec.training.global_batch = spec.training.micro_batch.emplace(3);
  ExpectPredictedForEveryPolicy(spec, "three sequences");
  spec = Spec(MethodKind::kLongLora, 512);
  spec.attention.kind = jobfile::AttentionKind::kFull;
  spec.method.dropout = 0.1;
  spec.method.targets = {"q_proj", "up_proj", "down_proj"};
  ExpectPredictedForEveryPolicy(spec, "full attention with dropout");
}

// What stays for the allocator in a step: see ListedAllocation, and small tensors such as loss targets of a tile.
TEST_F(PlannedMemoryTest, AStepLeavesLiveBytesAsTheyWereAndAllocatesOnlyWhatIsListed) {
  WriteModel(Shape());
  for (const MethodKind method :
       {MethodKind::kLora, MethodKind::kLongLora, MethodKind::kFull, MethodKind::kQlongLora}) {
    for (const auto keep : {KeepPolicy::kInput, KeepPolicy::kQueryKeyValue, KeepPolicy::kGateUp}) {
      for (const int64_t every : {1, 3}) {
        const jobfile::JobSpec spec = Spec(method, 1024);
        Training training(spec, {keep, every, /*host_layers=*/2, /*tile_tokens=*/256, /*loss_tile_tokens=*/256});
        const at::Tensor ids = RandomIds(1, 1024, shape_.vocab);
        training.Step(ids);
        const DeviceMemory steady = DeviceMemoryNow();
        for (int step = 0; step < 3; ++step) {
          training.Step(ids);
          const DeviceMemory now = DeviceMemoryNow();
          EXPECT_EQ(now.live_bytes, steady.live_bytes);
          EXPECT_EQ(now.unlisted_allocations, steady.unlisted_allocations)
              << "method " << static_cast<int>(method) << " keep " << static_cast<int>(keep) << " every " << every;
        }
      }
    }
  }
}

TEST_F(PlannedMemoryTest, ReleasedBuffersAreGivenBackAndTakenAgain) {
  WriteModel(Shape());
  const int64_t before = DeviceMemoryNow().live_bytes;
  Training training(Spec(MethodKind::kLongLora, 512), {KeepPolicy::kGateUp, 1, /*host_layers=*/1});
  const int64_t loaded = DeviceMemoryNow().live_bytes;
  EXPECT_GT(loaded, before);
  const at::Tensor ids = RandomIds(1, 512, shape_.vocab);
  const auto ids_bytes = static_cast<int64_t>(ids.nbytes());
  training.Step(ids);
  const auto use = training.model->memory_use();
  EXPECT_GT(use.arena_bytes + use.kept_bytes, 1 << 20);
  EXPECT_GT(use.host_bytes, 0);
  training.model->ReleaseBuffers();
  EXPECT_LT(DeviceMemoryNow().live_bytes, loaded + ids_bytes + (1 << 20));  // the table of angles stays
  EXPECT_EQ(training.model->memory_use().host_bytes, 0);
  training.Step(ids);
  EXPECT_EQ(training.model->memory_use().arena_bytes, use.arena_bytes);
}

}  // namespace
}  // namespace longspan::trainer
