// Where shared weights lie, and in which order passes want them.
#include "worker/planner/weight_shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/planner/model_configs.h"

namespace longspan::planner {
namespace {

using ::testing::ElementsAre;

StepShape Shape(int64_t ranks, int64_t element_bytes = 4) {
  StepShape shape;
  shape.num_hidden_layers = 5;
  shape.element_bytes = element_bytes;
  shape.weight_ranks = ranks;
  shape.query_key_value = {3, 7};
  shape.output = {5, 3};
  shape.mlp_in = {3, 16};
  shape.mlp_out = {8, 3};
  return shape;
}

TEST(WeightShards, WeightsBeginAlignedAndRanksHoldEqualAlignedSlices) {
  const WeightShards whole = ShardWeights(Shape(1));
  EXPECT_THAT(whole.first, ElementsAre(0, 32, 48, 96));  // 64 bytes are 16 elements
  EXPECT_EQ(whole.rank_elements, 128);                   // 96 + 24
  EXPECT_EQ(whole.whole_bytes(), 5 * (21 + 15 + 48 + 24) * 4);
  EXPECT_EQ(ShardWeights(Shape(2)).rank_elements, 64);
  EXPECT_EQ(ShardWeights(Shape(3)).rank_elements, 48);  // a third of 120, rounded up
  EXPECT_EQ(ShardWeights(Shape(3)).held_bytes(), 5 * 48 * 4);
  EXPECT_EQ(ShardWeights(Shape(3)).gathered_bytes(), 2 * 144 * 4);
  EXPECT_EQ(ShardWeights(Shape(3, 2)).rank_elements, 64);  // 32 elements are 64 bytes
  EXPECT_EQ(ShardWeights(Shape(1000)).rank_elements, 16);  // most of them hold nothing
}

TEST(WeightShards, PassesWantLayersInTheOrderOfTheEngine) {
  const StepShape shape = Shape(2);
  const auto order = [&](KeepPolicy keep, int64_t every) {
    MemoryPolicy policy;
    policy.keep = keep;
    policy.checkpoint_every = every;
    return TrainingOrder(shape, policy);
  };
  EXPECT_THAT(ForwardOrder(shape), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(order(KeepPolicy::kGateUp, 1), ElementsAre(0, 1, 2, 3, 4, 4, 3, 2, 1, 0));
  EXPECT_THAT(order(KeepPolicy::kInput, 2), ElementsAre(0, 1, 2, 3, 4, 4, 2, 3, 2, 0, 1, 0));
  EXPECT_THAT(order(KeepPolicy::kGateUp, 2), ElementsAre(0, 1, 2, 3, 4, 4, 2, 3, 3, 2, 0, 1, 1, 0));
  EXPECT_THAT(order(KeepPolicy::kInput, 9), ElementsAre(0, 1, 2, 3, 4, 4, 3, 2, 1, 0));
}

TEST(WeightShards, ALayerAmongTheLastTwoIsNotGatheredAgain) {
  EXPECT_EQ(GathersOf({0, 1, 2, 3, 4}), 5);
  EXPECT_EQ(GathersOf({0, 1, 2, 3, 4, 4, 3, 2, 1, 0}), 8);
  EXPECT_EQ(GathersOf({0, 1, 2, 3, 4, 4, 2, 3, 3, 2, 0, 1, 1, 0}), 9);
  EXPECT_EQ(GathersOf({0, 0}), 1);
  EXPECT_EQ(GathersOf({}), 0);
}

}  // namespace
}  // namespace longspan::planner
