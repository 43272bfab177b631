// The reference by its own identities; bitsandbytes judges it in tests/parity/test_nf4.py.
#include "kernels/nf4/nf4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace longspan::kernels::nf4 {
namespace {

struct Quantized {
  std::vector<uint8_t> codes, scale_codes;
  std::vector<float> scales, scale_maxima;
  float mean = 0;
};

float MeanOf(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += value;
  return values.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(values.size()));
}

Quantized QuantizeAll(const std::vector<float>& x) {
  const auto n = static_cast<int64_t>(x.size());
  Quantized q;
  q.codes.resize(static_cast<size_t>(CodeBytes(n)));
  q.scales.resize(static_cast<size_t>(Blocks(n)));
  EXPECT_TRUE(Quantize(x.data(), n, q.codes.data(), q.scales.data()));
  q.mean = MeanOf(q.scales);
  q.scale_codes.resize(q.scales.size());
  q.scale_maxima.resize(static_cast<size_t>(ScaleBlocks(Blocks(n))));
  QuantizeScales(q.scales.data(), Blocks(n), q.mean, q.scale_codes.data(), q.scale_maxima.data());
  return q;
}

std::vector<float> DequantizeAll(const Quantized& q, size_t n) {
  std::vector<float> out(n);
  Dequantize(q.codes.data(), q.scale_codes.data(), q.scale_maxima.data(), q.mean, 0, static_cast<int64_t>(n),
             out.data());
  return out;
}

std::vector<float> Draw(size_t n, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

TEST(Nf4, LevelsRiseAndHoldZero) {
  for (int i = 0; i < 15; ++i) EXPECT_LT(Levels()[i], Levels()[i + 1]);
  for (int i = 0; i < 255; ++i) EXPECT_LT(ScaleLevels()[i], ScaleLevels()[i + 1]);
  EXPECT_EQ(Levels()[7], 0.0f);
  EXPECT_EQ(ScaleLevels()[127], 0.0f);
  EXPECT_EQ(ScaleLevels()[255], 1.0f);
}

TEST(Nf4, EveryLevelOfABlockComesBack) {
  std::vector<float> x(64);
  for (size_t i = 0; i < 64; ++i) x[i] = 0.75f * Levels()[i % 16];
  const std::vector<float> back = DequantizeAll(QuantizeAll(x), 64);  // one block: its scale is the mean
  for (size_t i = 0; i < 64; ++i) EXPECT_FLOAT_EQ(back[i], x[i]);
}

TEST(Nf4, ErrorsStayWithinHalfTheWidestGap) {
  for (const size_t n : {1, 2, 63, 64, 65, 127, 1000, 64 * 256, 64 * 256 + 1, 40000}) {
    const std::vector<float> x = Draw(n, 5);
    const Quantized q = QuantizeAll(x);
    const std::vector<float> back = DequantizeAll(q, n);
    for (size_t i = 0; i < n; ++i) {
      const float scale = q.scales[i / 64];
      // Half the widest gap between levels, and what the scale lost in 8 bits.
      EXPECT_NEAR(back[i], x[i], scale * 0.16f + q.scale_maxima[i / (64 * 256)] * 0.01f) << n << " values, at " << i;
    }
  }
}

TEST(Nf4, AnyRunOfWholeBlocksGivesTheSame) {
  const size_t n = 64 * 300 + 7;
  const std::vector<float> x = Draw(n, 6);
  const Quantized whole = QuantizeAll(x);
  Quantized pieces = whole;
  for (int64_t begin = 0; begin < static_cast<int64_t>(n); begin += 64 * 7) {
    const int64_t count = std::min<int64_t>(64 * 7, static_cast<int64_t>(n) - begin);
    ASSERT_TRUE(Quantize(x.data() + begin, count, pieces.codes.data() + begin / 2, pieces.scales.data() + begin / 64));
  }
  EXPECT_EQ(pieces.codes, whole.codes);
  EXPECT_EQ(pieces.scales, whole.scales);
  const std::vector<float> all = DequantizeAll(whole, n);
  std::vector<float> part(100);
  Dequantize(whole.codes.data(), whole.scale_codes.data(), whole.scale_maxima.data(), whole.mean, 64 * 260, 100,
             part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 64 * 260));
}

TEST(Nf4, ZerosStayZero) {
  for (const size_t n : {1, 64, 65, 64 * 256}) {
    for (const float value : DequantizeAll(QuantizeAll(std::vector<float>(n)), n)) EXPECT_NEAR(value, 0.0f, 1e-37f);
  }
}

TEST(Nf4, AnOddLastHalfByteIsZero) {
  const Quantized q = QuantizeAll({1.0f, -1.0f, 1.0f});
  EXPECT_EQ(q.codes, (std::vector<uint8_t>{0xf0, 0xf7}));
}

TEST(Nf4, ValuesThatAreNotFiniteAreRefused) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t place : {0, 1, 63, 64, 69}) {
      std::vector<float> x = Draw(70, 7);
      x[place] = bad;
      std::vector<uint8_t> codes(35);
      std::vector<float> scales(2);
      EXPECT_FALSE(Quantize(x.data(), 70, codes.data(), scales.data())) << bad << " at " << place;
    }
  }
}

}  // namespace
}  // namespace longspan::kernels::nf4
