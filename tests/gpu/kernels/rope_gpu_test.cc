#include <gtest/gtest.h>

#include "kernels/rope/rope_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels::rope {
namespace {

using namespace longspan::kernels::testing;

TEST(RopeGpu, TurnsAsTheReferenceDoesInBothDirectionsAndByPositions) {
  struct Size {
    int64_t rows, heads, half, rest, padding;
  };
  for (const ElementType type : kTypes) {
    for (const auto& [rows, heads, half, rest, padding] : {Size{5, 3, 1, 0, 0},
                                                           {4, 2, 5, 3, 1},
                                                           {3, 4, 32, 0, 64},
                                                           {2, 40, 64, 0, 0},
                                                           {70001, 1, 8, 0, 0},
                                                           {0, 1, 8, 0, 0}}) {
      const int64_t size = 2 * half + rest, row_stride = heads * size + padding, tokens = 7;
      for (const bool inverse : {false, true}) {
        for (const bool positions : {false, true}) {
          Twin data = Twin::Random(type, rows * row_stride, 1, 4);
          Twin cosine = Twin::Random(ElementType::kFloat32, tokens * half, 2);
          Twin sine = Twin::Random(ElementType::kFloat32, tokens * half, 3);
          Twin places(rows * 8);
          for (int64_t row = 0; row < rows; ++row) places.Host<int64_t>()[row] = row * 3 % tokens;
          places.Upload();
          Arguments arguments{type, rows, heads, half, data.host(), row_stride, size};
          arguments.table_stride = half;
          arguments.tokens = tokens;
          arguments.inverse = inverse;
          const auto with = [&](auto of) {
            Arguments on = arguments;
            on.data = of(data);
            on.cosine = static_cast<const float*>(of(cosine));
            on.sine = static_cast<const float*>(of(sine));
            if (positions) on.positions = static_cast<const int64_t*>(of(places));
            return on;
          };
          RotateReference(with([](Twin& twin) { return twin.host(); }));
          Check(Rotate(with([](Twin& twin) { return twin.device(); }), nullptr));
          EXPECT_LE(RelativeDifference(type, data), Tolerance(type)) << rows << " x " << heads << " x " << size;
        }
      }
    }
  }
}

TEST(RopeGpu, RefusesShapesThatDoNotFit) {
  EXPECT_EQ(Rotate({ElementType::kFloat32, 1, 1, 0}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(Rotate({ElementType::kFloat32, 1, 1, 8}, nullptr), cudaErrorInvalidValue);  // a table without columns
}

}  // namespace
}  // namespace longspan::kernels::rope
