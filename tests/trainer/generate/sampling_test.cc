#include "worker/trainer/generate/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <vector>

namespace longspan::trainer {
namespace {

using ::testing::Each;
using ::testing::Ge;
using ::testing::Lt;

constexpr float kNever = -std::numeric_limits<float>::infinity();

std::map<int64_t, int> Histogram(const std::vector<float>& logits, const Sampling& sampling, int draws) {
  std::map<int64_t, int> counts;
  for (int i = 0; i < draws; ++i) ++counts[ChooseToken(logits, sampling, {7, static_cast<uint64_t>(i)})];
  return counts;
}

TEST(SamplingTest, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(ChooseToken(std::vector<float>{1, 3, 2, 3}, {}, {}), 1);
  EXPECT_EQ(ChooseToken(std::vector<float>{5}, {}, {}), 0);
  EXPECT_EQ(ChooseToken(std::vector<float>{kNever, NAN, -4}, {}, {}), 2);
}

TEST(SamplingTest, FrequenciesAreTheSoftmaxAtTheTemperature) {
  const std::vector<float> logits = {std::log(1.0F), std::log(4.0F), std::log(9.0F), kNever};
  constexpr int kDraws = 40000;
  const auto plain = Histogram(logits, {1.0, 1.0, 5}, kDraws);
  EXPECT_NEAR(plain.at(0), kDraws / 14.0, 200);
  EXPECT_NEAR(plain.at(1), kDraws * 4 / 14.0, 300);
  EXPECT_NEAR(plain.at(2), kDraws * 9 / 14.0, 300);
  EXPECT_FALSE(plain.contains(3));
  const auto warm = Histogram(logits, {2.0, 1.0, 5}, kDraws);  // square roots: 1, 2, 3
  EXPECT_NEAR(warm.at(0), kDraws / 6.0, 300);
  EXPECT_NEAR(warm.at(2), kDraws / 2.0, 300);
}

TEST(SamplingTest, TopPKeepsTheFewestThatReachIt) {
  const std::vector<float> logits = {std::log(0.1F), std::log(0.5F), std::log(0.4F)};
  EXPECT_EQ(Histogram(logits, {1.0, 0.3, 1}, 500).size(), 1u);
  EXPECT_EQ(Histogram(logits, {1.0, 0.6, 1}, 500).size(), 2u);
  EXPECT_FALSE(Histogram(logits, {1.0, 0.6, 1}, 500).contains(0));
  EXPECT_EQ(Histogram(logits, {1.0, 0.95, 1}, 500).size(), 3u);
}

TEST(SamplingTest, TheSamePlaceDrawsTheSameAndOthersDoNot) {
  std::vector<double> numbers;
  for (uint64_t text = 0; text < 20; ++text) {
    for (uint64_t position = 0; position < 20; ++position) numbers.push_back(UniformAt(3, {text, position}));
  }
  EXPECT_THAT(numbers, Each(Ge(0.0)));
  EXPECT_THAT(numbers, Each(Lt(1.0)));
  EXPECT_EQ(UniformAt(3, {4, 5}), UniformAt(3, {4, 5}));
  EXPECT_NE(UniformAt(3, {4, 5}), UniformAt(3, {5, 4}));
  EXPECT_NE(UniformAt(3, {4, 5}), UniformAt(4, {4, 5}));
  double mean = 0;
  for (const double number : numbers) mean += number / static_cast<double>(numbers.size());
  EXPECT_NEAR(mean, 0.5, 0.05);
}

}  // namespace
}  // namespace longspan::trainer
