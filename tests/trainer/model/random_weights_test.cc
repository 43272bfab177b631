// Random weights: what they depend on, and that it is nothing else.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "tests/trainer/tiny_llama.h"
#include "worker/trainer/model/base_tensors.h"

namespace longspan::trainer {
namespace {

using namespace longspan::trainer::testing;

class RandomWeights : public ::testing::Test {
 protected:
  RandomWeights() {
    TinyShape shape;
    shape.hidden = 96;
    shape.vocab = 300;
    shape.changes = {{"initializer_range", 0.05}};
    config_ = ParseModelConfig(TinyConfig(shape), "config.json");
  }
  ModelConfig config_;
};

TEST_F(RandomWeights, AreNormalOfTheConfigsRangeWithNormsOfOne) {
  const std::unique_ptr<BaseTensors> base = RandomBaseTensors(config_, 5);
  const at::Tensor embedding = base->Read(EmbeddingName(config_));
  EXPECT_NEAR(embedding.std().item<double>(), 0.05, 0.05 * 0.02);
  EXPECT_NEAR(embedding.mean().item<double>(), 0, 0.001);
  EXPECT_TRUE(base->Read(config_.family->final_norm + ".weight").eq(1).all().item<bool>());
}

TEST_F(RandomWeights, DependOnSeedAndNameAlone) {
  const std::unique_ptr<BaseTensors> base = RandomBaseTensors(config_, 5), other = RandomBaseTensors(config_, 6);
  const int threads = at::get_num_threads();
  for (const TensorShape& tensor : BaseTensorShapes(config_)) {
    EXPECT_EQ(base->ShapeOf(tensor.name), tensor.shape);
    at::set_num_threads(1);
    const at::Tensor expected = base->Read(tensor.name);
    at::set_num_threads(2);
    EXPECT_TRUE(base->Read(tensor.name).equal(expected)) << tensor.name;
    // In the compute dtype as if rounded from fp32, also into rows of a larger tensor.
    const at::Tensor all =
        at::full({2 * tensor.shape[0] + 1, expected.numel() / tensor.shape[0]}, 7.0f).to(at::kBFloat16);
    const at::Tensor rows = all.narrow(0, tensor.shape[0], tensor.shape[0]).view(tensor.shape);
    base->ReadInto(tensor.name, rows);
    EXPECT_TRUE(rows.equal(expected.to(at::kBFloat16))) << tensor.name;
    EXPECT_TRUE(all.narrow(0, 0, tensor.shape[0]).eq(7).all().item<bool>());
    EXPECT_TRUE(all[2 * tensor.shape[0]].eq(7).all().item<bool>());
    if (tensor.shape.size() == 2) {
      EXPECT_FALSE(other->Read(tensor.name).equal(expected)) << tensor.name;
    }
  }
  at::set_num_threads(threads);
  const std::string layer = "model.layers.0.self_attn.";
  EXPECT_FALSE(base->Read(layer + "q_proj.weight").equal(base->Read(layer + "o_proj.weight")));
}

TEST_F(RandomWeights, GoIntoTheirShapeAlone) {
  const std::unique_ptr<BaseTensors> base = RandomBaseTensors(config_, 5);
  EXPECT_THROW(base->ReadInto(EmbeddingName(config_), at::empty({3, 96})), c10::Error);
  EXPECT_THROW(base->ReadInto(EmbeddingName(config_), at::empty({96, 300}).t()), c10::Error);
}

}  // namespace
}  // namespace longspan::trainer
