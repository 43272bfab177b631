#include <gtest/gtest.h>

#include <array>

#include "kernels/lora_products/lora_products_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels::lora_products {
namespace {

using namespace longspan::kernels::testing;
constexpr ElementType kBf16 = ElementType::kBfloat16, kFp32 = ElementType::kFloat32;

// Rows or columns, summed, ranks, padding behind rows: tiles and their rests, packs and not, every number of rank
// tiles.
constexpr std::array<int64_t, 4> kSizes[] = {
    {1, 1, 1, 0},      {64, 64, 8, 0},    {65, 72, 8, 8},      {7, 129, 3, 1},  {200, 1000, 16, 0},
    {300, 257, 24, 3}, {130, 520, 24, 8}, {1024, 4096, 24, 0}, {33, 64, 33, 0}, {128, 640, 48, 16},
    {96, 2048, 64, 0}, {5, 70000, 12, 0}, {0, 64, 8, 0},       {64, 0, 8, 0}};

std::string TextOf(const std::array<int64_t, 4>& size, int64_t parts) {
  return std::to_string(size[0]) + ", summed " + std::to_string(size[1]) + ", ranks " + std::to_string(size[2]) +
         ", parts " + std::to_string(parts);
}

TEST(LoraProductsGpu, ProjectionsAreTheReferenceAndHaveTheSameBitsTwice) {
  for (const auto& size : kSizes) {
    const auto [rows, features, ranks, padding] = size;
    for (const int64_t parts : {1, 3, 16}) {
      for (const bool by_ranks : {true, false}) {
        const int64_t x_stride = features + padding, factor_stride = (by_ranks ? features : ranks) + padding;
        Twin x = Twin::Random(kBf16, rows * x_stride, 1);
        Twin factor = Twin::Random(kBf16, (by_ranks ? ranks : features) * factor_stride, 2);
        Twin out = Twin::Of(kBf16, rows * (ranks + padding)), sums = Twin::Of(kFp32, parts * rows * ranks);
        const auto with = [&](auto data) {
          ProjectArguments on{rows, features, ranks, data(x), x_stride, data(factor)};
          on.factor_rank_stride = by_ranks ? factor_stride : 1;
          on.factor_feature_stride = by_ranks ? 1 : factor_stride;
          on.out = data(out);
          on.out_stride = ranks + padding;
          on.parts = parts;
          on.sums = static_cast<float*>(data(sums));
          return on;
        };
        ProjectReference(with([](Twin& twin) { return twin.host(); }));
        const auto on_device = with([](Twin& twin) { return twin.device(); });
        Check(Project(on_device, nullptr));
        EXPECT_LE(RelativeDifference(kBf16, out), Tolerance(kBf16)) << TextOf(size, parts);
        const std::vector<char> bits = out.Download();
        Check(Project(on_device, nullptr));
        EXPECT_EQ(bits, out.Download()) << TextOf(size, parts);
        sums.Download();  // nothing behind its end
      }
    }
  }
}

TEST(LoraProductsGpu, GradientsAreTheReferenceAndHaveTheSameBitsTwice) {
  for (const auto& size : kSizes) {
    const auto [columns, rows, ranks, padding] = size;
    for (const int64_t parts : {1, 3, 16}) {
      const int64_t left_stride = ranks + padding, right_stride = columns + padding;
      const int64_t first = ranks / 3, some = ranks - first;
      Twin left = Twin::Random(kBf16, rows * left_stride, 1), right = Twin::Random(kBf16, rows * right_stride, 2);
      Twin sums = Twin::Of(kFp32, parts * ranks * columns);
      for (const bool turned : {false, true}) {
        std::vector<char> bits;
        for (int run = 0; run < 2; ++run) {
          Twin gradient = Twin::Random(kFp32, some * columns, 3);
          const auto outer = [&](auto data) {
            return OuterArguments{rows,         ranks,       columns,
                                  data(left),   left_stride, data(right),
                                  right_stride, parts,       static_cast<float*>(data(sums))};
          };
          const auto add = [&](auto data) {
            return AddOuterArguments{ranks,
                                     columns,
                                     parts,
                                     static_cast<float*>(data(sums)),
                                     first,
                                     some,
                                     0.75f,
                                     static_cast<float*>(data(gradient)),
                                     turned ? 1 : columns,
                                     turned ? some : 1};
          };
          const auto host = [](Twin& twin) { return twin.host(); };
          const auto device = [](Twin& twin) { return twin.device(); };
          OuterReference(outer(host));
          AddOuterReference(add(host));
          Check(Outer(outer(device), nullptr));
          Check(AddOuter(add(device), nullptr));
          EXPECT_LE(RelativeDifference(kFp32, gradient), 1e-4) << TextOf(size, parts);
          if (run == 0) bits = gradient.Download();
          EXPECT_EQ(bits, gradient.Download()) << TextOf(size, parts);
        }
      }
      sums.Download();  // nothing behind its end
    }
  }
}

TEST(LoraProductsGpu, RefusesWhatItDoesNotKnow) {
  Twin memory(65536);
  auto* floats = static_cast<float*>(memory.device());
  ProjectArguments project{8, 8, 8, floats, 8, floats, 8, 1, floats, 8, 1, floats};
  ASSERT_EQ(Project(project, nullptr), cudaSuccess);
  const auto refuses = [&](auto change) {
    ProjectArguments changed = project;
    change(changed);
    EXPECT_EQ(Project(changed, nullptr), cudaErrorInvalidValue);
  };
  refuses([](auto& on) { on.ranks = kRanksMax + 1; });
  refuses([](auto& on) { on.ranks = 0; });
  refuses([](auto& on) { on.x_stride = 7; });
  refuses([](auto& on) { on.factor_feature_stride = on.factor_rank_stride = 2; });
  refuses([](auto& on) { on.parts = 0; });
  refuses([](auto& on) { on.parts = 2, on.sums = nullptr; });
  EXPECT_EQ(Outer({8, kRanksMax + 1, 8, floats, 80, floats, 8, 1, floats}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(Outer({8, 8, 8, floats, 8, floats, 8, 1, nullptr}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(AddOuter({8, 8, 1, floats, 4, 5, 1, floats, 8, 1}, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace longspan::kernels::lora_products
