// What must be equal bit for bit: dropout masks, dequantised weights and random ones.
#include <gtest/gtest.h>

#include <array>
#include <numeric>

#include "kernels/dropout/dropout_cuda.h"
#include "kernels/nf4/nf4_cuda.h"
#include "kernels/normal/normal_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels {
namespace {

using namespace longspan::kernels::testing;

TEST(NormalGpu, DrawsAreTheReferencesBits) {
  for (const ElementType type : kTypes) {
    for (const int64_t elements : {int64_t{0}, int64_t{1}, int64_t{255}, int64_t{1000003}}) {
      Twin drawn = Twin::Of(type, elements);
      const auto of = [&](void* out) { return normal::Arguments{type, 42, int64_t{1} << 33, elements, 0.02, out}; };
      normal::DrawReference(of(drawn.host()));
      Check(normal::Draw(of(drawn.device()), nullptr));
      EXPECT_EQ(RelativeDifference(type, drawn), 0) << elements;
    }
  }
}

TEST(DropoutGpu, TheMaskAndTheValuesAreTheReference) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, columns] : {std::array<int64_t, 2>{1, 1}, {37, 100}, {8, 4096}, {0, 5}}) {
      Twin x = Twin::Random(type, rows * (columns + 1), 1), out = Twin::Of(type, rows * columns);
      const auto with = [&](auto of) {
        dropout::Arguments on{type, rows, columns};
        on.seed = 11;
        on.step = 3;
        on.first_sequence = 5;
        on.layer = 2;
        on.module = 4;
        on.tokens = 9;
        on.first_token = 18;
        on.first_row = 7;
        on.threshold = 1288490189;  // 0.3
        on.scale = 1.0f / 0.7f;
        on.x = of(x);
        on.x_stride = columns + 1;
        on.out = of(out);
        on.out_stride = columns;
        return on;
      };
      dropout::ApplyReference(with([](Twin& twin) { return twin.host(); }));
      Check(dropout::Apply(with([](Twin& twin) { return twin.device(); }), nullptr));
      EXPECT_EQ(RelativeDifference(type, out), 0) << rows << " x " << columns;
    }
  }
}

TEST(Nf4Gpu, DequantisesToTheReferencesBits) {
  for (const int64_t n : {int64_t{1}, int64_t{7}, int64_t{64}, int64_t{65}, int64_t{64 * 256 + 9}, int64_t{1000000}}) {
    Twin x = Twin::Random(ElementType::kFloat32, n, 1, 0.1f);
    const int64_t blocks = nf4::Blocks(n);
    Twin codes(nf4::CodeBytes(n)), scale_codes(blocks), maxima(nf4::ScaleBlocks(blocks) * 4);
    std::vector<float> scales(static_cast<size_t>(blocks));
    ASSERT_TRUE(nf4::Quantize(x.Host<float>(), n, codes.Host<uint8_t>(), scales.data()));
    const float mean = std::accumulate(scales.begin(), scales.end(), 0.0f) / static_cast<float>(blocks);
    nf4::QuantizeScales(scales.data(), blocks, mean, scale_codes.Host<uint8_t>(), maxima.Host<float>());
    codes.Upload();
    scale_codes.Upload();
    maxima.Upload();
    std::vector<float> expected(static_cast<size_t>(n));
    nf4::Dequantize(codes.Host<uint8_t>(), scale_codes.Host<uint8_t>(), maxima.Host<float>(), mean, 0, n,
                    expected.data());
    for (const int64_t begin : {int64_t{0}, int64_t{64}}) {
      if (begin >= n) continue;
      for (const ElementType type : kTypes) {
        Twin out = Twin::Of(type, n - begin);
        for (int64_t i = begin; i < n; ++i) {
          if (type == ElementType::kFloat32) {
            out.Host<float>()[i - begin] = expected[i];
          } else {
            out.Host<Bfloat16>()[i - begin] = Bfloat16(expected[i]);
          }
        }
        Check(nf4::Dequantize(
            {type, static_cast<const uint8_t*>(codes.device()), static_cast<const uint8_t*>(scale_codes.device()),
             static_cast<const float*>(maxima.device()), mean, begin, n - begin, out.device()},
            nullptr));
        EXPECT_EQ(RelativeDifference(type, out), 0) << n << " values from " << begin;
      }
    }
  }
  EXPECT_EQ(nf4::Dequantize({ElementType::kFloat32, nullptr, nullptr, nullptr, 0, 32, 64, nullptr}, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace longspan::kernels
