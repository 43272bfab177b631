// The distribution that the counter gives, and what every machine must agree on.
#include "kernels/normal/normal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "kernels/common/bfloat16.h"

namespace longspan::kernels::normal {
namespace {

std::vector<float> Draw(uint64_t key, int64_t first, int64_t elements, double deviation = 1) {
  std::vector<float> values(static_cast<size_t>(elements));
  DrawReference({ElementType::kFloat32, key, first, elements, deviation, values.data()});
  return values;
}

double Distribution(double z) { return std::erfc(-z / std::sqrt(2.0)) / 2; }

TEST(Normal, FollowsItsDistributionToTheTails) {
  constexpr int64_t kCount = 1 << 20;
  std::vector<float> values = Draw(7, 0, kCount);
  double sum = 0, squares = 0, cubes = 0, fourths = 0;
  for (const float value : values) {
    const double z = value;
    sum += z;
    squares += z * z;
    cubes += z * z * z;
    fourths += z * z * z * z;
  }
  // Five standard errors of each.
  const double n = kCount, error = 5 / std::sqrt(n);
  EXPECT_LT(std::abs(sum / n), error);
  EXPECT_LT(std::abs(squares / n - 1), error * std::sqrt(2.0));
  EXPECT_LT(std::abs(cubes / n), error * std::sqrt(15.0));
  EXPECT_LT(std::abs(fourths / n - 3), error * std::sqrt(96.0));
  // Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed once in a thousand.
  std::sort(values.begin(), values.end());
  double largest = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    largest = std::max(largest, std::abs(Distribution(values[i]) - (static_cast<double>(i) + 0.5) / n));
  }
  EXPECT_LT(largest, 1.95 / std::sqrt(n));
  EXPECT_LT(values.front(), -4.4);
  EXPECT_GT(values.back(), 4.4);
}

// Neighbours, and the same element of neighbouring keys.
TEST(Normal, DrawsDoNotFollowEachOther) {
  constexpr int64_t kCount = 1 << 18;
  const std::vector<float> values = Draw(7, 0, kCount), other = Draw(8, 0, kCount);
  double beside = 0, across = 0;
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    beside += double{values[i]} * values[i + 1];
    across += double{values[i]} * other[i];
  }
  EXPECT_LT(std::abs(beside / kCount), 5 / std::sqrt(double{kCount}));
  EXPECT_LT(std::abs(across / kCount), 5 / std::sqrt(double{kCount}));
}

TEST(Normal, AnElementDependsOnItsKeyAndPlaceAlone) {
  const std::vector<float> all = Draw(3, 0, 1000);
  for (const int64_t first : {0, 1, 500, 999}) {
    const std::vector<float> part = Draw(3, first, 1000 - first);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first));
  }
  EXPECT_NE(Draw(4, 0, 1000), all);
  const std::vector<float> wide = Draw(3, 0, 1000, 0.02);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_FLOAT_EQ(wide[i], static_cast<float>(0.02 * all[i]));
}

// Bits that a GPU, and any other compiler, must give too: from Python's statistics.NormalDist().inv_cdf.
TEST(Normal, BitsAreFixed) {
  const std::vector<float> values = Draw(42, int64_t{1} << 33, 4, 0.02);
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  for (const int64_t element : {599153, 1009361})
    bits.push_back(std::bit_cast<uint32_t>(Draw(7, element, 1)[0]));  // the tails
  EXPECT_EQ(bits,
            (std::vector<uint32_t>{0xbcb1f7f7u, 0x3b01fd53u, 0xbc191539u, 0xbce1fb99u, 0xc0971912u, 0x409a4abcu}));
}

TEST(Normal, Bfloat16IsTheFloatRounded) {
  std::vector<Bfloat16> rounded(1000);
  DrawReference({ElementType::kBfloat16, 3, 0, 1000, 1, rounded.data()});
  const std::vector<float> values = Draw(3, 0, 1000);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(static_cast<float>(rounded[i]), static_cast<float>(Bfloat16(values[i])));
  }
}

}  // namespace
}  // namespace longspan::kernels::normal
