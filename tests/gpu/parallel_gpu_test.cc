// NCCL as far as one GPU goes: it holds one rank of a group. Two ranks on one GPU meet through the host instead; what
// two do together over NCCL needs two.
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "tests/trainer/parallel/gang.h"
#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/model/causal_lm.h"
#include "worker/trainer/parallel/gpu_group.h"
#include "worker/trainer/parallel/gradient_reducer.h"
#include "worker/trainer/parallel/sequence_ranks.h"

namespace longspan::trainer {
namespace {

using std::chrono::milliseconds;

c10::intrusive_ptr<c10d::Store> Store(milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = 0;
  options.isServer = true;
  options.numWorkers = 1;
  options.waitWorkers = false;
  options.timeout = timeout;
  return c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
}

class ParallelGpuTest : public ::testing::Test {
 protected:
  ParallelGpuTest() {
    if (gpu::Count() == 0) throw std::runtime_error("no GPU");
  }
};

TEST_F(ParallelGpuTest, OneRanksSumIsItsOwn) {
  const std::unique_ptr<GpuGroup> group = GpuGroup::Open(Store(milliseconds(20000)), {0, 1, milliseconds(20000)});
  const at::Tensor values = at::arange(1000, at::TensorOptions(at::kCUDA).dtype(at::kFloat));
  const at::Tensor sum = values.clone();
  for (int i = 0; i < 3; ++i) group->StartAllReduce(sum)->Wait();
  EXPECT_TRUE(at::equal(sum, values));
}

TEST_F(ParallelGpuTest, OneRankGathersItsOwnPartAndTimesAreThereWhenTheGpuIsDone) {
  const std::unique_ptr<GpuGroup> group = GpuGroup::Open(Store(milliseconds(20000)), {0, 1, milliseconds(20000)});
  const at::Tensor part = at::arange(1 << 20, at::TensorOptions(at::kCUDA).dtype(at::kBFloat16));
  const at::Tensor whole = at::zeros_like(part);
  group->StartAllGather(part, whole)->Wait();
  EXPECT_TRUE(at::equal(whole, part));
  gpu::Synchronize();
  EXPECT_GT(group->times(Collective::kAllGather).busy.count(), 0);
  EXPECT_GE(group->times(Collective::kAllGather).waited.count(), 0);
  EXPECT_EQ(group->times(Collective::kExchange).busy.count(), 0);
}

using Gradients = std::map<std::string, at::Tensor>;

// Of one step on 2 sequences of 128 tokens, on a GPU in fp32; the loss comes as a gradient of that name.
Gradients StepOf(ModelOptions options, Communicator& ranks, SequenceRanks* sequence) {
  options.sequence = sequence;
  options.ranks = &ranks;
  const std::unique_ptr<CausalLm> model = CausalLm::Load(options);
  testing::DrawLora(model.get());
  std::vector<at::Tensor> tensors;
  for (const Trainable& trainable : model->trainables()) tensors.push_back(trainable.gradient);
  GradientReducer reducer(ranks, tensors);
  model->ZeroGradients();
  Batch batch;
  batch.input_ids = batch.labels = testing::RandomIds(2, 128, 200);
  ControlWord word;
  const LossSum sum = model->ForwardBackward(batch, {});
  word.loss_sum = sum.loss;
  word.scored_tokens = sum.tokens;
  word = reducer.Finish(word);
  Gradients gradients;
  gradients["loss"] = at::full({1}, word.loss_sum / static_cast<double>(word.scored_tokens));
  for (const Trainable& trainable : model->trainables()) {
    gradients[trainable.name] = trainable.gradient.to(at::kCPU) / static_cast<double>(word.scored_tokens);
  }
  return gradients;
}

class TwoRanksOnOneGpuTest : public ParallelGpuTest {
 protected:
  TwoRanksOnOneGpuTest() {
    testing::TinyShape shape;
    shape.hidden = 64;
    shape.heads = 4;
    shape.key_value_heads = 2;
    shape.layers = 3;
    shape.vocab = 200;
    shape.changes = {{"head_dim", 16}};
    testing::WriteTinyModel(folder_.path(), shape);
    options_.device = at::kCUDA;
    options_.spec = testing::TinySpec(folder_.path(), 128);
    options_.spec.method.kind = jobfile::MethodKind::kLongLora;
    options_.spec.attention.group_size = 32;
    options_.spec.training.dtype = jobfile::TrainingDtype::kFp32;
    options_.memory.tile_tokens = 48;
    options_.memory.loss_tile_tokens = 40;
  }
  Gradients OfOneRank() const {
    const std::unique_ptr<Communicator> alone = Communicator::OpenStore({});
    return StepOf(options_, *alone, nullptr);
  }
  testing::TemporaryFolder folder_;
  ModelOptions options_;
};

TEST_F(TwoRanksOnOneGpuTest, SharedSequencesGiveTheGradientsOfOneRank) {
  for (const auto kind : {jobfile::AttentionKind::kS2, jobfile::AttentionKind::kFull, jobfile::AttentionKind::kShort}) {
    options_.spec.attention.kind = kind;
    const Gradients expected = OfOneRank();
    testing::AsGang(
        2,
        [&](Communicator& ranks) {
          SequenceRanks sequence(ranks, 2);
          for (const auto& [name, gradient] : StepOf(options_, ranks, &sequence)) {
            EXPECT_LT(testing::RelativeError(gradient, expected.at(name)), 1e-4)
                << name << ", attention " << static_cast<int>(kind);
          }
        },
        testing::Through::kHostStaging);
  }
}

// The ranks compute the same batch, so their mean is one rank's.
TEST_F(TwoRanksOnOneGpuTest, SharedWeightsGiveTheGradientsOfWholeOnes) {
  const Gradients expected = OfOneRank();
  options_.spec.resources.slots = 2;
  options_.spec.resources.shard_weights = true;
  testing::AsGang(
      2,
      [&](Communicator& ranks) {
        for (const auto& [name, gradient] : StepOf(options_, ranks, nullptr)) {
          EXPECT_LT(testing::RelativeError(gradient, expected.at(name)), 1e-5) << name;
        }
        EXPECT_GT(ranks.allgather_bytes(), 0);
      },
      testing::Through::kHostStaging);
}

TEST_F(ParallelGpuTest, TheReducerTakesGradientsOnAGpu) {
  const std::unique_ptr<Communicator> ranks = Communicator::OpenStore({});
  std::vector<at::Tensor> gradients;
  for (int i = 0; i < 5; ++i)
    gradients.push_back(at::full({100, 7}, i, at::TensorOptions(at::kCUDA).dtype(at::kFloat)));
  GradientReducer reducer(*ranks, gradients);
  for (size_t index = gradients.size(); index-- > 0;) reducer.Ready(index);
  ControlWord word;
  word.loss_sum = 2.5;
  EXPECT_EQ(reducer.Finish(word).loss_sum, 2.5);
  EXPECT_EQ(gradients[3].sum().item<float>(), 2100.0F);
}

TEST_F(ParallelGpuTest, ARankThatNeverComesIsAnInfrastructureError) {
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(GpuGroup::Open(Store(milliseconds(2000)), {1, 2, milliseconds(2000)}), InfrastructureError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
}

}  // namespace
}  // namespace longspan::trainer
