#include "worker/daemon/gpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/test_paths.h"

namespace longspan::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GpusTest : public ::testing::Test {
 protected:
  ~GpusTest() override { ::unsetenv("FAKE_NVML_FAILS"); }
  static std::string Library() { return longspan::testing::BinDir() / "libfake_nvml.so"; }
  static std::vector<std::string> Uuids(const std::vector<Gpu>& gpus) {
    std::vector<std::string> uuids;
    uuids.reserve(gpus.size());
    for (const Gpu& gpu : gpus) uuids.push_back(gpu.uuid.substr(0, 5));
    return uuids;
  }
};

TEST_F(GpusTest, AreWhatTheDriverTells) {
  const auto gpus = Gpus::Open(Library());
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  ASSERT_EQ((*gpus)->all().size(), 2);
  const Gpu& first = (*gpus)->all()[0];
  EXPECT_EQ(first.name, "NVIDIA H200");
  EXPECT_EQ(first.uuid, "GPU-00000000-1111-2222-3333-444444444444");
  EXPECT_EQ(first.memory_bytes, 150754820096);
  EXPECT_EQ(first.compute_capability, "9.0");
}

TEST_F(GpusTest, AReadingLeavesOutWhatAGpuCannotTell) {
  const auto gpus = Gpus::Open(Library());
  ASSERT_TRUE(gpus.ok()) << gpus.status();
  const GpuReading first = (*gpus)->Read(0), second = (*gpus)->Read(1);
  EXPECT_EQ(first.utilization, 0.97);
  EXPECT_EQ(first.memory_used_bytes, 10754820096);
  EXPECT_EQ(first.temperature_celsius, 61);
  ASSERT_TRUE(first.power_watts.has_value());
  EXPECT_NEAR(*first.power_watts, 512.3, 1e-9);
  EXPECT_EQ(second.utilization, 0.03);
  EXPECT_FALSE(second.power_watts.has_value());
}

TEST_F(GpusTest, AMachineWithoutADriverHasNone) {
  EXPECT_EQ(Gpus::Open("libno-such-driver.so.1").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(GpusTest, AnErrorOfTheDriverNamesTheCall) {
  for (const char* call : {"nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName",
                           "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetCudaComputeCapability"}) {
    ::setenv("FAKE_NVML_FAILS", call, 1);
    const absl::Status status = Gpus::Open(Library()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(call) + " says: Unknown Error"));
  }
}

TEST_F(GpusTest, CudaVisibleDevicesIsReadAsCudaReadsIt) {
  const std::vector<Gpu> all = {{"a", "GPU-a1"}, {"b", "GPU-b2"}, {"c", "GPU-c3"}};
  const auto visible = [&](const std::string& text) {
    const auto gpus = VisibleGpus(all, text);
    EXPECT_TRUE(gpus.ok()) << gpus.status();
    return Uuids(gpus.value_or(std::vector<Gpu>{}));
  };
  EXPECT_EQ(VisibleGpus(all, std::nullopt)->size(), 3);
  EXPECT_THAT(visible("2,0"), ElementsAre("GPU-c", "GPU-a"));
  EXPECT_THAT(visible(" GPU-b2 , 0 "), ElementsAre("GPU-b", "GPU-a"));
  EXPECT_THAT(visible("1,7,0"), ElementsAre("GPU-b"));  // nothing behind a wrong one
  EXPECT_THAT(visible("-1"), ElementsAre());
  EXPECT_THAT(visible(""), ElementsAre());
  EXPECT_EQ(VisibleGpus(all, "MIG-1").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace longspan::worker
