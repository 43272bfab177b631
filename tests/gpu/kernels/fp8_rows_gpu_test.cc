#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/fp8_rows/fp8_rows_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels::fp8_rows {
namespace {

using namespace longspan::kernels::testing;

struct Pair {
  Twin x, codes, scales;
  ElementType type;
  int64_t rows, columns, x_stride, codes_stride;

  QuantizeArguments On(bool device) {
    const auto data = [device](Twin& twin) { return device ? twin.device() : twin.host(); };
    return {type,         rows,
            columns,      data(x),
            x_stride,     static_cast<uint8_t*>(data(codes)),
            codes_stride, static_cast<float*>(data(scales))};
  }
  void Run() {
    QuantizeReference(On(false));
    Check(Quantize(On(true), nullptr));
  }
};

Pair PairOf(ElementType type, int64_t rows, int64_t columns, int64_t padding, float size) {
  Pair pair{Twin::Random(type, rows * (columns + padding), 1, size),
            Twin(rows * (columns + padding)),
            Twin::Of(ElementType::kFloat32, rows),
            type,
            rows,
            columns,
            columns + padding,
            columns + padding};
  return pair;
}

std::vector<char> HostBytes(Twin& twin, int64_t bytes) { return {twin.Host<char>(), twin.Host<char>() + bytes}; }

// Rows with and without packs, padded, larger than a block and more than a grid starts with; values that are tiny and
// huge. Bit for bit, also between the rows, which nobody writes to.
TEST(Fp8RowsGpu, CodesAndScalesAreTheReferences) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, columns, padding] : {std::array<int64_t, 3>{1, 1, 0},
                                                 {3, 7, 1},
                                                 {5, 64, 16},
                                                 {4, 4096, 0},
                                                 {2, 22017, 3},
                                                 {9000, 16, 0},
                                                 {0, 8, 0}}) {
      for (const float size : {1.0f, 1e-33f, 1e30f}) {
        Pair pair = PairOf(type, rows, columns, padding, size);
        pair.Run();
        EXPECT_EQ(HostBytes(pair.codes, rows * pair.codes_stride), pair.codes.Download()) << rows << " x " << columns;
        EXPECT_EQ(HostBytes(pair.scales, rows * 4), pair.scales.Download()) << rows << " x " << columns;
      }
    }
  }
}

TEST(Fp8RowsGpu, EveryBfloat16ValueGetsTheReferencesCode) {
  // Rows of neighbours, so that every scale is met by small and by large values.
  constexpr int64_t kRows = 256, kColumns = 256;
  Pair pair = PairOf(ElementType::kBfloat16, kRows, kColumns, 0, 1);
  for (int64_t i = 0; i < kRows * kColumns; ++i) {
    const auto bits = static_cast<uint16_t>(i % kColumns * 256 + i / kColumns);
    const bool finite = (bits & 0x7f80) != 0x7f80;
    pair.x.Host<uint16_t>()[i] = finite ? bits : uint16_t{0};
  }
  pair.x.Upload();
  pair.Run();
  EXPECT_EQ(HostBytes(pair.codes, kRows * kColumns), pair.codes.Download());
}

TEST(Fp8RowsGpu, ARowThatIsNotFiniteHasTheScaleNan) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Pair pair = PairOf(ElementType::kFloat32, 3, 600, 0, 1);
    pair.x.Host<float>()[600 + 599] = bad;
    pair.x.Upload();
    pair.Run();
    float scales[3];
    std::memcpy(scales, pair.scales.Download().data(), sizeof(scales));
    EXPECT_FALSE(std::isnan(scales[0]));
    EXPECT_TRUE(std::isnan(scales[1]));
    EXPECT_FALSE(std::isnan(scales[2]));
  }
}

TEST(Fp8RowsGpu, RefusesRowsThatOverlap) {
  Pair pair = PairOf(ElementType::kFloat32, 3, 8, 0, 1);
  pair.x_stride = 7;
  EXPECT_EQ(Quantize(pair.On(true), nullptr), cudaErrorInvalidValue);
  pair.x_stride = 8;
  pair.codes_stride = 7;
  EXPECT_EQ(Quantize(pair.On(true), nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace longspan::kernels::fp8_rows
