// Sums into gradients: tensor_sums, embedding_gradient.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/embedding_gradient/embedding_gradient_cuda.h"
#include "kernels/tensor_sums/tensor_sums_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels {
namespace {

using namespace longspan::kernels::testing;

TEST(TensorSumsGpu, AddScaledIsTheReferenceForEveryOrderOfTheDimensions) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, columns] :
         {std::array<int64_t, 2>{1, 1}, {8, 4096}, {4096, 8}, {33, 65}, {1000, 1000}, {0, 5}, {5, 0}}) {
      for (const bool x_turned : {false, true}) {
        for (const bool sum_turned : {false, true}) {
          Twin x = Twin::Random(type, rows * columns, 1), sum = Twin::Random(ElementType::kFloat32, rows * columns, 2);
          const auto with = [&](void* from, void* to) {
            tensor_sums::AddScaledArguments on{type, rows, columns, from};
            on.x_row_stride = x_turned ? 1 : columns;
            on.x_column_stride = x_turned ? rows : 1;
            on.sum = static_cast<float*>(to);
            on.sum_row_stride = sum_turned ? 1 : columns;
            on.sum_column_stride = sum_turned ? rows : 1;
            on.scale = 1.5f;
            return on;
          };
          tensor_sums::AddScaledReference(with(x.host(), sum.host()));
          Check(tensor_sums::AddScaled(with(x.device(), sum.device()), nullptr));
          EXPECT_LE(RelativeDifference(ElementType::kFloat32, sum), 1e-6) << rows << " x " << columns;
        }
      }
    }
  }
}

TEST(TensorSumsGpu, ColumnSumsAreTheReferenceAndHaveTheSameBitsTwice) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, columns] : {std::array<int64_t, 2>{1, 1}, {5000, 300}, {3, 1000}}) {
      Twin x = Twin::Random(type, rows * (columns + 3), 1);
      std::vector<char> first;
      for (int run = 0; run < 2; ++run) {
        Twin work = Twin::Of(ElementType::kFloat32, 37 * columns),
             sum = Twin::Random(ElementType::kFloat32, columns, 2);
        const auto with = [&](auto of) {
          return tensor_sums::ColumnSumsArguments{
              type, rows, columns, of(x), columns + 3, 37, static_cast<float*>(of(work)), static_cast<float*>(of(sum))};
        };
        tensor_sums::ColumnSumsReference(with([](Twin& twin) { return twin.host(); }));
        Check(tensor_sums::ColumnSums(with([](Twin& twin) { return twin.device(); }), nullptr));
        EXPECT_LE(RelativeDifference(ElementType::kFloat32, sum), 1e-5) << rows << " x " << columns;
        if (run == 0) first = sum.Download();
        EXPECT_EQ(first, sum.Download());
      }
    }
  }
}

TEST(TensorSumsGpu, TheSquaredNormOfManyTensorsIsTheReferenceAndHasTheSameBitsTwice) {
  Twin a = Twin::Random(ElementType::kFloat32, 1, 1), b = Twin::Random(ElementType::kFloat32, 1234567, 2, 100);
  const tensor_sums::Span host[] = {{a.Host<float>(), 1}, {b.Host<float>(), 1234567}, {nullptr, 0}};
  Twin list(sizeof(host)), work(tensor_sums::kNormParts * 8), result(8);
  const tensor_sums::Span device[] = {
      {static_cast<float*>(a.device()), 1}, {static_cast<float*>(b.device()), 1234567}, {nullptr, 0}};
  std::memcpy(list.host(), device, sizeof(device));
  list.Upload();
  const double expected = tensor_sums::SquaredNormReference(host, 3);
  double found[2];
  for (double& value : found) {
    Check(tensor_sums::SquaredNorm(static_cast<const tensor_sums::Span*>(list.device()), 3,
                                   static_cast<double*>(work.device()), static_cast<double*>(result.device()),
                                   nullptr));
    std::memcpy(&value, result.Download().data(), 8);
  }
  EXPECT_NEAR(found[0] / expected, 1, 1e-12);
  EXPECT_EQ(found[0], found[1]);
}

TEST(EmbeddingGradientGpu, AddsRowsInOrderBitForBit) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, columns] : {std::array<int64_t, 2>{1, 1}, {1000, 64}, {513, 4096}, {3, 300}}) {
      constexpr int64_t kIds = 11;
      Twin x = Twin::Random(type, rows * columns, 1), table = Twin::Random(ElementType::kFloat32, kIds * columns, 2);
      Twin ids(rows * 8), order(rows * 8);
      std::vector<int64_t> id_of(static_cast<size_t>(rows));
      for (int64_t row = 0; row < rows; ++row) id_of[row] = row % 3 == 0 ? 4 : row * 7 % kIds;  // one is frequent
      int64_t* rows_in_order = order.Host<int64_t>();
      std::iota(rows_in_order, rows_in_order + rows, 0);
      std::stable_sort(rows_in_order, rows_in_order + rows, [&](int64_t a, int64_t b) { return id_of[a] < id_of[b]; });
      for (int64_t at = 0; at < rows; ++at) ids.Host<int64_t>()[at] = id_of[rows_in_order[at]];
      ids.Upload();
      order.Upload();
      const auto with = [&](auto of) {
        return embedding_gradient::Arguments{type,
                                             rows,
                                             columns,
                                             static_cast<const int64_t*>(of(ids)),
                                             static_cast<const int64_t*>(of(order)),
                                             of(x),
                                             columns,
                                             static_cast<float*>(of(table)),
                                             columns};
      };
      embedding_gradient::AddReference(with([](Twin& twin) { return twin.host(); }));
      Check(embedding_gradient::Add(with([](Twin& twin) { return twin.device(); }), nullptr));
      EXPECT_EQ(RelativeDifference(ElementType::kFloat32, table), 0) << rows << " x " << columns;
    }
  }
}

}  // namespace
}  // namespace longspan::kernels
