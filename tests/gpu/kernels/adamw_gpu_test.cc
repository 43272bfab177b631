#include <gtest/gtest.h>

#include <memory>

#include "kernels/adamw/adamw_cuda.h"
#include "tests/gpu/device_memory.h"

namespace longspan::kernels::adamw {
namespace {

using namespace longspan::kernels::testing;

TEST(AdamwGpu, StepsOfManyTensorsAreTheReference) {
  for (const ElementType type : kTypes) {
    const int64_t sizes[] = {1, 31, 4096, 1000003, 0, 257};
    struct OfTensor {
      Twin master, gradient, first, second, value;
    };
    std::vector<std::unique_ptr<OfTensor>> all;
    std::vector<Tensor> host, device;
    unsigned seed = 0;
    for (const int64_t size : sizes) {
      const auto f = ElementType::kFloat32;
      all.push_back(
          std::unique_ptr<OfTensor>(new OfTensor{Twin::Random(f, size, ++seed), Twin::Random(f, size, ++seed),
                                                 Twin::Of(f, size), Twin::Of(f, size), Twin::Of(type, size)}));
      OfTensor& of = *all.back();
      const bool has_value = type == ElementType::kBfloat16;
      host.push_back({size, of.master.Host<float>(), of.gradient.Host<float>(), of.first.Host<float>(),
                      of.second.Host<float>(), has_value ? of.value.host() : nullptr});
      device.push_back({size, static_cast<float*>(of.master.device()), static_cast<float*>(of.gradient.device()),
                        static_cast<float*>(of.first.device()), static_cast<float*>(of.second.device()),
                        has_value ? of.value.device() : nullptr});
    }
    Twin list(static_cast<int64_t>(device.size() * sizeof(Tensor)));
    std::memcpy(list.host(), device.data(), device.size() * sizeof(Tensor));
    list.Upload();
    for (int64_t step = 1; step <= 3; ++step) {
      const Update update{type, 1e-2, 0.9, 0.95, 1e-8, 0.1, step, 0.5f};
      StepReference(update, host.data(), static_cast<int64_t>(host.size()));
      Check(Step(update, static_cast<const Tensor*>(list.device()), static_cast<int64_t>(device.size()), 1000003,
                 nullptr));
    }
    for (const auto& of : all) {
      EXPECT_LE(RelativeDifference(ElementType::kFloat32, of->master), 1e-6);
      EXPECT_LE(RelativeDifference(ElementType::kFloat32, of->first), 1e-6);
      EXPECT_LE(RelativeDifference(ElementType::kFloat32, of->second), 1e-6);
      if (type == ElementType::kBfloat16) {
        EXPECT_LE(RelativeDifference(type, of->value), Tolerance(type));
      }
    }
  }
}

TEST(AdamwGpu, RefusesWhatDoesNotFit) {
  Update update;
  update.step = 0;
  EXPECT_EQ(Step(update, nullptr, 1, 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(Step({}, nullptr, 70000, 1, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace longspan::kernels::adamw
