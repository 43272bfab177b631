#include "worker/planner/device_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "proto/jobfile/enum_names.h"

namespace longspan::planner {
namespace {

using jobfile::TrainingDtype;
using nlohmann::json;

constexpr double kTera = 1e12, kGiga = 1e9;
constexpr int64_t kMebibyte = int64_t{1} << 20;

// Of SXM modules. GEMM and attention in bf16, what good kernels reach: on Hopper 720 of 990 TFLOP/s and cuDNN's
// attention at 32k tokens (688 forward, 581 backward on an H200, NVIDIA's figures); on A100 about 80 % of 312 TFLOP/s
// and FlashAttention-2's own figures (arXiv 2307.08691, 190 causal). Memory and PCIe: data sheets, PCIe at 80 %.
const DeviceProfile kGpus[] = {
    {"NVIDIA H200", TrainingDtype::kBf16, 720 * kTera, 610 * kTera, 4800 * kGiga, 50 * kGiga, 1024 * kMebibyte, false},
    {"NVIDIA H100", TrainingDtype::kBf16, 720 * kTera, 610 * kTera, 3350 * kGiga, 50 * kGiga, 1024 * kMebibyte, false},
    {"NVIDIA A100", TrainingDtype::kBf16, 250 * kTera, 190 * kTera, 2039 * kGiga, 25 * kGiga, 1024 * kMebibyte, false},
};

constexpr struct {
  const char* key;
  double DeviceProfile::* member;
} kRates[] = {
    {"gemm_flops_per_second", &DeviceProfile::gemm_flops_per_second},
    {"attention_flops_per_second", &DeviceProfile::attention_flops_per_second},
    {"memory_bytes_per_second", &DeviceProfile::memory_bytes_per_second},
    {"host_copy_bytes_per_second", &DeviceProfile::host_copy_bytes_per_second},
};

std::string ReadKey(const std::string& key, const json& value, DeviceProfile* profile) {
  if (key == "name") {
    if (!value.is_string()) return "name must be a text";
    profile->name = value.get<std::string>();
    return "";
  }
  if (key == "dtype") {
    const auto dtype = value.is_string() ? jobfile::ValueOf<TrainingDtype>(value.get_ref<const std::string&>())
                                         : std::optional<TrainingDtype>();
    if (!dtype) return "dtype must be fp32 or bf16";
    profile->dtype = *dtype;
    return "";
  }
  if (key == "process_bytes") {
    if (!value.is_number_integer() || value.get<int64_t>() < 0) return "process_bytes must be a whole number";
    profile->process_bytes = value.get<int64_t>();
    return "";
  }
  if (key == "is_host") {
    if (!value.is_boolean()) return "is_host must be true or false";
    profile->is_host = value.get<bool>();
    return "";
  }
  for (const auto& rate : kRates) {
    if (key != rate.key) continue;
    if (!value.is_number()) return key + " must be a number";
    profile->*rate.member = value.get<double>();
    return "";
  }
  return "unknown key \"" + key + "\"";
}

}  // namespace

DeviceProfile CpuProfile(int64_t threads) {
  const auto count = static_cast<double>(std::max<int64_t>(1, threads));
  return {fmt::format("cpu, {} thread{}, rough", std::max<int64_t>(1, threads), threads > 1 ? "s" : ""),
          TrainingDtype::kFp32,
          100 * kGiga * count,
          80 * kGiga * count,
          12 * kGiga * count,
          8 * kGiga * count,
          256 * kMebibyte,
          true};
}

std::optional<DeviceProfile> ProfileOf(const std::string& device, int64_t threads) {
  if (device == "cpu") return CpuProfile(threads);
  for (const DeviceProfile& profile : kGpus) {
    const std::string model = profile.name.substr(profile.name.rfind(' ') + 1);
    if (device.find(model) != std::string::npos) return profile;
  }
  return std::nullopt;
}

json ToJson(const DeviceProfile& profile) {
  json document = {{"name", profile.name},
                   {"dtype", jobfile::NameOf(profile.dtype)},
                   {"process_bytes", profile.process_bytes},
                   {"is_host", profile.is_host}};
  for (const auto& rate : kRates) document[rate.key] = profile.*rate.member;
  return document;
}

std::string ReadJson(const json& document, DeviceProfile* profile) {
  if (!document.is_object()) return "a device profile is a map of keys";
  for (const auto& [key, value] : document.items()) {
    if (std::string wrong = ReadKey(key, value, profile); !wrong.empty()) return wrong;
  }
  return CheckProfile(*profile);
}

std::string CheckProfile(const DeviceProfile& profile) {
  for (const auto& rate : kRates) {
    const double value = profile.*rate.member;
    if (!std::isfinite(value) || value <= 0) return fmt::format("{} is {}; must be above 0", rate.key, value);
  }
  return profile.process_bytes < 0 ? "process_bytes must be at least 0" : "";
}

}  // namespace longspan::planner
