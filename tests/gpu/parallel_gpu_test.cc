// NCCL as far as one GPU goes: it holds one rank of a group. What two ranks do together needs two.
#include <gtest/gtest.h>

#include <chrono>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_device.h"
#include "worker/trainer/parallel/gpu_group.h"
#include "worker/trainer/parallel/gradient_reducer.h"

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
