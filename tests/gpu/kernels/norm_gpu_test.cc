#include <gtest/gtest.h>

#include <optional>

#include "kernels/norm/norm_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels::norm {
namespace {

using namespace longspan::kernels::testing;

// Every layout of norm.cu, with and without packs; heads inside wider rows; more vectors than a grid starts with.
struct Size {
  int64_t rows, heads, size, padding;  // padding: elements behind each row
};
constexpr Size kSizes[] = {{3, 1, 1, 0},     {2, 1, 7, 1},     {5, 4, 64, 64},  {4, 3, 128, 8},  {3, 1, 200, 0},
                           {2, 1, 1000, 0},  {7, 1, 1001, 0},  {3, 1, 4096, 8}, {2, 1, 4097, 1}, {2, 1, 16384, 0},
                           {1, 1, 16383, 0}, {9001, 1, 16, 0}, {0, 1, 64, 0}};

struct Case {
  ElementType type;
  Kind kind;
  Size size;
  int64_t row_stride() const { return size.heads * size.size + size.padding; }
  int64_t elements() const { return size.rows * row_stride(); }
  int64_t statistics() const { return size.rows * size.heads * (kind == Kind::kLayer ? 2 : 1); }
  std::string text() const {
    return std::string(kind == Kind::kRms ? "rms " : "layer ") + (type == ElementType::kFloat32 ? "fp32 " : "bf16 ") +
           std::to_string(size.rows) + " x " + std::to_string(size.heads) + " x " + std::to_string(size.size);
  }
  View Of(void* data) const { return {data, row_stride(), size.size}; }
};

template <class Run>
void ForEachCase(const Run& run) {
  for (const ElementType type : kTypes) {
    for (const Kind kind : {Kind::kRms, Kind::kLayer}) {
      for (const Size& size : kSizes) run(Case{type, kind, size});
    }
  }
}

TEST(NormGpu, ForwardIsTheReferenceAlsoWithAResidual) {
  ForEachCase([](const Case& one) {
    for (const bool adds : {false, true}) {
      Twin x = Twin::Random(one.type, one.elements(), 1, 3), added = Twin::Random(one.type, one.elements(), 2);
      Twin weight = Twin::Random(one.type, one.size.size, 3), bias = Twin::Random(one.type, one.size.size, 4);
      Twin out = Twin::Of(one.type, one.elements());
      Twin statistics = Twin::Of(ElementType::kFloat32, one.statistics());
      ForwardArguments arguments;
      arguments.type = one.type;
      arguments.kind = one.kind;
      arguments.vectors = {one.size.rows, one.size.heads, one.size.size};
      arguments.epsilon = 1e-5f;
      arguments.statistics_stride = one.size.heads;
      const auto with = [&](auto data) {
        ForwardArguments on = arguments;
        on.x = one.Of(data(x));
        if (adds) on.added = one.Of(data(added));
        on.weight = data(weight);
        if (one.kind == Kind::kLayer) on.bias = data(bias);
        on.out = one.Of(data(out));
        on.statistics = static_cast<float*>(data(statistics));
        return on;
      };
      ForwardReference(with([](Twin& twin) { return twin.host(); }));
      Check(Forward(with([](Twin& twin) { return twin.device(); }), nullptr));
      EXPECT_LE(RelativeDifference(one.type, out), Tolerance(one.type)) << one.text();
      EXPECT_LE(RelativeDifference(one.type, x), 0) << one.text() << ", the sum with the residual";
      EXPECT_LE(RelativeDifference(ElementType::kFloat32, statistics), 1e-5) << one.text();
    }
  });
}

TEST(NormGpu, BackwardIsTheReferenceAndHasTheSameBitsTwice) {
  ForEachCase([](const Case& one) {
    const bool layer = one.kind == Kind::kLayer;
    constexpr int64_t kParts = 5;
    for (const bool adds : {true, false}) {
      Twin x = Twin::Random(one.type, one.elements(), 1, 3), weight = Twin::Random(one.type, one.size.size, 3);
      Twin statistics = Twin::Random(ElementType::kFloat32, one.statistics(), 5);
      Twin out_gradient = Twin::Random(one.type, one.elements(), 6);
      std::optional<std::vector<char>> first;
      for (int run = 0; run < 2; ++run) {
        Twin x_gradient = Twin::Random(one.type, one.elements(), 7);
        Twin sums = Twin::Of(ElementType::kFloat32, kParts * 2 * one.size.size);
        Twin weight_gradient = Twin::Random(ElementType::kFloat32, one.size.size, 8);
        Twin bias_gradient = Twin::Random(ElementType::kFloat32, one.size.size, 9);
        const auto with = [&](auto data) {
          BackwardArguments on;
          on.type = one.type;
          on.kind = one.kind;
          on.vectors = {one.size.rows, one.size.heads, one.size.size};
          on.statistics_stride = one.size.heads;
          on.x = one.Of(data(x));
          on.weight = data(weight);
          on.statistics = static_cast<const float*>(data(statistics));
          on.out_gradient = one.Of(data(out_gradient));
          on.x_gradient = one.Of(data(x_gradient));
          on.adds = adds;
          on.parts = kParts;
          on.sums = static_cast<float*>(data(sums));
          on.weight_gradient = static_cast<float*>(data(weight_gradient));
          if (layer) on.bias_gradient = static_cast<float*>(data(bias_gradient));
          return on;
        };
        BackwardReference(with([](Twin& twin) { return twin.host(); }));
        Check(Backward(with([](Twin& twin) { return twin.device(); }), nullptr));
        EXPECT_LE(RelativeDifference(one.type, x_gradient), Tolerance(one.type)) << one.text();
        EXPECT_LE(RelativeDifference(ElementType::kFloat32, weight_gradient), 1e-4) << one.text();
        if (layer) {
          EXPECT_LE(RelativeDifference(ElementType::kFloat32, bias_gradient), 1e-4) << one.text();
        }
        const std::vector<char> bits = weight_gradient.Download();
        if (!first) first = bits;
        EXPECT_EQ(*first, bits) << one.text();
      }
    }
  });
}

TEST(NormGpu, RefusesShapesThatDoNotFit) {
  ForwardArguments arguments;
  arguments.vectors = {1, 1, kSizeMax + 1};
  EXPECT_EQ(Forward(arguments, nullptr), cudaErrorInvalidValue);
  arguments.vectors = {1, 1, 0};
  EXPECT_EQ(Forward(arguments, nullptr), cudaErrorInvalidValue);
  BackwardArguments backward;
  backward.vectors = {1, 1, 8};
  EXPECT_EQ(Backward(backward, nullptr), cudaErrorInvalidValue);  // no statistics
}

}  // namespace
}  // namespace longspan::kernels::norm
