#include "worker/trainer/device.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "worker/trainer/errors.h"
#include "worker/trainer/gpu/gpu_device.h"

namespace longspan::trainer {
namespace {

constexpr int kCapabilityMin = 80;     // Ampere: bf16
constexpr int kFp8CapabilityMin = 89;  // Ada, Hopper
constexpr const char* kUnknownGpu = "NVIDIA A100";

std::string CapabilityOf(const gpu::Description& device) {
  return fmt::format("{}.{}", device.compute_capability / 10, device.compute_capability % 10);
}

}  // namespace

at::Device ChooseDevice(const std::string& wanted) {
  if (wanted != "auto" && wanted != "cpu" && wanted != "cuda") {
    throw SpecError(fmt::format("--device is {}; it must be auto, cpu or cuda", wanted));
  }
  const int64_t gpus = wanted == "cpu" ? 0 : gpu::Count();
  if (gpus == 0) {
    if (wanted == "cuda") {
      throw SpecError(gpu::IsBuilt() ? "--device is cuda, but no GPU is to be seen: is there a driver, and does "
                                       "CUDA_VISIBLE_DEVICES name one?"
                                     : "--device is cuda, but this program was built without CUDA");
    }
    return at::kCPU;
  }
  const gpu::Description device = gpu::Describe();
  if (device.compute_capability < kCapabilityMin) {
    const std::string found =
        fmt::format("{} has compute capability {}, and 8.0 is the least", device.name, CapabilityOf(device));
    if (wanted == "cuda") throw SpecError(found);
    spdlog::warn("{}: training on the CPU", found);
    return at::kCPU;
  }
  const bool expandable = gpu::UseExpandableSegments();
  spdlog::info("training on {} with {} MiB; {}", device.name, device.memory_bytes >> 20,
               expandable ? "its memory in expandable segments" : "its allocator as the environment sets it");
  return {at::kCUDA, 0};
}

CommunicatorOptions::GpuCollectives CollectivesOn(at::Device device, const std::string& wanted) {
  using GpuCollectives = CommunicatorOptions::GpuCollectives;
  if (wanted != "auto" && wanted != "nccl" && wanted != "gloo") {
    throw SpecError(fmt::format("--collectives is {}; it must be auto, nccl or gloo", wanted));
  }
  if (!device.is_cuda()) {
    if (wanted == "nccl") throw SpecError("--collectives is nccl, but this rank computes on the CPU; leave it out");
    return GpuCollectives::kNone;
  }
  return wanted == "gloo" ? GpuCollectives::kHost : GpuCollectives::kNccl;
}

nlohmann::json DevicesSeen() {
  nlohmann::json gpus = nlohmann::json::array();
  for (int64_t index = 0; index < gpu::Count(); ++index) {
    const gpu::Description device = gpu::Describe(index);
    gpus.push_back({{"name", device.name},
                    {"memory_bytes", device.memory_bytes},
                    {"compute_capability", CapabilityOf(device)},
                    {"usable", device.compute_capability >= kCapabilityMin}});
  }
  return {{"cuda", gpu::IsBuilt()}, {"gpus", gpus}};
}

jobfile::JobSpec SpecOn(at::Device device, jobfile::JobSpec spec) {
  if (!spec.training.dtype) {
    const bool is_bf16 = device.is_cuda() || spec.training.fp8;
    spec.training.dtype = is_bf16 ? jobfile::TrainingDtype::kBf16 : jobfile::TrainingDtype::kFp32;
  }
  if (spec.training.fp8 && device.is_cuda()) {
    const gpu::Description gpu = gpu::Describe();
    if (gpu.compute_capability < kFp8CapabilityMin) {
      throw SpecError(fmt::format(
          "training.fp8: {} has compute capability {}.{}, and products in 8 bits need 8.9; set it to false here",
          gpu.name, gpu.compute_capability / 10, gpu.compute_capability % 10));
    }
  }
  return spec;
}

planner::DeviceProfile ProfileOf(at::Device device, int64_t threads) {
  if (device.is_cpu()) return planner::CpuProfile(threads);
  const std::string name = gpu::Describe().name;
  if (const auto known = planner::ProfileOf(name, threads)) return *known;
  planner::DeviceProfile profile = planner::ProfileOf(kUnknownGpu, threads).value();
  profile.name = name;
  return profile;
}

int64_t MemoryBytesOf(at::Device device) {
  if (device.is_cuda()) return gpu::Describe().memory_bytes;
  return int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
}

}  // namespace longspan::trainer
