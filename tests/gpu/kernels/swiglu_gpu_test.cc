#include <gtest/gtest.h>

#include "kernels/swiglu/swiglu_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels::swiglu {
namespace {

using namespace longspan::kernels::testing;

// Sizes at which packs fit, and such that have a rest; strides of their own; more rows than a grid has.
struct Size {
  int64_t rows, size, padding;
};
constexpr Size kSizes[] = {{1, 1, 0}, {3, 7, 0}, {5, 40, 0}, {4, 41, 3}, {2, 1376, 8}, {70001, 8, 0}, {0, 8, 0}};

TEST(SwigluGpu, ForwardIsTheReference) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, size, padding] : kSizes) {
      Twin gate_up = Twin::Random(type, rows * (2 * size + padding), 1, 8);
      Twin out = Twin::Of(type, rows * (size + padding));
      ForwardArguments arguments{type, rows, size, gate_up.host(), 2 * size + padding, out.host(), size + padding};
      ForwardReference(arguments);
      arguments.gate_up = gate_up.device();
      arguments.out = out.device();
      Check(Forward(arguments, nullptr));
      EXPECT_LE(RelativeDifference(type, out), Tolerance(type)) << rows << " rows of " << size;
    }
  }
}

TEST(SwigluGpu, BackwardIsTheReferenceAlsoInPlace) {
  for (const ElementType type : kTypes) {
    for (const auto& [rows, size, padding] : kSizes) {
      Twin gate_up = Twin::Random(type, rows * (2 * size + padding), 1, 8);
      Twin out_gradient = Twin::Random(type, rows * (size + padding), 2);
      Twin gradient = Twin::Of(type, rows * (2 * size + padding));
      const BackwardArguments on_host{type,
                                      rows,
                                      size,
                                      gate_up.host(),
                                      2 * size + padding,
                                      out_gradient.host(),
                                      size + padding,
                                      gradient.host(),
                                      2 * size + padding};
      BackwardArguments arguments = on_host;
      arguments.gate_up = gate_up.device();
      arguments.out_gradient = out_gradient.device();
      arguments.gate_up_gradient = gradient.device();
      BackwardReference(on_host);
      Check(Backward(arguments, nullptr));
      EXPECT_LE(RelativeDifference(type, gradient), Tolerance(type)) << rows << " rows of " << size;
      arguments.gate_up_gradient = gate_up.device();
      Check(Backward(arguments, nullptr));
      BackwardArguments in_place = on_host;
      in_place.gate_up_gradient = gate_up.host();
      BackwardReference(in_place);
      EXPECT_LE(RelativeDifference(type, gate_up), Tolerance(type)) << rows << " rows of " << size << ", in place";
    }
  }
}

TEST(SwigluGpu, RefusesShapesThatDoNotFit) {
  EXPECT_EQ(Forward({ElementType::kFloat32, 1, 0, nullptr, 0, nullptr, 0}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(Forward({ElementType::kFloat32, 1, 8, nullptr, 15, nullptr, 8}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(Backward({ElementType::kFloat32, -1, 8, nullptr, 16, nullptr, 8, nullptr, 16}, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace longspan::kernels::swiglu
