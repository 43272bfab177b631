#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "kernels/cross_entropy/cross_entropy_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels::cross_entropy {
namespace {

using namespace longspan::kernels::testing;

struct Tile {
  Tile(ElementType type, int64_t rows, int64_t vocabulary, int64_t padding, float scale)
      : logits(Twin::Random(type, rows * (vocabulary + padding), 1, scale)), targets(rows * 8), loss(rows * 8) {
    for (int64_t row = 0; row < rows; ++row) targets.Host<int64_t>()[row] = (row * 7919 + 3) % vocabulary;
    targets.Upload();
    arguments = {type, rows, vocabulary, nullptr, vocabulary + padding};
  }
  void Run() {
    LossReference(With([](Twin& twin) { return twin.host(); }));
    Check(Loss(With([](Twin& twin) { return twin.device(); }), nullptr));
  }
  template <class Of>
  Arguments With(Of of) {
    Arguments on = arguments;
    on.logits = of(logits);
    on.targets = static_cast<const int64_t*>(of(targets));
    on.loss = static_cast<double*>(of(loss));
    return on;
  }
  double WorstLoss() {
    const std::vector<char> bytes = loss.Download();
    double worst = 0;
    for (size_t row = 0; row < bytes.size() / 8; ++row) {
      double there;
      std::memcpy(&there, bytes.data() + 8 * row, 8);
      worst = std::max(worst, std::abs(there - loss.Host<double>()[row]));
    }
    return worst;
  }
  Twin logits, targets, loss;
  Arguments arguments;
};

TEST(CrossEntropyGpu, LossAndGradientAreTheReference) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, vocabulary, padding] : {std::array<int64_t, 3>{1, 1, 0},
                                                    {3, 61, 0},
                                                    {5, 8192, 0},
                                                    {4, 32000, 8},
                                                    {3, 32003, 1},
                                                    {2, 151936, 0},
                                                    {0, 8, 0}}) {
      for (const float scale : {1.0f, 30.0f}) {
        Tile tile(type, rows, vocabulary, padding, scale);
        tile.Run();
        EXPECT_LE(tile.WorstLoss(), 2e-5) << rows << " x " << vocabulary;
        EXPECT_LE(RelativeDifference(type, tile.logits), type == ElementType::kFloat32 ? 5e-6 : Tolerance(type))
            << rows << " x " << vocabulary;
      }
    }
  }
}

TEST(CrossEntropyGpu, WithoutAGradientTheLogitsStay) {
  Tile tile(ElementType::kFloat32, 3, 100, 0, 5);
  tile.arguments.wants_gradient = false;
  tile.Run();
  EXPECT_LE(tile.WorstLoss(), 2e-5);
  EXPECT_EQ(RelativeDifference(ElementType::kFloat32, tile.logits), 0);
}

TEST(CrossEntropyGpu, HugeLogitsDoNotOverflowAndNanStays) {
  Tile tile(ElementType::kFloat32, 3, 1000, 0, 1);
  auto* logits = tile.logits.Host<float>();
  logits[5] = 3e38f;
  logits[1005] = -3e38f;
  logits[2005] = NAN;
  tile.logits.Upload();
  tile.Run();
  const std::vector<char> bytes = tile.loss.Download();
  double loss[3];
  std::memcpy(loss, bytes.data(), sizeof(loss));
  EXPECT_TRUE(std::isfinite(loss[0]));
  EXPECT_NEAR(loss[1], tile.loss.Host<double>()[1], 1e-5);
  EXPECT_TRUE(std::isnan(loss[2]));
}

}  // namespace
}  // namespace longspan::kernels::cross_entropy
