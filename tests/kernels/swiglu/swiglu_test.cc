// The reference against the formula in fp64, and its gradient against differences.
#include "kernels/swiglu/swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/common/bfloat16.h"

namespace longspan::kernels::swiglu {
namespace {

double Exact(double gate, double up) { return gate / (1 + std::exp(-gate)) * up; }

std::vector<float> Random(size_t count, float scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<float> values(count);
  for (float& value : values) value = uniform(generator);
  return values;
}

TEST(Swiglu, ForwardIsTheFormula) {
  constexpr int64_t kRows = 5, kSize = 7, kPadding = 3;
  const std::vector<float> gate_up = Random(kRows * (2 * kSize + kPadding), 20, 1);
  std::vector<float> out(kRows * (kSize + 1), -5);
  ForwardReference({ElementType::kFloat32, kRows, kSize, gate_up.data(), 2 * kSize + kPadding, out.data(), kSize + 1});
  for (int64_t row = 0; row < kRows; ++row) {
    const float* gates = gate_up.data() + row * (2 * kSize + kPadding);
    for (int64_t i = 0; i < kSize; ++i) {
      const double exact = Exact(gates[i], gates[kSize + i]);
      EXPECT_NEAR(out[row * (kSize + 1) + i], exact, 1e-6 * (1 + std::abs(exact)));
    }
    EXPECT_EQ(out[row * (kSize + 1) + kSize], -5) << "between rows nothing is written";
  }
}

TEST(Swiglu, BackwardIsTheDerivative) {
  constexpr int64_t kSize = 40;
  const std::vector<float> gate_up = Random(2 * kSize, 6, 2), out_gradient = Random(kSize, 1, 3);
  std::vector<float> gradient(2 * kSize);
  BackwardReference({ElementType::kFloat32, 1, kSize, gate_up.data(), 2 * kSize, out_gradient.data(), kSize,
                     gradient.data(), 2 * kSize});
  for (int64_t i = 0; i < kSize; ++i) {
    const double gate = gate_up[i], up = gate_up[kSize + i], step = 1e-5;
    const double of_gate = (Exact(gate + step, up) - Exact(gate - step, up)) / (2 * step);
    const double of_up = (Exact(gate, up + step) - Exact(gate, up - step)) / (2 * step);
    EXPECT_NEAR(gradient[i], of_gate * out_gradient[i], 1e-5);
    EXPECT_NEAR(gradient[kSize + i], of_up * out_gradient[i], 1e-5);
  }
}

TEST(Swiglu, Bfloat16IsRoundedOnce) {
  const std::vector<float> values = Random(64, 4, 4);
  std::vector<Bfloat16> gate_up;
  std::vector<float> same;
  for (const float value : values) same.push_back(static_cast<float>(gate_up.emplace_back(value)));
  std::vector<Bfloat16> out(32);
  std::vector<float> exact(32);
  ForwardReference({ElementType::kBfloat16, 1, 32, gate_up.data(), 64, out.data(), 32});
  ForwardReference({ElementType::kFloat32, 1, 32, same.data(), 64, exact.data(), 32});
  for (int i = 0; i < 32; ++i) EXPECT_EQ(out[i].bits, Bfloat16(exact[i]).bits);
}

TEST(Bfloat16, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(static_cast<float>(Bfloat16(1.00390625f)), 1.0f);       // halfway, to the even 1
  EXPECT_EQ(static_cast<float>(Bfloat16(1.01171875f)), 1.015625f);  // halfway, to the even above
  EXPECT_EQ(static_cast<float>(Bfloat16(-1.0040f)), -1.0078125f);
  EXPECT_TRUE(std::isnan(static_cast<float>(Bfloat16(std::nanf("")))));
  EXPECT_TRUE(std::isinf(static_cast<float>(Bfloat16(3.4e38f))));
}

}  // namespace
}  // namespace longspan::kernels::swiglu
