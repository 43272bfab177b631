// Bytes of a rank by kind, against sizes counted by hand.
#include "worker/planner/rank_memory.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/worker/planner/model_configs.h"
#include "worker/planner/plan_text.h"

namespace longspan::planner {
namespace {

jobfile::JobSpec SpecOf(jobfile::MethodKind method, jobfile::TrainingDtype dtype) {
  jobfile::JobSpec spec;
  spec.context_length = 512;
  spec.method.kind = method;
  spec.training.dtype = dtype;
  spec.training.global_batch = 6;
  return spec;
}

ModelMemory MemoryOf(const nlohmann::json& config, const jobfile::JobSpec& spec) {
  const PlannedJob job = JobOf(config, spec);
  return ModelMemoryOf(job.config, job.adapter, *job.spec.training.dtype);
}

// Of TinyQwen: what a layer has, by role.
constexpr int64_t kLinears = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 96;
constexpr int64_t kBiases = 64 + 2 * 32;
constexpr int64_t kNorms = 2 * 64;
constexpr int64_t kLayers = 3;
constexpr int64_t kEmbedding = 100 * 64;  // the head is the same tensor
constexpr int64_t kAll = kEmbedding + kLayers * (kLinears + kBiases + kNorms) + 64;

// Rank 8 on q, k, v and o.
constexpr int64_t kLora = kLayers * 8 * ((64 + 64) + 2 * (64 + 32) + (64 + 64));
// Stacked A of q, k and v; block-diagonal B of q, k, v and of o.
constexpr int64_t kDerived = kLayers * (24 * 64 + (64 + 2 * 32) * 24 + 64 * 8);

TEST(ModelMemory, EveryWeightTrainsInFp32) {
  const ModelMemory memory = MemoryOf(TinyQwen(), SpecOf(jobfile::MethodKind::kFull, jobfile::TrainingDtype::kFp32));
  EXPECT_EQ(memory.trained_values, kAll);
  EXPECT_EQ(memory.weights, kAll * 4);
  EXPECT_EQ(memory.gradients, kAll * 4);
  const int64_t tensors = 1 + kLayers * (7 + 3 + 2) + 1;
  EXPECT_EQ(memory.optimizer, kAll * 8 + tensors * 4);  // a value is its own master
  EXPECT_EQ(memory.checkpoint, kAll * 12);
}

TEST(ModelMemory, MastersOfBf16WeightsAreTheOptimizers) {
  const ModelMemory memory = MemoryOf(TinyQwen(), SpecOf(jobfile::MethodKind::kFull, jobfile::TrainingDtype::kBf16));
  EXPECT_EQ(memory.weights, kAll * 2);
  EXPECT_EQ(memory.gradients, kAll * 4);
  EXPECT_EQ(memory.optimizer, kAll * 12 + (2 + kLayers * 12) * 4);
  EXPECT_EQ(memory.checkpoint, kAll * 14);
}

TEST(ModelMemory, LoraAddsFactorsAndWhatIsMadeOfThem) {
  const ModelMemory memory = MemoryOf(TinyQwen(), SpecOf(jobfile::MethodKind::kLora, jobfile::TrainingDtype::kFp32));
  EXPECT_EQ(memory.weights, (kAll + kLora + kDerived) * 4);
  EXPECT_EQ(memory.trained_values, kLora);
  EXPECT_EQ(memory.gradients, kLora * 4);
  EXPECT_EQ(memory.collectives, kLora * 4);  // all in one bucket of 4 MiB
}

TEST(ModelMemory, LongLoraTrainsEmbeddingAndNormsToo) {
  const ModelMemory memory =
      MemoryOf(TinyQwen(), SpecOf(jobfile::MethodKind::kLongLora, jobfile::TrainingDtype::kBf16));
  EXPECT_EQ(memory.trained_values, kLora + kEmbedding + kLayers * kNorms + 64);
}

TEST(ModelMemory, LinearLayersOfQMethodsAreInFourBits) {
  const ModelMemory memory = MemoryOf(TinyQwen(), SpecOf(jobfile::MethodKind::kQlora, jobfile::TrainingDtype::kBf16));
  int64_t codes = 0;
  for (const int64_t values : {64 * 64, 32 * 64, 32 * 64, 64 * 64, 96 * 64, 96 * 64, 96 * 64}) {
    codes += values / 2 + values / 64 + 4;  // fewer than 256 blocks each
  }
  EXPECT_EQ(memory.weights, kLayers * codes + (kAll - kLayers * kLinears + kLora + kDerived) * 2);
}

TEST(ModelMemory, ALargeGradientIsReducedWhereItLies) {
  nlohmann::json config = TinyQwen();
  config["vocab_size"] = 100'000;  // 24 MiB of embedding
  const ModelMemory memory = MemoryOf(config, SpecOf(jobfile::MethodKind::kLongLora, jobfile::TrainingDtype::kFp32));
  EXPECT_EQ(memory.collectives, (kLora + kLayers * kNorms + 64) * 4);
}

TEST(ModelMemory, RanksMayDifferByModule) {
  jobfile::JobSpec spec = SpecOf(jobfile::MethodKind::kLora, jobfile::TrainingDtype::kFp32);
  spec.method.targets = {"down_proj"};
  spec.method.rank_pattern = {{"layers.1.mlp.down_proj", 16}};
  const ModelMemory memory = MemoryOf(TinyQwen(), spec);
  EXPECT_EQ(memory.trained_values, (8 + 16 + 8) * (96 + 64));
  // One part needs no stack, but the scaled B.
  EXPECT_EQ(memory.weights, (kAll + (8 + 16 + 8) * (96 + 64 + 64)) * 4);
}

TEST(ModelMemory, Llama2HasTheSizeItIsKnownFor) {
  const ModelMemory memory = MemoryOf(Llama2_7B(), SpecOf(jobfile::MethodKind::kLora, jobfile::TrainingDtype::kBf16));
  EXPECT_EQ(memory.trained_values, 32 * 4 * 8 * (4096 + 4096));
  EXPECT_EQ(memory.weights - memory.trained_values * 2 - 2 * 32 * (24 * 4096 + 3 * 4096 * 24 + 4096 * 8),
            int64_t{6738415616} * 2);
}

TEST(ModelMemory, RanksThatShareWeightsHoldAPartAndTwoLayers) {
  jobfile::JobSpec spec = SpecOf(jobfile::MethodKind::kLora, jobfile::TrainingDtype::kFp32);
  const ModelMemory whole = ModelMemoryOf(JobOf(TinyQwen(), spec));
  spec.resources.slots = 3;
  spec.resources.shard_weights = true;
  const PlannedJob job = JobOf(TinyQwen(), spec);
  const ModelMemory memory = ModelMemoryOf(job);
  constexpr int64_t kPart = (kLinears + 47) / 48 * 16;  // a third, in steps of 64 bytes
  EXPECT_EQ(memory.weights - whole.weights, (kLayers * kPart + 2 * 3 * kPart - kLayers * kLinears) * 4);
  EXPECT_EQ(memory.gradients, whole.gradients);
  // LoRA is folded into the gathered weights: no pass builds a second one.
  for (const Buffer& buffer : TrainingBuffers(job.Shape(), {})) {
    EXPECT_EQ(std::string(NameOf(buffer.slot)).find("scratch output"), std::string::npos);
  }
}

TEST(RankMemory, KeptValuesAndArenaAreTheEnginesOwn) {
  jobfile::JobSpec spec = SpecOf(jobfile::MethodKind::kLongLora, jobfile::TrainingDtype::kFp32);
  spec.training.micro_batch = 2;
  const PlannedJob job = JobOf(TinyQwen(), spec);
  for (const int64_t every : {1, 2, 3}) {
    for (const int64_t host : {0, 1}) {
      const MemoryPolicy policy{KeepPolicy::kResidual, every, host, 128, 64};
      const RankMemory memory = MemoryOfRank(job, policy);
      const KeptTotals totals = KeptValuesOf(PlanKeptValues(job.Shape(), policy));
      EXPECT_EQ(memory.activations(), totals.device_bytes);
      EXPECT_EQ(memory.host_activations(), totals.host_bytes);
      EXPECT_EQ(memory.host_traffic, totals.host_traffic_bytes);
      EXPECT_EQ(memory.workspace, LayOut(TrainingBuffers(job.Shape(), policy)).bytes);
      int64_t sum = 0;
      for (const auto& [kind, bytes] : DeviceKinds(memory)) sum += bytes;
      EXPECT_EQ(sum, memory.device_bytes());
    }
  }
}

TEST(RankMemory, ABatchHasIdsLabelsAndAngles) {
  jobfile::JobSpec spec = SpecOf(jobfile::MethodKind::kLongLora, jobfile::TrainingDtype::kFp32);
  spec.training.micro_batch = 2;
  spec.resources.slots = 2;
  const RankMemory memory = MemoryOfRank(JobOf(TinyQwen(), spec), {});
  EXPECT_EQ(memory.batch, 2 * 512 * 32 + 2 * 2048 * 8 * 4);  // tables have whole steps of 2,048 positions
  EXPECT_EQ(memory.tokens, 3 * 512 * 16);
  spec.data.packing = true;
  EXPECT_EQ(MemoryOfRank(JobOf(TinyQwen(), spec), {}).tokens, 3 * 512 * 24);
  EXPECT_EQ(MemoryOfRank(JobOf(TinyQwen(), spec), {}).batch - memory.batch, 2 * 512 * 16);
}

TEST(PlannedJob, CountsThePassesOfTheRankThatHasMost) {
  jobfile::JobSpec spec = SpecOf(jobfile::MethodKind::kLora, jobfile::TrainingDtype::kFp32);
  spec.training.global_batch = 7;
  spec.resources.slots = 2;
  spec.training.micro_batch = 3;
  PlannedJob job = JobOf(TinyQwen(), spec);
  EXPECT_EQ(job.sequences_of_rank(), 4);
  EXPECT_EQ(job.passes_of_rank(), 2);
  EXPECT_EQ(job.rows(), 3 * 512);
  spec.training.micro_batch = 100;  // more than the rank has
  job = JobOf(TinyQwen(), spec);
  EXPECT_EQ(job.rows(), 4 * 512);
  EXPECT_EQ(job.passes_of_rank(), 1);
}

TEST(PlannedJob, RanksThatShareSequencesHaveAPartOfEach) {
  jobfile::JobSpec spec = SpecOf(jobfile::MethodKind::kLora, jobfile::TrainingDtype::kFp32);
  spec.resources.slots = 4;
  spec.training.micro_batch = 2;
  const RankMemory whole = MemoryOfRank(JobOf(TinyQwen(), spec), {});
  spec.resources.sequence_parallel = 2;
  PlannedJob job = JobOf(TinyQwen(), spec);
  EXPECT_EQ(job.sequences_of_rank(), 3);  // 6 in two groups
  EXPECT_EQ(job.rows(), 2 * 256);
  EXPECT_EQ(job.Shape().halo_rows, 2 * 64);  // half a group of 128
  EXPECT_EQ(job.Shape().ring_rows, 0);
  EXPECT_EQ(job.Shape().moved_key_value_size(), 2 * 1 * 16);
  const RankMemory half = MemoryOfRank(job, {});
  EXPECT_EQ(2 * half.activations(), whole.activations());
  EXPECT_LT(half.workspace, whole.workspace);
  EXPECT_EQ(half.batch, 2 * 512 * 24 + 2 * 256 * 24 + 2 * 2048 * 8 * 4);
  spec.attention.kind = jobfile::AttentionKind::kFull;
  job = JobOf(TinyQwen(), spec);
  EXPECT_EQ(job.Shape().halo_rows, 0);
  EXPECT_EQ(job.Shape().ring_rows, 2 * 256);
}

TEST(PlannedJob, AConfigThatMakesNoSenseIsNotCounted) {
  for (const char* key : {"hidden_size", "intermediate_size"}) {
    nlohmann::json config = TinyQwen();
    config[key] = int64_t{1} << 40;
    config["head_dim"] = 16;
    EXPECT_FALSE(IsCountable(trainer::ParseModelConfig(config, "config.json"), 1 << 20)) << key;
  }
  const trainer::ModelConfig llama = trainer::ParseModelConfig(Llama2_7B(), "config.json");
  EXPECT_TRUE(IsCountable(llama, int64_t{1} << 24));
  EXPECT_FALSE(IsCountable(llama, int64_t{1} << 44));
}

}  // namespace
}  // namespace longspan::planner
